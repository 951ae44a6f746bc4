"""How cost grows with images, classes and descriptions: seconds and peak memory at each count."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from trainers.evaluation import plain_features
from trainers.text_classifier import train_text_classifier
from trainers.texts import TextFeatures, encode_texts
from utils.config import load_config
from utils.data.cache import ImageCache
from utils.data.items import Item
from utils.data.loader import build_loader
from utils.data.views import build_views

from .parts import Row, consume, description_texts, draw_photos, make_clip, peak_memory

IMAGES, CLASSES, DESCRIPTIONS = (1_000, 10_000, 100_000), (10, 100, 1_000), (100, 10_000)


def measure_scaling(folder: Path, device: torch.device, images: Sequence[int] = IMAGES,
                    classes: Sequence[int] = CLASSES, descriptions: Sequence[int] = DESCRIPTIONS,
                    steps: int = 100) -> list[Row]:
    """Rows on a tiny CLIP, so that what is not its own work shows."""
    cfg = load_config(flags={"DATASET.NAME": "folder", "TEXT.EPOCHS": steps})
    clip_model = make_clip("tiny", "fp32", device, text=True)
    weak, strong = build_views(32, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    rows = []
    for count in images:
        items = [Item(path, 0, "") for path in _small_images(folder / str(count), count)]
        cache = ImageCache(folder / f"cache{count}", 10 ** 11)

        def loader(items=items, cache=cache):
            return build_loader(items, {"weak": weak, "strong": strong}, 50, 0, cache=cache, device=device)

        rows += [_measured("images: filling the cache", count, loader, device),
                 _measured("images: an epoch's views", count, lambda loader=loader: consume(loader()), device),
                 _measured("images: plain features", count, lambda loader=loader: plain_features(clip_model, loader()),
                           device)]
    for count in classes:
        texts = _random_texts(5 * count, count, clip_model.embed_dim)

        def train(texts=texts, count=count):
            return train_text_classifier(texts, count, cfg, device)

        rows.append(_measured(f"classes: text classifier, 5 texts each, {steps} steps", count, train, device))
    for count in descriptions:
        texts, features = description_texts(count), _random_texts(count, 10, clip_model.embed_dim)

        def encode(texts=texts):
            return encode_texts(clip_model, texts)

        def train(features=features):
            return train_text_classifier(features, 10, cfg, device)

        rows += [_measured("descriptions: encoding", count, encode, device),
                 _measured(f"descriptions: text classifier, 10 classes, {steps} steps", count, train, device)]
    return rows


def _measured(what: str, count: int, function: Callable[[], object], device: torch.device) -> Row:
    start = time.perf_counter()
    memory = peak_memory(function, device)
    if memory is None:
        function()
    return {"what": what, "count": count, "seconds": time.perf_counter() - start, "peak_gb": memory}


def _small_images(folder: Path, count: int) -> list[Path]:
    drawn = draw_photos(folder / "drawn", 20, (64, 48))
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        shutil.copyfile(drawn[number % len(drawn)], path)
    return paths


def _random_texts(count: int, classes: int, width: int) -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    return TextFeatures(features, torch.arange(count) % classes, 100.0)
