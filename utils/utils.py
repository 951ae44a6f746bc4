"""What trains, at which rate: the choice of parameters, the optimisers and the learning-rate schedules.

Both set-up functions take any nn.Module and any namespace with `lr`, `epochs` and `scheduler`; every other
attribute they read, with its default, is a field of `TrainingSettings`.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace

from torch import nn, optim
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from .config import CHOICES
from .errors import InputError
from .losses import DualTaskLoss as DualTaskLoss  # under this name too
from .losses import MultiStageConsistencyLoss as MultiStageConsistencyLoss

log = logging.getLogger(__name__)

KINDS = ("prompts", "adapter", "layernorm", "fusion")  # fusion: NGA's sigma and the fusion of the stages
KIND_OF_COMPONENT = {"adapter": "adapter", "prompt_embeddings": "prompts", "multi_prompts": "prompts",
                     "prompts": "prompts", "nga": "fusion", "fusion": "fusion", "stage_fusion": "fusion"}
WARMUP_SCHEDULERS = ("cosine", "multistep", "warmup", "coslr")

Trainable = dict[str, tuple[Parameter, str]]  # full parameter name → (parameter, kind)
TrainingUtils = tuple[optim.Optimizer, LRScheduler, nn.CrossEntropyLoss]


class Tunable(nn.Module, ABC):
    """A model that declares what of it trains; all that it does not declare is frozen."""

    @abstractmethod
    def parameter_kinds(self) -> dict[str, str]:
        """Each trained parameter's full name, as in `named_parameters`, and its kind, one of KINDS."""

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 - a model without phases has nothing to do
        """Prepare for a 0-based epoch. Models that train in phases override this."""


@dataclass(frozen=True)
class TrainingSettings:
    """What the set-up functions read from their namespace, with the defaults of what it may leave out.

    An optional attribute that is None takes its default, as a flag that was not given does. Raises InputError
    for a value that cannot be used.
    """

    lr: float  # of the prompts and LayerNorms; the rates of other groups are multiples of it
    epochs: int  # how many times the scheduler will step
    scheduler: str | None  # see `build_scheduler`
    optimizer: str = "adamw"  # adamw, adam, sgd
    weight_decay: float = 0.01  # of tensors with two or more dimensions
    decay_layernorm: bool = False  # and of the weights of LayerNorms
    momentum: float = 0.9  # of sgd
    warmup_epochs: int = 3
    warmup_lr: float | None = None  # rate of every group in epoch 0; None: a tenth of each group's own
    warmup_type: str = "linear"  # climbs from there; constant: stays there until the warm-up ends
    scheduler_epochs: Sequence[int] = ()  # epochs of the run, from 0, at which multistep lowers the rate
    scheduler_gamma: float = 0.1  # factor at each of them
    adapter_lr_scale: float = 5.0
    fusion_lr_scale: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise InputError(f"the learning rate is {self.lr!r}; it must be a number above 0 (--lr)")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise InputError(f"epochs is {self.epochs!r}; it must be an integer of at least 1 (--epochs)")
        if not isinstance(self.warmup_epochs, int):
            raise InputError(f"warmup_epochs is {self.warmup_epochs!r}; it must be an integer")
        for name, key in (("warmup_type", "OPTIM.WARMUP_TYPE"), ("optimizer", "OPTIM.NAME")):
            if getattr(self, name) not in CHOICES[key]:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; valid: {', '.join(CHOICES[key])}")
        for name in ("weight_decay", "momentum", "warmup_epochs", "warmup_lr", "scheduler_gamma",
                     "adapter_lr_scale", "fusion_lr_scale", "label_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value!r}; it must be finite and not negative")
        if self.label_smoothing > 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1]")

    @classmethod
    def from_args(cls, args: object) -> TrainingSettings:
        """The settings of a namespace. Raises InputError where it has no `lr`, `epochs` or `scheduler`."""
        values = {}
        for field in fields(cls):
            value = getattr(args, field.name, field.default)
            if value is MISSING:
                raise InputError(f"the training settings lack {field.name!r}")
            values[field.name] = field.default if value is None and field.default is not MISSING else value
        return cls(**values)


def trainable_parameters(model: nn.Module) -> Trainable:
    """Choose what trains in the image phase, and set `requires_grad` of every parameter of the model by it.

    A `Tunable` says so itself. In any other module the parameters with one of KIND_OF_COMPONENT among the
    components of their dotted name train, compared whole (`adapter_pl` is not `adapter`), and so do the
    LayerNorms below a component `visual`. Raises InputError where this leaves nothing, or a declaration does
    not fit the model.
    """
    kinds = model.parameter_kinds() if isinstance(model, Tunable) else _kinds_by_name(model)
    return _train_only(model, kinds)


