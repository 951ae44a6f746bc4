"""What the record tells of stages, prompts and gradients; the moments of the stages' features and their alignment."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.data.items import UNKNOWN
from utils.data.loader import ViewLoader, micro_batches
from utils.utils import Tunable

from . import distributed
from .LaFTer import Prediction
from .LaFTer_multilayer import MultiLayerLaFTer


class Moments:
    """Gathers pairs of features: x [stages, batch, d] of the stages, and y [batch, e] that all are compared with.

    `sums` holds plain sums over the images, in double precision: those of several processes may be added.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = defaultdict(float)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch."""
        if x.device.type == "mps":  # which has no double precision
            x, y = x.cpu(), y.cpu()
        x, y = x.double(), y.double()
        for name, term in (("count", torch.tensor(len(y), dtype=torch.double)), ("x", x.sum(1)), ("y", y.sum(0)),
                           ("xx", x.mT @ x), ("xy", x.mT @ y), ("yy", y.t() @ y)):
            self.sums[name] = self.sums[name] + term.cpu()

    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x [stages, d] and of y [e]."""
        return self.sums["x"] / self.sums["count"], self.sums["y"] / self.sums["count"]

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances of x [stages, d, d], of x with y [stages, d, e], and of y [e, e]; divided by the count."""
        count, (x, y) = self.sums["count"], self.means()
        return (self.sums["xx"] / count - x[:, :, None] * x[:, None, :],
                self.sums["xy"] / count - x[:, :, None] * y, self.sums["yy"] / count - torch.outer(y, y))

    def linear_cka(self) -> list[float]:
        """Per stage, linear CKA of x and y: ‖Cov(x, y)‖² / (‖Cov(x)‖ ‖Cov(y)‖), Frobenius norms (Kornblith et al.,
        ICML 2019); 1 where x is y up to rotation, scale and shift, 0 where they do not vary together."""
        xx, xy, yy = (table.flatten(-2).norm(dim=-1) for table in self.covariances())
        scale = xx * yy
        return (xy.square() / scale.where(scale > 0, 1.0)).tolist()


class StageStatistics:
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

    def gather(self) -> None:
        """Add up what all processes have seen."""
        self.sums = distributed.add_up(distributed.gather(dict(self.sums)))
        self.moments.sums = distributed.add_up(distributed.gather(dict(self.moments.sums)))

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


class StepNumbers(NamedTuple):
    """A step of the optimiser in numbers: the means over the batch of the loss and its parts; the norms of the
    gradients, of all as `grad_norm` and by kind of parameter and stage, as in `prompts 0`."""

    step: int
    losses: dict[str, float]
    norms: dict[str, float]


class TrainingStatistics:
    """What an epoch's row tells of training: sums over its images and over its steps. What a step tells stays on the
    device until `fetch` asks for it, so that no step waits for a number.

    Of several processes each adds up its own images; the gradients, and so the sums over the steps, are the same in
    all. `sums` is `totals` of an interrupted epoch.
    """

    def __init__(self, model: Tunable, sums: dict[str, dict[str, float]] | None = None):
        (kinds, stages), parameters = kinds_and_stages(model), dict(model.named_parameters())
        self.parts: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, kind in kinds.items():
            self.parts[f"{kind} {stages.get(name, 0)}"].append(parameters[name])
        self.images, self.steps = (Counter((sums or {}).get(kind, {})) for kind in ("images", "steps"))
        if not distributed.is_main():
            self.images.clear()  # the first process has them
        self.recent: list[tuple[int, int, list[str], list[str], Tensor]] = []

    @torch.no_grad()
    def gradient_norms(self) -> dict[str, Tensor]:
        """The norms of the gradients as they are now: of all as `grad_norm`, and by kind of parameter and stage, as in
        `prompts 0`."""
        parts = {key: [parameter.grad for parameter in part if parameter.grad is not None]
                 for key, part in self.parts.items()}
        parts = {key: gradients for key, gradients in parts.items() if gradients}
        each = torch.stack(torch._foreach_norm([gradient for gradients in parts.values() for gradient in gradients]))
        by_part = each.split([len(gradients) for gradients in parts.values()])
        return dict(zip(["grad_norm", *parts], torch._foreach_norm([each, *by_part])))

    @torch.no_grad()
    def add_step(self, step: int, images: int, losses: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """Add a step of the optimiser with what this process saw of its batch: so many `images`, `losses` as
        `batch_numbers` tells them ({} of none), and `norms` of its gradients as `gradient_norms` tells them."""
        numbers = torch.stack([*losses.values(), *norms.values()])
        self.recent.append((step, images, list(losses), list(norms), numbers))

    def fetch(self) -> list[StepNumbers]:
        """The steps since the last call, in numbers, which are added to the sums; in double precision. Of a step whose
        norm is not finite, which fp16's scaler leaves out, the norms do not count."""
        values = iter(torch.cat([numbers for *_, numbers in self.recent]).tolist() if self.recent else [])
        steps = []
        for step, images, loss_names, norm_names, _ in self.recent:
            losses, norms = ({name: next(values) for name in names} for names in (loss_names, norm_names))
            counts = {name: losses.pop(name) for name in COUNTS if name in losses}
            losses = {"loss": sum(losses.values()), **losses} if losses else {}
            taken = math.isfinite(norms["grad_norm"])
            sums = {name: loss * images for name, loss in losses.items()}
            self.images.update({"images": float(images), **counts, **sums})
            self.steps.update({**{name: norm if taken else 0.0 for name, norm in norms.items()},
                               "taken": float(taken), "skipped_steps": float(not taken)})
            steps.append(StepNumbers(step, losses, norms))
        self.recent = []
        return steps

    def totals(self) -> dict[str, dict[str, float]]:
        """The sums of the steps that were fetched: over all processes' `images`, and over the `steps`."""
        return {"images": dict(distributed.add_up(distributed.gather(dict(self.images)))), "steps": dict(self.steps)}


