"""Where prompts start: random, or from the tokens of a few unlabelled images."""

from __future__ import annotations

import torch
from torch import Tensor

from clip.model import CLIP
from utils.errors import InputError


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