def _kinds_by_name(model: nn.Module) -> dict[str, str]:
    norms = {f"{name}.{leaf}": "layernorm" for name, module in model.named_modules()
             if isinstance(module, nn.LayerNorm) and "visual" in name.split(".")
             for leaf, _ in module.named_parameters()}
    named = {name: KIND_OF_COMPONENT[part] for name, _ in model.named_parameters()
             for part in name.split(".") if part in KIND_OF_COMPONENT}
    return norms | named


def head_parameters(model: nn.Module) -> Trainable:
    """Choose what trains in the text phase: all of a Linear, of any other module what lies in `adapter`."""
    return _train_only(model, {name: "adapter" for name, _ in model.named_parameters()
                               if isinstance(model, nn.Linear) or "adapter" in name.split(".")})


def _train_only(model: nn.Module, kinds: dict[str, str]) -> Trainable:
    """The one place that freezes and unfreezes: exactly the parameters named in `kinds` get gradients."""
    parameters = dict(model.named_parameters())
    wrong = [name for name, kind in kinds.items() if name not in parameters or kind not in KINDS]
    if wrong:
        raise InputError(f"{type(model).__name__} declares {wrong[0]!r} as {kinds[wrong[0]]!r}: it has no "
                         f"such parameter, or the kind is none of {', '.join(KINDS)}")
    if not kinds:
        raise InputError(f"nothing in {type(model).__name__} is trainable: no parameter's name has a "
                         f"component such as {', '.join(KIND_OF_COMPONENT)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in kinds)
    return {name: (parameter, kinds[name]) for name, parameter in parameters.items() if name in kinds}


def parameter_groups(trainable: Trainable, settings: TrainingSettings) -> list[dict[str, object]]:
    """Groups for an optimiser, each with its kind as `name` and its own `lr` and `weight_decay`.

    Tensors with fewer than two dimensions (biases, LayerNorms, sigma, stage weights) are not decayed, so a
    kind that has both comes as two groups of one name and rate. Prompts, [1, n, width], are decayed.
    `decay_layernorm` decays the weights of LayerNorms too, as the original LaFTer does: its list of what is not
    decayed names `bias` and `LayerNorm.weight`, and CLIP's are called `ln_1.weight`.
    """
    scales = {"adapter": settings.adapter_lr_scale, "fusion": settings.fusion_lr_scale}
    groups: dict[tuple[str, bool], dict[str, object]] = {}
    for name, (parameter, kind) in trainable.items():
        norm_weight = kind == "layernorm" and name.endswith("weight")
        decay = parameter.ndim >= 2 or (norm_weight and settings.decay_layernorm)
        group = groups.setdefault((kind, decay), {
            "name": kind, "lr": settings.lr * scales.get(kind, 1.0),
            "weight_decay": settings.weight_decay if decay else 0.0, "params": []})
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(trainable: Trainable, settings: TrainingSettings) -> optim.Optimizer:
    """The optimiser that `settings` names, over `parameter_groups`; on a GPU as one kernel, its state there too, so
    that a step can be recorded. It stays so where a state from another kind of device is loaded."""
    groups = parameter_groups(trainable, settings)
    on_gpu = groups[0]["params"][0].device.type == "cuda"
    fused = {"fused": True} if on_gpu else {}
    if settings.optimizer == "sgd":
        optimizer = optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, **fused)
    else:
        kind = {"adamw": optim.AdamW, "adam": optim.Adam}[settings.optimizer]
        optimizer = kind(groups, lr=settings.lr, capturable=on_gpu, **fused)
    here = {name: optimizer.defaults[name] for name in ("fused", "capturable") if name in optimizer.defaults}
    optimizer.register_load_state_dict_pre_hook(lambda _, state: {
        **state, "param_groups": [{**group, **here} for group in state["param_groups"]]})
    return optimizer


