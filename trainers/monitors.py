"""What a run's record tells of training beside losses and accuracies; nothing here changes a number of the training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from utils.data import UNKNOWN
from utils.utils import Tunable

from . import distributed
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
