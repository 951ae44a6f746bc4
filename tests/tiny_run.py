"""A real run of LaFTer.py that takes about a second: a tiny random CLIP in a file, and noisy coloured images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip.model import CLIP
from tests.conftest import CLASSNAMES, randomise

TRAINERS = ["LaFTer", "MultiLayerLaFTer"]


def make_inputs(folder: Path, train: int = 7, test: int = 3) -> None:
    """Write `clip.pt`, `texts.npz` and `data/`: of each class `train` and `test` images of 32 px."""
    torch.manual_seed(0)
    model = CLIP(embed_dim=32, image_resolution=32, vision_layers=6, vision_width=64, vision_patch_size=8,
                 context_length=16, vocab_size=49_408, transformer_width=64, transformer_heads=1, transformer_layers=1)
    torch.save(randomise(model).state_dict(), folder / "clip.pt")
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSNAMES):
            place = folder / "data" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 30
                Image.fromarray(pixels).save(place / f"{index}.png")
    images = torch.eye(3)[:, :, None, None] * torch.ones(1, 1, 32, 32)  # blue, green, red
    features = model.eval().encode_image(images.flip(1)).detach()
    np.savez(folder / "texts.npz", features=(features - features.mean(0)).numpy(), classnames=CLASSNAMES)


def arguments(folder: Path, name: str, *more: str, trainer: str = "LaFTer") -> list[str]:
    """The command line of a run of four epochs, three steps each, of which MultiLayerLaFTer's have three phases."""
    return ["--dataset-config-file", "folder", "--root", str(folder / "data"), "--backbone", str(folder / "clip.pt"),
            "--output-dir", str(folder / "runs"), "--exp-name", name, "--trainer", trainer, "--device", "cpu",
            "--epochs", "4", "--batch_size", "7", "--workers", "0", "--lr", "0.005", "--scheduler", "coslr",
            "TEXT.EPOCHS", "50", "TEXT.MODE", "templates_only", *more, "DATASET.VAL_FRACTION", "0.15",
            "OPTIM.WARMUP_EPOCH", "1", "PROMPT_NUM", "4", "MULTI_LAYER_PROMPT.NUM", "2",
            "MULTI_LAYER_PROMPT.WARMUP_EPOCHS", "1",
            "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING", "True", "MULTI_LAYER_PROMPT.PROGRESSIVE_EPOCHS", "2",
            "PROMPT_INIT_IMAGES", "8", "PICTURES", "False", "TEXT.LR", "0.02",
            "DATALOADER.CACHE_DIR", str(folder / "cache" / name), "DATASET.TEXT_FEATURES", str(folder / "texts.npz")]


def run_folder(folder: Path, name: str, trainer: str = "LaFTer") -> Path:
    return folder / "runs" / "data" / trainer / "clip" / name


def record(run: Path) -> tuple[dict, list[dict], dict]:
    """final.json, metrics.jsonl without times, and the last checkpoint's tensors and settings."""
    final = json.loads((run / "final.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in [*rows, *(method for split in final["splits"].values() for method in split.values())]:
        row.pop("train_seconds", None)
    (last,) = (run / "checkpoints").glob("epoch*.pt")
    state = torch.load(last, weights_only=True)
    del state["config"], state["rows"], state["seconds"]  # paths and times; the rows themselves are compared above
    return {name: value for name, value in final.items() if name not in ("seconds", "environment")}, rows, state


def identical(a: object, b: object) -> bool:
    """Equal to the last bit."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same(a: object, b: object, where: str = "", equal: Callable[[object, object], bool] = identical) -> None:
    """Of the same types and equal, through dictionaries and lists; `equal` compares what they hold."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}", equal)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}/{index}", equal)
    else:
        assert equal(a, b), where