COUNTS = ("known", "right", "right_uncalibrated", "weight")  # sums in a batch's numbers; the others are means over it


@torch.no_grad()
def batch_numbers(losses: dict[str, Tensor], batch: dict[str, Tensor], pseudo_labelled: bool) -> dict[str, Tensor]:
    """What `TrainingStatistics` keeps of a batch: the parts of the loss, means over its images; and, where a teacher
    `pseudo_labelled` it, how many of its `target`s [batch] are the true labels, as far as those are known, and how many
    would be without calibration."""
    numbers = dict(losses)
    if pseudo_labelled:
        known = batch["label"] != UNKNOWN
        kinds = {"right": "target", "right_uncalibrated": "uncalibrated"}
        numbers |= {"known": known.sum(dtype=torch.float32), **{
            name: ((batch[column] == batch["label"]) & known).sum(dtype=torch.float32)
            for name, column in kinds.items() if column in batch}}
    if "weight" in batch:
        numbers["weight"] = batch["weight"].sum()
    return numbers


def summarise_training(sums: dict[str, dict[str, float]], model: Tunable) -> dict[str, object]:
    """An epoch's row of the record from `TrainingStatistics.totals`: the means over the images of the loss and its
    parts; over the steps that were taken the mean norm of the gradient and, as `gradient_norms`, per kind a list over
    the stages, or of one value (None where nothing trained); `skipped_steps`, how many fp16's scaler left out, if
    any; where known, the pseudo-labels' accuracy, and what it would be without calibration; the mean weight of the
    images, where they are weighted."""
    images, steps = dict(sums["images"]), dict(sums["steps"])
    count, known, right, plain = (images.pop(name, None) for name in ("images", "known", "right", "right_uncalibrated"))
    if "weight" in images:
        images["pseudo_label_weight"] = images.pop("weight")
    taken = steps.get("taken", 0)
    row: dict[str, object] = {name: total / count for name, total in images.items()}
    if taken:
        row["grad_norm"] = steps["grad_norm"] / taken
    if steps.get("skipped_steps"):
        row["skipped_steps"] = int(steps["skipped_steps"])
    if known:
        row["pseudo_label_accuracy"] = right / known
        if plain is not None:
            row["pseudo_label_accuracy_uncalibrated"] = plain / known
    kinds, stages = kinds_and_stages(model)
    row["gradient_norms"] = {}
    for kind in dict.fromkeys(kinds.values()):
        depth = 1 + max(stages.get(name, 0) for name in kinds if kinds[name] == kind)
        totals = [steps.get(f"{kind} {stage}") for stage in range(depth)]
        row["gradient_norms"][kind] = [None if total is None or not taken else total / taken for total in totals]
    return row


