"""The data sets: a table of readers, each from the configuration to `Splits`."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from .classification_datasets import DEFINITIONS, read_classification
from .data import UNKNOWN, Item, Splits, check_images, few_shot, load_splits, subsample_classes
from .demo_faces import VERSION, draw_dataset
from .emotion_datasets import (
    read_abstract,
    read_artphoto,
    read_emoset,
    read_emotion6,
    read_flickr_ldl,
    read_twitter_ldl,
)
from .errors import InputError
from .files import read_json
from .folder_dataset import read_folder
from .readers import carve_splits, existing, tell_classnames

log = logging.getLogger(__name__)


def load_dataset(cfg: CfgNode) -> Splits:
    """The data set that DATASET.NAME names, split as DATASET and SEED say.

    Raises InputError for an unknown name or bad annotation, FileNotFoundError for absent data.
    """
    if cfg.DATASET.NAME not in READERS:
        raise InputError(f"unknown data set {cfg.DATASET.NAME!r}; valid: {', '.join(sorted(READERS))}")
    for key, value in (("LABEL_SOURCE", "keyword"), ("NEUTRAL", "keep")):
        if cfg.DATASET.NAME != "emotion6" and cfg.DATASET[key] == value:
            raise InputError(f"DATASET.{key} {value} is for emotion6: {cfg.DATASET.NAME} has neither keywords nor "
                             "neutral")
    splits = READERS[cfg.DATASET.NAME](cfg)
    if cfg.DATASET.SPLIT_FILE:
        splits = load_splits(existing("split file", Path(cfg.DATASET.SPLIT_FILE)), splits.root)
    check_classnames(splits.classnames)
    if cfg.DATASET.TEST_IMAGES == "all":
        splits = replace(splits, test=list(dict.fromkeys([*splits.train, *splits.test])))
        log.info("%s is scored on all its images: those that train, without labels, are among them", splits.name)
    if cfg.DATASET.NUM_SHOTS > 0:
        splits = replace(splits, train=few_shot(splits.train, cfg.DATASET.NUM_SHOTS, cfg.SEED))
    splits = subsample_classes(splits, cfg.DATASET.SUBSAMPLE_CLASSES)
    if not splits.train:
        raise InputError(f"{splits.name} has no training images under {splits.root}")
    log.info("%s: %d classes, %d train, %d val, %d test images", splits.name, len(splits.classnames),
             len(splits.train), len(splits.val), len(splits.test))
    tell_classnames(splits.classnames)
    check_sizes(splits, cfg)
    if all(item.label == UNKNOWN for item in [*splits.train, *splits.val, *splits.test]):
        log.info("%s has no labels: the run tells agreement with the text classifier and confidence, no accuracy",
                 splits.name)
    return splits


def check_classnames(classnames: list[str]) -> None:
    """InputError that names a class which is there twice: texts and predictions go by the name."""
    twice = [name for name, count in Counter(classnames).items() if count > 1]
    if twice:
        raise InputError(f"duplicated class name {twice[0]!r}; every class needs a name of its own")


def check_sizes(splits: Splits, cfg: CfgNode) -> None:
    """InputError where the fraction that was asked for leaves the test split empty; a line in the log where it leaves
    validation so."""
    if cfg.DATASET.SPLIT_FILE or all(item.label == UNKNOWN for item in splits.train):
        return
    told = "the %s split of %s is empty: DATASET.%s_FRACTION %g of each class's images is none"
    if not splits.test and cfg.DATASET.TEST_FRACTION:
        raise InputError(told % ("test", splits.name, "TEST", cfg.DATASET.TEST_FRACTION)
                         + "; raise it, or give more images")
    if not splits.val and cfg.DATASET.VAL_FRACTION:
        log.info(told, "validation", splits.name, "VAL", cfg.DATASET.VAL_FRACTION)


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


READERS = {
    "abstract": read_abstract,
    "artphoto": read_artphoto,
    "demo": read_demo,
    "emoset": read_emoset,
    "emotion6": read_emotion6,
    "flickr_ldl": read_flickr_ldl,
    "folder": read_folder,
    "twitter_ldl": read_twitter_ldl,
    **dict.fromkeys(DEFINITIONS, read_classification),
}
