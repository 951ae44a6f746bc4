"""The data sets: a table of readers, each from the configuration to `Splits`."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from ..data.items import UNKNOWN, Splits, few_shot, load_splits, subsample_classes
from ..errors import InputError
from .classification import DEFINITIONS, read_classification
from .demo import read_demo
from .emotions import SOURCES as EMOTION_SOURCES
from .folder import SPLITS, read_folder
from .reading import Source, existing, tell_classnames

log = logging.getLogger(__name__)


def load_dataset(cfg: CfgNode) -> Splits:
    """The data set that DATASET.NAME names, split as DATASET and SEED say.

    Raises InputError for an unknown name or bad annotation, FileNotFoundError for absent data.
    """
    if cfg.DATASET.NAME not in READERS:
        raise InputError(f"unknown data set {cfg.DATASET.NAME!r}; valid: {', '.join(sorted(READERS))}")
    for key, value in (("LABEL_SOURCE", "keyword"), ("NEUTRAL", "keep")):
        if cfg.DATASET.NAME != "emotion6" and cfg.DATASET[key] == value:
            raise InputError(f"DATASET.{key} {value} is for emotion6: {cfg.DATASET.NAME} has no keywords and no "
                             "neutral votes")
    splits = READERS[cfg.DATASET.NAME](cfg)
    if cfg.DATASET.SPLIT_FILE:
        path = existing("split file", Path(cfg.DATASET.SPLIT_FILE), mend="correct DATASET.SPLIT_FILE")
        splits = load_splits(path, splits.root)
    check_classnames(splits.classnames)
    if cfg.DATASET.TEST_IMAGES == "all":
        splits = replace(splits, test=list(dict.fromkeys([*splits.train, *splits.test])))
        log.info("%s is scored on all its images: those that train, without labels, are among them", splits.name)
    splits = take_shots(splits, cfg.DATASET.NUM_SHOTS, cfg.SEED)
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


def take_shots(splits: Splits, shots: list[int], seed: int) -> Splits:
    """The splits with so many training images of each class, as DATASET.NUM_SHOTS says: one number, or one for each
    class. Raises InputError for another length, and for lists where the training images have no labels."""
    if max(shots, default=-1) < 1:
        return splits
    if len(shots) > 1 and len(shots) != len(splits.classnames):
        raise InputError(f"DATASET.NUM_SHOTS has {len(shots)} numbers and {splits.name} {len(splits.classnames)} "
                         "classes: give one number, or one for each class in their order")
    if len(shots) > 1 and any(item.label == UNKNOWN for item in splits.train):
        raise InputError(f"DATASET.NUM_SHOTS {shots} asks for images by class, and {splits.name} has training images "
                         "without a label; give one number")
    return replace(splits, train=few_shot(splits.train, shots, seed))


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


SOURCES = {
    "demo": Source(read_demo, ("demo",), "drawn by the project on first use"),
    "folder": Source(read_folder, SPLITS["train"], "your own images: ROOT/train/<class>/**, or unlabelled in "
                                                   "ROOT/train or right in ROOT"),
    **EMOTION_SOURCES,
}
READERS = {**{name: source.read for name, source in SOURCES.items()}, **dict.fromkeys(DEFINITIONS, read_classification)}
