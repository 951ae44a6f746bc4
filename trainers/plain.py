"""The plain encoder, without prompts: its features and what a linear classifier makes of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from clip.model import CLIP

from .collect import collect


def plain_features(clip_model: CLIP, loader: DataLoader, what: str = "features") -> dict[str, object]:
    """`features` [n, embed_dim] fp32 of unit length of a loader's weak views, and what `collect` adds to them."""
    device = clip_model.visual.proj.device

    def features(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = batch["weak"].to(device)
        return {"features": F.normalize(clip_model.encode_image(images).float(), dim=-1)}

    return collect(loader, features, what)
