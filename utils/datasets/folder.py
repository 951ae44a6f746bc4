"""The data set `folder`: a user's own images, in class folders or without labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from ..data.items import UNKNOWN, Item, Splits
from ..data.listing import in_brackets, list_class, list_folders, list_images, tell_left_out
from ..errors import InputError
from .reading import carve_splits, configured_classnames, existing, normal_name

log = logging.getLogger(__name__)

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class Place(NamedTuple):
    """Where a split lies: its folder, and those folders in it that belong to the split."""

    folder: Path
    inside: list[Path]


def read_folder(cfg: CfgNode) -> Splits:
    """A user's own images under ROOT: train/<class>/**, val/<class>/** and test/<class>/**, or unlabelled train/**.

    Without train/, ROOT itself is read as train/ would be. Class names come from the folders or from
    DATASET.CLASSNAMES; `_` and spaces, and upper and lower case, are alike. Images outside the class folders have no
    label; where no folder is called like one of CLASSNAMES, none has. Without a test folder the test split is carved
    from train, or, where nothing is labelled, is the training images themselves; val is carved where it is not given.
    Raises FileNotFoundError, and InputError for what does not fit.
    """
    if not cfg.DATASET.ROOT:  # Path("") would be the working folder
        raise InputError("data set folder: say where the images are, --root FOLDER")
    root = existing("data set folder", Path(cfg.DATASET.ROOT))
    left_out: Counter[str] = Counter()
    places = find_places(root, cfg, left_out)
    given = configured_classnames(cfg)
    classes = given or [folder.name for folder in places["train"].inside]
    if not classes:
        raise InputError(f"{places['train'].folder} has no class folders: name the classes in DATASET.CLASSNAMES")
    strict = not given or any(find_label(folder.name, classes) is not None for folder in places["train"].inside)
    items = {}
    for split, place in places.items():
        items[split] = read_place(place, classes, strict, left_out)
        if not items[split]:
            raise InputError(f"{place.folder} holds no {SPLITS[split][-1]} images; fill or remove it"
                             + in_brackets(left_out))
    if len(classes) == 1:
        raise InputError(f"{root} has only the class {classes[0]!r}: with one alone there is nothing to learn")
    tell_left_out(left_out)
    name, train, val, test = root.resolve().name, items["train"], items.get("val"), items.get("test")
    if test is None and all(item.label == UNKNOWN for item in train):
        return Splits(name, root, classes, train, val or [], train)
    return carve_splits(cfg, name, root, classes, train, test, val)


def find_places(root: Path, cfg: CfgNode, left_out: Counter[str]) -> dict[str, Place]:
    """Where each split lies; `train` is always there, and is ROOT itself where it has no train/.

    Logs what is beside train/ and not read. Raises FileNotFoundError where there is nothing to train on, InputError
    for two folders of one split, or where ROOT is the folder of data sets.
    """
    own = own_folders(cfg, root)
    folders = [folder for folder in list_folders(root) if folder.resolve() not in own]
    places = {}
    for split, names in SPLITS.items():
        found = [folder for folder in folders if folder.name.lower() in names]
        if len(found) > 1:
            raise InputError(f"{found[0]} and {found[1].name} are both the {split} split: keep one")
        if found:
            places[split] = Place(found[0], list_folders(found[0]))
    others = [folder for folder in folders if folder not in [place.folder for place in places.values()]]
    if "train" in places:
        images = len(list_images(root, left_out))
        beside = [f"{folder.name}/" for folder in others] + ([f"{images} image(s)"] if images else [])
        if beside:
            log.warning("not read, as it lies beside %s/ in %s: %s", places["train"].folder.name, root,
                        ", ".join(beside))
        return places
    if not others and not list_images(root):
        existing("folder of training images", root / "train")
    for folder in others:
        if any(inner.name.lower() in SPLITS["train"] for inner in list_folders(folder)):
            raise InputError(f"{root} has no train/, but {folder.name} in it has: set --root {folder}")
    log.info("%s has no train/: what lies right in it is read as training images%s", root,
             f" (folders: {first_names(others)})" if others else "")
    return places | {"train": Place(root, others)}


def own_folders(cfg: CfgNode, root: Path) -> set[Path]:
    """The folders that runs write to: under ROOT, too, they are no data."""
    output = Path(cfg.OUTPUT_DIR)
    written = (output, output / root.resolve().name, output / "cache", cfg.TEXT.CACHE_DIR, cfg.DATALOADER.CACHE_DIR,
               cfg.LOG_DIR)
    return {Path(folder).resolve() for folder in written if folder}


def read_place(place: Place, classes: list[str], strict: bool, left_out: Counter[str]) -> list[Item]:
    """The images of a split: those without a label, then class by class.

    A folder that is called like no class is refused where it is `strict` or others are; else all are sub-folders of
    unlabelled images. Raises InputError for such a folder, and for a class without images.
    """
    labels = {folder: find_label(folder.name, classes) for folder in place.inside}
    strangers = [folder for folder, label in labels.items() if label is None]
    if strangers and (strict or len(strangers) < len(labels)):
        raise InputError(f"{strangers[0]} is none of the classes {', '.join(classes[:10])}: rename or move it")
    loose = list_images(place.folder, left_out)
    if strangers:
        log.warning("no folder in %s is called like a class (%s): they are read as sub-folders of images without label",
                    place.folder, first_names(strangers))
        loose += [path for folder in strangers for path in list_images(folder, left_out, below=True)]
        loose.sort(key=lambda path: path.relative_to(place.folder).as_posix())
        labels = {}
    elif loose and labels:
        log.warning("%d image(s) right in %s, outside its class folders, are read without label", len(loose),
                    place.folder)
    items = [Item(path, UNKNOWN, "") for path in loose]
    for folder, label in sorted(labels.items(), key=lambda pair: pair[1]):
        items += [Item(path, label, classes[label]) for path in list_class(folder, left_out, below=True)]
    return items


def first_names(folders: Sequence[Path], most: int = 10) -> str:
    """The names of the first folders."""
    return ", ".join(folder.name for folder in folders[:most]) + (", …" if folders[most:] else "")


def find_label(name: str, classes: list[str]) -> int | None:
    """The class that a folder is called like, by its very name before `normal_name`; None: it is none."""
    if name in classes:
        return classes.index(name)
    alike = [label for label, known in enumerate(classes) if normal_name(known) == normal_name(name)]
    return alike[0] if alike else None
