"""MultiLayerLaFTer: every stage of the image tower has prompts of its own and is read by the one shared head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from utils.losses import MultiStageConsistencyLoss as MultiStageConsistencyLoss  # under this name too
from utils.utils import Tunable

from .LaFTer import Prediction, build_adapter, layernorm_kinds, uniform_prompts


class NeighborhoodGaussianAggregation(nn.Module):
    """Fuses the features of a stage's layers (NGA; Cascade-CLIP, Li et al., ICML 2024).

    In a stage of d layers, layer l = 1 … d weighs w_l ∝ exp(−(d−l)² / (2σ²)), normalised to sum 1. Each stage has
    its σ, learnt as log σ, so that it stays positive. `kind` `uniform` or `last` replaces the Gaussian by equal
    weights or by the last layer alone; σ then has no effect.
    """

    def __init__(self, depths: Sequence[int], sigma: float = 1.0, kind: str = "gaussian"):
        super().__init__()
        self.depths, self.kind = list(depths), kind
        self.log_sigma = nn.Parameter(torch.full((len(self.depths),), math.log(sigma)))
        layers, ends = torch.arange(sum(self.depths)), torch.tensor(self.depths).cumsum(0)[:, None]
        distance = ends - 1 - layers  # [stages, layers], to the stage's last layer
        scores = {"gaussian": -distance ** 2 / 2, "uniform": torch.zeros(distance.shape),
                  "last": torch.where(distance == 0, 0.0, -torch.inf)}[kind]
        self.register_buffer("scores", scores, persistent=False)
        self.register_buffer("elsewhere", (distance < 0) | (distance >= torch.tensor(self.depths)[:, None]),
                             persistent=False)

    @property
    def sigma(self) -> Tensor:
        return self.log_sigma.exp()

    def weights(self) -> Tensor:
        """The weight [stages, layers] of each of the tower's layers in each stage: 0 outside it, 1 in all."""
        scores = self.scores / self.sigma[:, None] ** 2 if self.kind == "gaussian" else self.scores
        return scores.masked_fill(self.elsewhere, -torch.inf).softmax(-1)

    def forward(self, stage_outputs: Sequence[Sequence[Tensor]]) -> Tensor:
        """Features [batch, width] per layer of each stage → [stages, batch, width]."""
        layers = torch.stack([output for outputs in stage_outputs for output in outputs])
        return torch.einsum("sl,lbw->sbw", self.weights().to(layers.dtype), layers)


