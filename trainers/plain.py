"""The plain encoder, without prompts: its features and what a linear classifier makes of them."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from clip.model import CLIP

from .speed import micro_batches


@torch.no_grad()
def plain_features(clip_model: CLIP, loader: DataLoader, what: str = "features") -> dict[str, Tensor]:
    """`features` [n, embed_dim] fp32 of unit length, `labels` [n] and, where annotated, `distributions`
    [n, classes], on the CPU, of a loader's weak views."""
    device = clip_model.visual.proj.device
    columns = defaultdict(list)
    for batch in tqdm(loader, desc=what, leave=False):
        for micro in micro_batches(batch):
            images = micro["weak"].to(device, non_blocking=True)
            columns["features"].append(F.normalize(clip_model.encode_image(images).float(), dim=-1).cpu())
        columns["labels"].append(batch["label"])
        if "distribution" in batch:
            columns["distributions"].append(batch["distribution"])
    return {name: torch.cat(column) for name, column in columns.items()}