class ConstantWarmupScheduler(LRScheduler):
    """A linear warm-up, in which every group climbs to its own rate; then the wrapped scheduler's rates.

    In epoch e < warmup_epochs a group has start + (target − start) · e / warmup_epochs: by default 0.1, 0.4
    and 0.7 of its target. From epoch `warmup_epochs` on it has the rate of the wrapped scheduler, which
    counts from there.

    Args:
        optimizer: its groups' rates are the targets.
        constant_scheduler: a fresh one of the same optimiser: constant, or any that starts at the targets.
        warmup_epochs: 0 leaves the warm-up out.
        warmup_lr: the rate of every group in epoch 0; None stands for a tenth of each group's own.
        warmup_type: `linear`, or `constant`: the rate of epoch 0 lasts until the warm-up ends.
    """

    def __init__(self, optimizer: optim.Optimizer, constant_scheduler: LRScheduler, warmup_epochs: int = 3,
                 warmup_lr: float | None = None, warmup_type: str = "linear"):
        self.constant_scheduler = constant_scheduler
        self.warmup_epochs = warmup_epochs
        self.warmup_lr = warmup_lr
        self.warmup_type = warmup_type
        super().__init__(optimizer)

    def step(self) -> None:
        """Move on by an epoch; call it after the optimiser's steps of the one that ends."""
        if self.last_epoch >= self.warmup_epochs:
            self.constant_scheduler.step()
        super().step()

    def get_lr(self) -> list[float]:
        """The rates of the current epoch, for `step`; read them with `get_last_lr`."""
        if self.last_epoch >= self.warmup_epochs:
            return self.constant_scheduler.get_last_lr()
        done = self.last_epoch / self.warmup_epochs if self.warmup_type == "linear" else 0.0
        starts = [0.1 * target if self.warmup_lr is None else self.warmup_lr for target in self.base_lrs]
        return [start + (target - start) * done for start, target in zip(starts, self.base_lrs)]

    def state_dict(self) -> dict[str, object]:
        """Plain values only, the wrapped scheduler's among them."""
        return {**super().state_dict(), "constant_scheduler": self.constant_scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Continue from `state_dict`. The rates themselves are in the optimiser's state: load that too."""
        own = dict(state_dict)
        self.constant_scheduler.load_state_dict(own.pop("constant_scheduler"))
        super().load_state_dict(own)


def build_scheduler(optimizer: optim.Optimizer, settings: TrainingSettings) -> tuple[LRScheduler, str]:
    """The scheduler for `settings.scheduler`, and it in words.

    - `cosine`, `warmup`: warm-up, then constant;
    - `multistep`: the same, unless `scheduler_epochs` are given: from each of these epochs of the run on,
      counted from 0, the rates are multiplied by `scheduler_gamma`;
    - `coslr`: warm-up, then half a cosine over the remaining epochs, which reaches 0 where training ends;
    - anything else, None and `none` among them: constant from the first epoch.

    Raises InputError for `scheduler_epochs` that do not lie after the warm-up.
    """
    name, warmup, steps = settings.scheduler, settings.warmup_epochs, settings.scheduler_epochs
    if name == "coslr":
        after = CosineAnnealingLR(optimizer, T_max=max(1, settings.epochs - warmup))
        what = "a cosine decay to 0"
    elif name == "multistep" and steps:
        after = _multistep(optimizer, settings)
        what = f"rates times {settings.scheduler_gamma:g} at epochs {', '.join(map(str, steps))}"
    else:
        after, what = StepLR(optimizer, step_size=settings.epochs, gamma=1.0), "constant rates"
    if name not in WARMUP_SCHEDULERS:
        return after, f"{what} without warm-up"
    scheduler = ConstantWarmupScheduler(optimizer, after, warmup, settings.warmup_lr, settings.warmup_type)
    return scheduler, f"a warm-up over {warmup} epochs, then {what}"


def _multistep(optimizer: optim.Optimizer, settings: TrainingSettings) -> LRScheduler:
    """As torch's MultiStepLR, but its state is plain values, which torch.load(weights_only=True) accepts."""
    milestones = sorted(epoch - settings.warmup_epochs for epoch in settings.scheduler_epochs)
    if milestones[0] < 1:
        raise InputError(f"--scheduler-epochs {min(settings.scheduler_epochs)} is not after the warm-up: "
                         f"give epochs from {settings.warmup_epochs + 1} on")
    return LambdaLR(optimizer, lambda epoch: settings.scheduler_gamma ** bisect_right(milestones, epoch))


def setup_lafter_training_utils(args: object, model: nn.Module) -> TrainingUtils:
    """The image phase's (optimizer, scheduler, criterion), for what `trainable_parameters` chooses.

    Nothing is moved to another device.
    """
    return _setup("image phase", trainable_parameters(model), TrainingSettings.from_args(args))


def setup_text_training_utils(args: object, model: nn.Module) -> TrainingUtils:
    """The text phase's (optimizer, scheduler, criterion): `head_parameters` alone train, at `lr` itself.

    Nothing is moved to another device.
    """
    settings = replace(TrainingSettings.from_args(args), adapter_lr_scale=1.0)
    return _setup("text phase", head_parameters(model), settings)


def spoken(kind: str) -> str:
    """What people are told for one of KINDS: one word for one thing."""
    return "classifier" if kind == "adapter" else kind


def tell_counts(counts: Mapping[str, int]) -> str:
    """Numbers of parameters by kind, in words."""
    return ", ".join(f"{spoken(kind)} {count:,}" for kind, count in counts.items())


def _setup(phase: str, trainable: Trainable, settings: TrainingSettings) -> TrainingUtils:
    optimizer = build_optimizer(trainable, settings)
    scheduler, what = build_scheduler(optimizer, settings)
    counts = Counter()
    for parameter, kind in trainable.values():
        counts[kind] += parameter.numel()
    log.info("%s: %s with %s (scheduler %s); it trains %s", phase, type(optimizer).__name__, what,
             settings.scheduler, tell_counts(counts))
    return optimizer, scheduler, nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
