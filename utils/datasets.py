"""The data sets: a table of readers, each from the configuration to `Splits`."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from yacs.config import CfgNode

from .data import UNKNOWN, Item, Splits, carve, check_images, few_shot, load_splits
from .demo_faces import draw_dataset
from .errors import InputError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
EMOTION6_VOTES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")  # the columns of its file


def load_dataset(cfg: CfgNode) -> Splits:
    """The data set that DATASET.NAME names, split as DATASET and SEED say.

    Raises InputError for an unknown name or bad annotation, FileNotFoundError for absent data.
    """
    if cfg.DATASET.NAME not in READERS:
        raise InputError(f"unknown data set {cfg.DATASET.NAME!r}; valid: {', '.join(sorted(READERS))}")
    splits = READERS[cfg.DATASET.NAME](cfg)
    if cfg.DATASET.SPLIT_FILE:
        splits = load_splits(_existing(Path(cfg.DATASET.SPLIT_FILE), "split file"), splits.root)
    train = splits.train
    if cfg.DATASET.NUM_SHOTS > 0:
        train = few_shot(train, cfg.DATASET.NUM_SHOTS, cfg.SEED)
    if not train:
        raise InputError(f"{splits.name} has no training images under {splits.root}")
    log.info("%s: %d classes, %d train, %d val, %d test images", splits.name, len(splits.classnames), len(train),
             len(splits.val), len(splits.test))
    return Splits(splits.name, splits.root, splits.classnames, train, splits.val, splits.test)


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{what} {path} does not exist; set --root to the folder that holds the data")
    return path


def _split(cfg: CfgNode, name: str, root: Path, classnames: list[str], train: list[Item],
           test: list[Item] | None) -> Splits:
    """Carve what is not given: the test split from all, validation from train."""
    if test is None:
        train, test = carve(train, cfg.DATASET.TEST_FRACTION, cfg.SEED)
    train, val = carve(train, cfg.DATASET.VAL_FRACTION, cfg.SEED)
    return Splits(name, root, classnames, train, val, test)


def read_emotion6(cfg: CfgNode) -> Splits:
    """Emotion6 (Peng et al., CVPR 2015) from ROOT/Emotion6: images/<keyword>/N.jpg and ground_truth.txt.

    The votes give each image's distribution and, by default, its label; see spec keys LABEL_SOURCE and NEUTRAL.
    """
    root = _existing(Path(cfg.DATASET.ROOT) / "Emotion6", "data set folder")
    classes = list(EMOTION6_VOTES if cfg.DATASET.NEUTRAL == "keep" else EMOTION6_VOTES[:-1])
    table = _existing(root / "ground_truth.txt", "annotation")
    items, neutral, moved = [], 0, 0
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines()[1:], start=2):
        name, votes = _emotion6_row(line, f"{table}, line {number}")
        kept = votes[: len(classes)]
        if not sum(kept):
            neutral += 1  # every vote went to neutral, which is dropped
            continue
        keyword = name.split("/")[0]
        if keyword not in classes:
            raise InputError(f"{table}, line {number}: folder {keyword!r} is none of {', '.join(classes)}")
        label = votes_label(kept, classes.index(keyword))
        moved += label != classes.index(keyword)
        if cfg.DATASET.LABEL_SOURCE == "keyword":
            label = classes.index(keyword)
        distribution = tuple(vote / sum(kept) for vote in kept)
        items.append(Item(root / "images" / name, label, classes[label], distribution))
    check_images(items)
    log.info("Emotion6: %d images, %d left out (all votes neutral), the votes' argmax differs from the keyword for %d",
             len(items), neutral, moved)
    return _split(cfg, "emotion6", root, classes, items, None)


def _emotion6_row(line: str, where: str) -> tuple[str, list[float]]:
    fields = line.split("\t")
    if len(fields) != 3 + len(EMOTION6_VOTES):
        raise InputError(f"{where}: {len(fields)} columns where {3 + len(EMOTION6_VOTES)} belong")
    try:
        votes = [float(field) for field in fields[3:]]
    except ValueError as error:
        raise InputError(f"{where}: a probability is no number ({error})") from error
    if not all(math.isfinite(vote) and vote >= 0 for vote in votes) or not sum(votes):
        raise InputError(f"{where}: votes must be finite, not negative, and not all 0: {fields[3:]}")
    return fields[0], votes


def votes_label(votes: list[float], keyword: int) -> int:
    """The index of the most votes; a tie goes to `keyword` where it is among the tied, else to the first."""
    best = max(votes)
    return keyword if votes[keyword] == best else votes.index(best)


def read_demo(cfg: CfgNode) -> Splits:
    """The project's own drawn faces in ROOT/demo, drawn on first use; every image has a label and a distribution."""
    root = Path(cfg.DATASET.ROOT) / "demo"
    if not (root / "annotations.json").is_file():
        log.info("drawing the demo's faces into %s", root)
        draw_dataset(root)
    data = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    classes = data["emotions"]
    items = {"train": [], "test": []}
    for row in data["items"]:
        label = row["label"] if isinstance(row["label"], int) else classes.index(row["label"])
        items[row["split"]].append(Item(root / row["file"], label, classes[label], tuple(row["distribution"])))
    check_images(items["train"] + items["test"])
    return _split(cfg, "demo", root, classes, items["train"], items["test"])


def read_folder(cfg: CfgNode) -> Splits:
    """A user's own images under ROOT: train/<class>/*, test/<class>/*, or unlabelled images in train/ itself.

    Class names come from the folders or from DATASET.CLASSNAMES, a list or one text file. Images without a class
    folder have no label. Without a test folder the test split is carved from train, or, where nothing is
    labelled, is the training images themselves.
    """
    root = _existing(Path(cfg.DATASET.ROOT), "data set folder")
    train_root = _existing(root / "train", "folder of training images")
    classes = configured_classnames(cfg) or sorted(p.name for p in train_root.iterdir() if p.is_dir())
    if not classes:
        raise InputError(f"{train_root} has no class folders: name the classes in DATASET.CLASSNAMES")
    if len(set(classes)) != len(classes):
        raise InputError(f"duplicated class name {next(c for c in classes if classes.count(c) > 1)!r}")
    train = _folder_items(train_root, classes)
    test = _folder_items(root / "test", classes) if (root / "test").is_dir() else None
    labelled = any(item.label != UNKNOWN for item in train)
    if test is None and not labelled:
        return Splits(root.resolve().name, root, classes, train, [], train)
    return _split(cfg, root.resolve().name, root, classes, train, test)


def configured_classnames(cfg: CfgNode) -> list[str]:
    """DATASET.CLASSNAMES; where it is one text file, the lines of that file."""
    names = [str(name) for name in cfg.DATASET.CLASSNAMES]
    if len(names) == 1 and names[0].endswith(".txt"):
        lines = _existing(Path(names[0]), "file of class names").read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    return names


def _folder_items(folder: Path, classes: list[str]) -> list[Item]:
    strangers = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes]
    if strangers:
        raise InputError(f"{folder / strangers[0]} is none of the classes {', '.join(classes[:10])}")
    items = [Item(path, UNKNOWN, "") for path in _images(folder)]
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            found = _images(folder / name)
            if not found:
                raise InputError(f"class folder {folder / name} holds no image; fill or remove it")
            items += [Item(path, label, name) for path in found]
    return items


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


READERS = {"emotion6": read_emotion6, "demo": read_demo, "folder": read_folder}