def kinds_and_stages(model: Tunable) -> tuple[dict[str, str], dict[str, int]]:
    """(the kind, the stage) by the names of what the model trains; only a staged model's prompts and LayerNorms have
    a stage."""
    kinds = model.parameter_kinds()
    if not isinstance(model, MultiLayerLaFTer):
        return kinds, {}
    return kinds, {name: model.stage_of(name) for name, kind in kinds.items() if kind in ("prompts", "layernorm")}


@torch.no_grad()
def model_statistics(model: Tunable) -> dict[str, list[float]]:
    """What the parameters tell: `prompt_norms`, the mean length of the prompt tokens (per stage); of a staged model
    also the weights of the stages in the fusion, σ of NGA, and which stages are active."""
    parameters = dict(model.named_parameters())
    prompts = [parameters[name] for name, kind in model.parameter_kinds().items() if kind == "prompts"]
    result = {"prompt_norms": [prompt.float().norm(dim=-1).mean().item() for prompt in prompts]}
    if isinstance(model, MultiLayerLaFTer):
        result |= {"stage_weights": model.fusion_weights().tolist(), "sigma": model.nga.sigma.tolist(),
                   "active_stages": list(model.active_stages)}
    return result


@torch.no_grad()
def fit_alignment(model: MultiLayerLaFTer, loader: ViewLoader, ridge: float) -> Tensor:
    """The maps [stages, 1 + embed_dim, embed_dim] from each stage's features to the final ones, as `solve_alignment`
    gives them, from one pass of the plain encoder over a loader's weak views; no label is looked at."""
    visual, moments = model.clip.visual, Moments()
    for batch in tqdm(loader, desc="alignment", leave=False, **distributed.bar_settings()):
        if not batch:  # none of its images could be read
            continue
        for micro in micro_batches(batch):
            images = micro["weak"].to(visual.proj.device)
            final, stage_outputs = visual.forward_multi_stage_prompts(images)
            moments.update(visual.project(model.nga(stage_outputs)).float(), final.float())
    moments.sums = distributed.add_up(distributed.gather(dict(moments.sums)))
    return solve_alignment(moments, ridge).to(visual.proj.device)


def empty_alignment(model: MultiLayerLaFTer) -> Tensor:
    """Zeros in the form of the maps, for a model that is about to be loaded."""
    size = model.clip.embed_dim
    return torch.zeros(len(model.multi_prompts), 1 + size, size, device=model.clip.visual.proj.device)


def solve_alignment(moments: Moments, ridge: float) -> Tensor:
    """Ridge regression of y on x that shrinks towards leaving x as it is: y ≈ b + x (1 + D).

    D = (Cov(x) + λ)⁻¹ Cov(x, y − x), λ = `ridge` times the mean variance of x's dimensions, and b brings the means
    together. A stage whose features are the final ones keeps them. Row 0 is b, the others are 1 + D; fp32.
    """
    (mean_x, mean_y), (xx, xy, _) = moments.means(), moments.covariances()
    identity = torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
    strength = ridge * xx.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    matrix = identity + torch.linalg.solve(xx + strength * identity, xy - xx)
    shift = mean_y - torch.einsum("sd,sde->se", mean_x, matrix)
    return torch.cat([shift[:, None], matrix], dim=1).float()
