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
from .readers import carve_splits, configured_classnames, existing, list_images, tell_classnames

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
    if cfg.DATASET.NUM_SHOTS > 0:
        splits = replace(splits, train=few_shot(splits.train, cfg.DATASET.NUM_SHOTS, cfg.SEED))
    splits = subsample_classes(splits, cfg.DATASET.SUBSAMPLE_CLASSES)
    if not splits.train:
        raise InputError(f"{splits.name} has no training images under {splits.root}")
    log.info("%s: %d classes, %d train, %d val, %d test images", splits.name, len(splits.classnames),
             len(splits.train), len(splits.val), len(splits.test))
    tell_classnames(splits.classnames)
    if all(item.label == UNKNOWN for item in [*splits.train, *splits.val, *splits.test]):
        log.info("%s has no labels: the run tells agreement with the text classifier and confidence, no accuracy",
                 splits.name)
    return splits


def check_classnames(classnames: list[str]) -> None:
    """InputError that names a class which is there twice: texts and predictions go by the name."""
    twice = [name for name, count in Counter(classnames).items() if count > 1]
    if twice:
        raise InputError(f"duplicated class name {twice[0]!r}; every class needs a name of its own")


def read_demo(cfg: CfgNode) -> Splits:
    """The project's own drawn faces in ROOT/demo, drawn on first use; every image has a label and a distribution."""
    root = Path(cfg.DATASET.ROOT) / "demo"
    if not (root / "annotations.json").is_file():
        log.info("drawing the demo's faces into %s", root)
        draw_dataset(root)
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


def read_folder(cfg: CfgNode) -> Splits:
    """A user's own images under ROOT: train/<class>/*, test/<class>/*, or unlabelled images in train/ itself.

    Class names come from the folders or from DATASET.CLASSNAMES, a list or one text file. Images without a class
    folder have no label. Without a test folder the test split is carved from train, or, where nothing is
    labelled, is the training images themselves.
    """
    root = existing("data set folder", Path(cfg.DATASET.ROOT))
    train_root = existing("folder of training images", root / "train")
    classes = configured_classnames(cfg) or sorted(p.name for p in train_root.iterdir() if p.is_dir())
    if not classes:
        raise InputError(f"{train_root} has no class folders: name the classes in DATASET.CLASSNAMES")
    train = _folder_items(train_root, classes)
    test = _folder_items(root / "test", classes) if (root / "test").is_dir() else None
    labelled = any(item.label != UNKNOWN for item in train)
    if test is None and not labelled:
        return Splits(root.resolve().name, root, classes, train, [], train)
    return carve_splits(cfg, root.resolve().name, root, classes, train, test)


def _folder_items(folder: Path, classes: list[str]) -> list[Item]:
    strangers = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes]
    if strangers:
        raise InputError(f"{folder / strangers[0]} is none of the classes {', '.join(classes[:10])}")
    items = [Item(path, UNKNOWN, "") for path in list_images(folder)]
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            found = list_images(folder / name)
            if not found:
                raise InputError(f"class folder {folder / name} holds no image; fill or remove it")
            items += [Item(path, label, name) for path in found]
    return items


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
