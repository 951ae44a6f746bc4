"""The data set `demo`: the project's own drawn faces."""

from __future__ import annotations

import logging
from pathlib import Path

from yacs.config import CfgNode

from ..data.items import Item, Splits, check_images
from ..demo.faces import VERSION, draw_dataset
from ..errors import InputError
from ..files import read_json
from .reading import carve_splits

log = logging.getLogger(__name__)


def read_demo(cfg: CfgNode) -> Splits:
    """The project's own drawn faces in ROOT/demo, drawn on first use; every image has a label and a distribution."""
    root = Path(cfg.DATASET.ROOT) / "demo"
    if not (root / "annotations.json").is_file():
        log.info("drawing the demo's faces into %s", root)
        try:
            draw_dataset(root)
        except InputError:
            if not (root / "annotations.json").is_file():  # else another process was faster
                raise
    data = read_json(root / "annotations.json")
    if data.get("version") != VERSION:
        raise InputError(f"{root} was drawn by another version of the demo; delete it, and it is drawn anew")
    classes = data["emotions"]
    items = {"train": [], "test": []}
    for row in data["items"]:
        label = row["label"] if isinstance(row["label"], int) else classes.index(row["label"])
        items[row["split"]].append(Item(root / row["file"], label, classes[label], tuple(row["distribution"])))
    check_images(items["train"] + items["test"])
    return carve_splits(cfg, "demo", root, classes, items["train"], items["test"])
