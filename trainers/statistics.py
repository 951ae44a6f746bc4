"""What the record tells of stages, prompts and gradients; the moments of the stages' features and their alignment."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.data.items import UNKNOWN
from utils.data.loader import micro_batches
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

    def share(self) -> None:
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


class GradientMonitor:
    """The norms of the gradients, by kind of parameter and by stage where there are stages, over an epoch's steps."""

    def __init__(self, model: Tunable, sums: dict[str, list[float]] | None = None):
        """`sums`, by kind and stage: the sum of the norms and the number of steps; what an interrupted epoch had."""
        self.kinds, self.stages = parameter_groups(model)
        self.parameters = {name: dict(model.named_parameters())[name] for name in self.kinds}
        self.sums = {} if sums is None else sums

    @torch.no_grad()
    def update(self) -> None:
        """When the optimiser's step has its gradients, before they are scaled down to a norm. One whose gradients are
        not finite, which fp16's scaler skips, does not count."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parts[f"{self.kinds[name]} {self.stages.get(name, 0)}"].append(parameter.grad.float().norm())
        for key, norms in parts.items():
            norm = torch.stack(norms).norm().item()
            if math.isfinite(norm):
                total, steps = self.sums.get(key, (0.0, 0))
                self.sums[key] = [total + norm, steps + 1]

    def result(self) -> dict[str, dict[str, list[float | None]]]:
        """`gradient_norms`: per kind a list over the stages, or of one value, of the mean norm over the steps; None
        where nothing trained."""
        result: dict[str, list[float | None]] = {}
        for kind in dict.fromkeys(self.kinds.values()):
            count = 1 + max(self.stages.get(name, 0) for name in self.kinds if self.kinds[name] == kind)
            sums = [self.sums.get(f"{kind} {stage}") for stage in range(count)]
            result[kind] = [total[0] / total[1] if total else None for total in sums]
        return {"gradient_norms": result}


def parameter_groups(model: Tunable) -> tuple[dict[str, str], dict[str, int]]:
    """(the kind, the stage) by the names of what the model trains; only a staged model's prompts and LayerNorms have
    a stage."""
    kinds = model.parameter_kinds()
    if not isinstance(model, MultiLayerLaFTer):
        return kinds, {}
    return kinds, {name: model.stage_of(name) for name, kind in kinds.items() if kind in ("prompts", "layernorm")}


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


@torch.no_grad()
def fit_alignment(model: MultiLayerLaFTer, loader: DataLoader, ridge: float) -> Tensor:
    """The maps [stages, 1 + embed_dim, embed_dim] from each stage's features to the final ones, as `solve_alignment`
    gives them, from one pass of the plain encoder over a loader's weak views; no label is looked at."""
    visual, moments = model.clip.visual, Moments()
    for batch in tqdm(loader, desc="alignment", leave=False, **distributed.bar_settings()):
        if "weak" not in batch:  # no image of the batch could be read
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
