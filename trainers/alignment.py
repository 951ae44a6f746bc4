"""Closed-form, label-free alignment of the stages' features with CLIP's joint space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import distributed
from .lafter_multilayer import MultiLayerLaFTer
from .moments import Moments
from .speed import micro_batches


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
