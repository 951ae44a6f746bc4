"""LaFTer (Mirza et al., NeurIPS 2023, arXiv 2305.18287): shallow visual prompts and the text-trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from clip.transformer import LayerNorm
from utils.errors import InputError
from utils.utils import Tunable


class Prediction(NamedTuple):
    """Logits [batch, classes]; where a model has stages, the logits of each active one, and the features
    [stages, batch, embed_dim] of all, which the shared head classifies."""

    logits: Tensor
    stage_logits: Sequence[Tensor] = ()
    stage_features: Tensor | None = None


class LaFTer(Tunable):
    """The student: CLIP's image tower with prompt tokens after CLS, and a linear head ("adapter").

    Args:
        clip_model: its weights are used in place, not copied.
        classifier: the text classifier's weight [classes, embed_dim], or None for a fresh head.
        num_classes: rows of the head.
        cfg: PROMPT_NUM, PROMPT_INIT_PATCH.
        prompts: start of the prompts [num, width]; None draws them with `uniform_prompts`.
    """

    def __init__(self, clip_model: CLIP, classifier: Tensor | None, num_classes: int, cfg: CfgNode,
                 prompts: Tensor | None = None):
        super().__init__()
        self.clip = clip_model
        self.adapter = build_adapter(clip_model, classifier, num_classes)
        start = uniform_prompts(clip_model, cfg.PROMPT_NUM, cfg.PROMPT_INIT_PATCH) if prompts is None else prompts
        self.prompt_embeddings = nn.Parameter(start[None].clone())

    def forward(self, images: Tensor) -> Prediction:
        visual = self.clip.visual
        later_stages = [None] * (visual.transformer.num_stages - 1)
        features, _ = visual.forward_multi_stage_prompts(images, [self.prompt_embeddings, *later_stages])
        return Prediction(self.adapter(features.float()))

    def parameter_kinds(self) -> dict[str, str]:
        """Prompts, head and the image tower's LayerNorms train."""
        return {"prompt_embeddings": "prompts", "adapter.weight": "adapter", **layernorm_kinds(self)}


def build_adapter(clip_model: CLIP, classifier: Tensor | None, num_classes: int) -> nn.Linear:
    """Linear(embed_dim, classes, bias=False) in fp32, started from the text classifier where there is one."""
    adapter = nn.Linear(clip_model.embed_dim, num_classes, bias=False)
    if classifier is not None:
        adapter.weight.data.copy_(classifier)
    return adapter.to(clip_model.visual.proj.device)


def uniform_prompts(clip_model: CLIP, num: int, patch: int = 0) -> Tensor:
    """[num, width] from U(±√(6 / (3·patch² + width))), VPT's start; 0 stands for the backbone's own patch. LaFTer's
    code has 16 whatever the backbone is: a bound of .0625 for ViT-B/32, whose own patch gives .0395."""
    visual = clip_model.visual
    width = visual.class_embedding.numel()
    bound = (6 / (3 * (patch or visual.patch_size) ** 2 + width)) ** 0.5
    return torch.empty(num, width).uniform_(-bound, bound).to(visual.proj.device)


def layernorm_kinds(model: nn.Module) -> dict[str, str]:
    """The weights and biases of the LayerNorms of `model.clip.visual`, by full name."""
    return {f"{module_name}.{name}": "layernorm"
            for module_name, module in model.named_modules()
            if module_name.startswith("clip.visual.") and isinstance(module, LayerNorm)
            for name, _ in module.named_parameters()}


@torch.no_grad()
def token_prompts(clip_model: CLIP, images: Tensor, num: int, seed: int, rounds: int = 10) -> list[Tensor]:
    """For each stage, `num` prototypes [num, width] of the patch tokens that reach its start.

    The prototypes are the k-means centres of the patch tokens of `images` [n, 3, r, r], a few unlabelled images,
    in the plain encoder. Unlike random vectors they are tokens such as the layers have seen before, so that the
    student starts near the plain encoder.
    """
    visual = clip_model.visual
    generator = torch.Generator().manual_seed(seed)
    inputs = visual.transformer.stage_inputs(visual.embeddings_patch(images))
    return [_centres(x[:, 1:].flatten(0, 1).float(), num, generator, rounds) for x in inputs]


def _centres(tokens: Tensor, num: int, generator: torch.Generator, rounds: int) -> Tensor:
    if len(tokens) < num:
        raise InputError(f"{len(tokens)} patch tokens are too few for {num} prompts: raise PROMPT_INIT_IMAGES")
    centres = tokens[torch.randperm(len(tokens), generator=generator)[:num].to(tokens.device)]
    for _ in range(rounds):
        nearest = torch.cdist(tokens, centres).argmin(1)
        members = torch.nn.functional.one_hot(nearest, num).to(tokens.dtype)
        counts = members.sum(0)[:, None]
        centres = torch.where(counts > 0, members.t() @ tokens / counts.clamp(min=1), centres)
    return centres
