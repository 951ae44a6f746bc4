"""The loaders of a run, as the configuration asks for them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from yacs.config import CfgNode

from utils.data import Splits, ViewLoader, build_loader
from utils.image_cache import ImageCache
from utils.images import choose_decoding
from utils.shared_memory import affordable_workers, batch_bytes
from utils.transforms import build_views

from . import distributed


def build_loaders(cfg: CfgNode, splits: Splits, size: int, device: torch.device | str = "cpu") -> dict[str, ViewLoader]:
    """`train` (shuffled, the student's and the teacher's views), `plain` (the same images, weak, in order), and
    `val` and `test` where they hold images."""
    weak, strong = build_views(size, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD,
                               cfg.INPUT.INTERPOLATION, crop_interpolation=cfg.INPUT.CROP_INTERPOLATION,
                               source_scale=cfg.INPUT.SOURCE_SCALE, blur_prob=cfg.INPUT.BLUR_PROB)
    if cfg.TRAIN.SUPERVISION == "pseudo":
        views = {"strong": strong} if cfg.PSEUDO_LABEL.TEACHER == "frozen" else {"weak": weak, "strong": strong}
    elif cfg.TRAIN.AUGMENT:
        views = {"strong": strong, "strong2": strong} if cfg.TRAIN.TWO_CROPS else {"strong": strong}
    else:
        views = {"weak": weak}
    cache = None
    if cfg.DATALOADER.CACHE_GB:
        folder = Path(cfg.DATALOADER.CACHE_DIR) if cfg.DATALOADER.CACHE_DIR else Path(cfg.OUTPUT_DIR) / "cache"
        cache = ImageCache(folder, int(cfg.DATALOADER.CACHE_GB * 1e9))
    train_size, batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE
    needed = max(batch_bytes(views.values(), train_size), batch_bytes([weak], batch_size))
    build = functools.partial(build_loader, workers=affordable_workers(cfg.DATALOADER.NUM_WORKERS, needed),
                              shard=distributed.shard(), on_error=cfg.DATALOADER.ON_ERROR, cache=cache, device=device,
                              decoding=choose_decoding(cfg, own=cfg.DATASET.NAME == "folder"),
                              timeout=cfg.DATALOADER.TIMEOUT)
    loaders = {"train": build(splits.train, views, train_size, seed=cfg.SEED, shuffle=True),
               "plain": build(splits.train, {"weak": weak}, batch_size)}
    for split in ("val", "test"):
        items = getattr(splits, split)
        if items:
            loaders[split] = build(items, {"weak": weak}, batch_size)
    return loaders
