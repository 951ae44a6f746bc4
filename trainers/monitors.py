"""What a run's record tells of training beside losses and accuracies; nothing here changes a number of the training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from utils.data import UNKNOWN
from utils.utils import Tunable

from .lafter import Prediction
from .lafter_multilayer import MultiLayerLaFTer
from .moments import Moments


class StageMonitor:
    """While a split is scored: what each stage would say by itself. A model without stage features leaves no trace."""

    def __init__(self):
        self.sums: dict[str, Tensor] = defaultdict(float)
        self.moments = Moments()

    @torch.no_grad()
    def update(self, prediction: Prediction, classify: Callable[[Tensor], Tensor], labels: Tensor) -> None:
        """Add a batch: `classify` turns features into logits; labels [batch], UNKNOWN ones do not count."""
        if prediction.stage_features is None:
            return
        features = prediction.stage_features.float()
        choices = classify(features).argmax(-1).cpu()  # [stages, batch]
        known = labels != UNKNOWN
        for name, term in (("images", torch.tensor(len(labels))), ("labelled", known.sum()),
                           ("right", ((choices == labels) & known).sum(1)),
                           ("agreeing", (choices[1:] == choices[:-1]).sum(1))):
            self.sums[name] = self.sums[name] + term
        self.moments.update(features, features[-1])

    def result(self) -> dict[str, list[float]]:
        """Fractions, from shallow to deep: `stage_top1` of each stage, where labels exist; `stage_agreement`, the share
        of images on which a stage and the next choose the same class; `stage_cka` of each stage's features with the
        last stage's."""
        if not self.sums:
            return {}
        result = {"stage_agreement": (self.sums["agreeing"] / self.sums["images"]).tolist(),
                  "stage_cka": self.moments.linear_cka()}
        if self.sums["labelled"]:
            result["stage_top1"] = (self.sums["right"] / self.sums["labelled"]).tolist()
        return result


class GradientMonitor:
    """The norms of the gradients, by kind of parameter and by stage where there are stages, over an epoch's steps."""

    def __init__(self, model: Tunable):
        self.kinds, self.stages = parameter_groups(model)
        self.parameters = {name: dict(model.named_parameters())[name] for name in self.kinds}
        self.norms: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def update(self, scale: float = 1.0) -> None:
        """Before a step of the optimiser, when the gradients are there; `scale` is what the loss was multiplied by."""
        parts: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parts[self.kinds[name], self.stages.get(name, 0)].append(parameter.grad.float().norm())
        for key, norms in parts.items():
            self.norms[key].append(torch.stack(norms).norm() / scale)

    def result(self) -> dict[str, dict[str, list[float | None]]]:
        """`gradient_norms`: per kind a list over the stages, or of one value, of the mean norm over the steps; None
        where nothing trained. A step whose gradients are not finite, which fp16's scaler skips, does not count."""
        result: dict[str, list[float | None]] = {}
        for kind in dict.fromkeys(self.kinds.values()):
            count = 1 + max(self.stages.get(name, 0) for name in self.kinds if self.kinds[name] == kind)
            result[kind] = [_finite_mean(self.norms[kind, stage]) for stage in range(count)]
        return {"gradient_norms": result}


def parameter_groups(model: Tunable) -> tuple[dict[str, str], dict[str, int]]:
    """(the kind, the stage) by the names of what the model trains; only a staged model's prompts and LayerNorms have
    a stage."""
    kinds = model.parameter_kinds()
    if not isinstance(model, MultiLayerLaFTer):
        return kinds, {}
    return kinds, {name: model.stage_of(name) for name, kind in kinds.items() if kind in ("prompts", "layernorm")}


def _finite_mean(norms: list[Tensor]) -> float | None:
    values = torch.stack(norms) if norms else torch.empty(0)
    values = values[values.isfinite()]
    return values.mean().item() if len(values) else None


@torch.no_grad()
def model_monitors(model: Tunable) -> dict[str, list[float]]:
    """What the parameters tell: `prompt_norms`, the mean length of the prompt tokens (per stage); of a staged model
    also the weights of the stages in the fusion, σ of NGA, and which stages are active."""
    parameters = dict(model.named_parameters())
    prompts = [parameters[name] for name, kind in model.parameter_kinds().items() if kind == "prompts"]
    result = {"prompt_norms": [prompt.float().norm(dim=-1).mean().item() for prompt in prompts]}
    if isinstance(model, MultiLayerLaFTer):
        result |= {"stage_weights": model.fusion_weights().tolist(), "sigma": model.nga.sigma.tolist(),
                   "active_stages": list(model.active_stages)}
    return result