class MultiLayerLaFTer(Tunable):
    """The student with staged prompts: per stage, its layers' CLS features are fused (NGA), sent through CLIP's own
    ln_post and projection and classified by the shared head; the stages' logits are fused by learnt weights.

    Args:
        clip_model: its weights are used in place, not copied; its stages are the model's.
        classifier: the text classifier's weight [classes, embed_dim], or None for a fresh head.
        num_classes: rows of the head.
        cfg: MULTI_LAYER_PROMPT.*, PROMPT_INIT_PATCH.
        prompts: start of each stage's prompts [num, width]; None draws them as LaFTer does.
    """

    def __init__(self, clip_model: CLIP, classifier: Tensor | None, num_classes: int, cfg: CfgNode,
                 prompts: Sequence[Tensor] | None = None):
        super().__init__()
        self.settings = cfg.MULTI_LAYER_PROMPT
        self.clip = clip_model
        self.adapter = build_adapter(clip_model, classifier, num_classes)
        stages = clip_model.visual.transformer.stage_boundaries
        start = prompts or [uniform_prompts(clip_model, self.settings.NUM, cfg.PROMPT_INIT_PATCH) for _ in stages]
        self.multi_prompts = nn.ParameterList(nn.Parameter(prompt[None].clone()) for prompt in start)
        self.nga = NeighborhoodGaussianAggregation([len(stage) for stage in stages], self.settings.SIGMA,
                                                   self.settings.NGA).to(self.adapter.weight.device)
        self.stage_fusion = nn.Parameter(fusion_start(len(stages), self.settings.FUSION_START)
                                         .to(self.adapter.weight.device))
        self.active_stages = tuple(range(len(stages)))
        self.register_buffer("alignment", None)  # see `statistics.fit_alignment`

    def forward(self, images: Tensor) -> Prediction:
        """Images → fused logits and the logits of the active stages, from shallow to deep."""
        visual = self.clip.visual
        prompts = [prompt if stage in self.active_stages else None for stage, prompt in enumerate(self.multi_prompts)]
        _, stage_outputs = visual.transformer(visual.embeddings_patch(images), prompts, self.settings.MODE,
                                              cls_only=True)
        features = self.align(visual.project(self.nga(stage_outputs)).float())
        stage_logits = self.adapter(features)  # [stages, batch, classes]
        logits = self.fuse(stage_logits)
        return Prediction(logits, list(stage_logits[len(stage_logits) - len(self.active_stages):]), features)

    def align(self, features: Tensor) -> Tensor:
        """Features [stages, batch, embed_dim] through each stage's map to the final features, where one is set."""
        if self.alignment is None:
            return features
        return self.alignment[:, :1] + features @ self.alignment[:, 1:]

    def fuse(self, stage_logits: Tensor) -> Tensor:
        """The stages' logits [stages, batch, classes] → [batch, classes], weighted by `fusion_weights`; with FUSION
        `confidence` for each image also by each stage's highest probability, through which no gradient flows."""
        if self.settings.FUSION == "learned":
            return torch.einsum("s,sbc->bc", self.fusion_weights(), stage_logits)
        weights = self.fusion_weights()[:, None] * stage_logits.detach().softmax(-1).amax(-1)  # [stages, batch]
        return torch.einsum("sb,sbc->bc", weights / weights.sum(0), stage_logits)

    def fusion_weights(self) -> Tensor:
        """The weight [stages] of each stage's logits; they sum to 1."""
        return self.stage_fusion.softmax(0)

    def parameter_kinds(self) -> dict[str, str]:
        """All that trains once every stage has joined; `start_epoch` narrows it in the earlier phases."""
        prompts = {f"multi_prompts.{stage}": "prompts" for stage in range(len(self.multi_prompts))}
        kinds = {**prompts, "adapter.weight": "adapter", **layernorm_kinds(self)}
        if self.nga.kind == "gaussian" and max(self.nga.depths) > 1:  # else σ has no effect
            kinds["nga.log_sigma"] = "fusion"
        if len(self.multi_prompts) > 1:  # one weight is always 1
            kinds["stage_fusion"] = "fusion"
        return kinds

    def start_epoch(self, epoch: int) -> None:
        """Set which stages take part in this 0-based epoch, and let train exactly what belongs to them."""
        self.active_stages = stages_of_epoch(epoch, len(self.multi_prompts), self.settings)
        declared = self.phase_parameters()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in declared)

    def phase_parameters(self) -> set[str]:
        """Names of what trains with the stages that are active now: their prompts and LayerNorms and the head;
        NGA and fusion only once all stages are there."""
        complete = len(self.active_stages) == len(self.multi_prompts)
        return {name for name, kind in self.parameter_kinds().items()
                if kind == "adapter" or (complete if kind == "fusion" else self.stage_of(name) in self.active_stages)}

    def stage_of(self, name: str) -> int:
        """The stage of a prompt or LayerNorm, by its full name; ln_pre is the first one's, ln_post the last one's."""
        parts = name.split(".")
        if parts[0] == "multi_prompts":
            return int(parts[1])
        if "resblocks" not in parts:
            return 0 if "ln_pre" in parts else len(self.multi_prompts) - 1
        layer = int(parts[parts.index("resblocks") + 1])
        stages = self.clip.visual.transformer.stage_boundaries
        return next(stage for stage, layers in enumerate(stages) if layer in layers)


def fusion_start(stages: int, last: float) -> Tensor:
    """Logits [stages] whose softmax gives the last stage the weight `last` and the others equal shares of the rest."""
    if stages == 1:
        return torch.zeros(1)
    return torch.tensor([0.0] * (stages - 1) + [math.log(last * (stages - 1) / (1 - last))])


def stages_of_epoch(epoch: int, stages: int, settings: CfgNode) -> tuple[int, ...]:
    """The stages that take part in a 0-based epoch: the deepest alone for WARMUP_EPOCHS, then the others join from
    deep to shallow, spread over PROGRESSIVE_EPOCHS, then all."""
    joined = stages
    if settings.PROGRESSIVE_TRAINING:
        past = epoch - settings.WARMUP_EPOCHS
        if past < 0:
            joined = 1
        elif past < settings.PROGRESSIVE_EPOCHS:
            joined = 1 + math.ceil((stages - 1) * (past + 1) / settings.PROGRESSIVE_EPOCHS)
    return tuple(range(stages - joined, stages))
