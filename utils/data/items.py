"""Samples and splits. What a sample carries, its distribution above all, travels with it through any order."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import read_text

UNKNOWN = -1  # the label of an image without one


@dataclass(frozen=True)
class Item:
    """One image. `distribution` is its annotated emotion distribution, one probability per class, if it has one."""

    path: Path
    label: int
    classname: str
    distribution: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Splits:
    """A data set: `root` is the folder that its image paths are told relative to, `origin` the published file that
    divides it, "" where none does."""

    name: str
    root: Path
    classnames: list[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    origin: str = ""

    def to_json(self) -> str:
        """The splits as JSON: class names and [relative path, label, class name, distribution] rows."""
        rows = {split: [[item.path.relative_to(self.root).as_posix(), item.label, item.classname, item.distribution]
                        for item in getattr(self, split)] for split in ("train", "val", "test")}
        return json.dumps({"name": self.name, "classnames": self.classnames, **rows})

    def save(self, path: Path) -> None:
        """Write `to_json` to a file, for `load_splits`."""
        path.write_text(self.to_json(), encoding="utf-8")


def load_splits(path: Path, root: Path) -> Splits:
    """Read what `Splits.save` wrote. Raises InputError for a damaged file or an image that is not under `root`."""
    try:
        data = json.loads(read_text(path))
        splits = {split: [Item(root / row[0], int(row[1]), row[2], tuple(row[3]) if row[3] else None)
                          for row in data[split]] for split in ("train", "val", "test")}
        result = Splits(data["name"], root, data["classnames"], **splits)
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no split file of this project: {error!r}") from error
    for item in (item for items in splits.values() for item in items):
        known = 0 <= item.label < len(result.classnames)
        shares = item.distribution or result.classnames
        if not (known or item.label == UNKNOWN) or len(shares) != len(result.classnames):
            raise InputError(f"{path}: {item.path} does not fit the classes {', '.join(result.classnames[:10])}")
    check_images([item for split in splits.values() for item in split])
    return result


def check_images(items: Sequence[Item]) -> None:
    """InputError that names the first image file that is not there, and counts the others."""
    missing = [item.path for item in items if not item.path.is_file()]
    if missing:
        raise InputError(f"image {missing[0]} is missing" + (f" ({len(missing)} in all)" if len(missing) > 1 else "")
                         + "; restore it or correct the annotation")


def carve(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(rest, part): a seeded draw of `fraction` of each class, both in the original order."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for members in group_by_label(items):
        chosen.update(rng.permutation(members)[: round(fraction * len(members))].tolist())
    return ([item for i, item in enumerate(items) if i not in chosen],
            [item for i, item in enumerate(items) if i in chosen])


def few_shot(items: Sequence[Item], shots: Sequence[int], seed: int) -> list[Item]:
    """So many items of each class, drawn with the seed: `shots` has one number, or one for each label. A class with
    fewer gives all that it has, as does one whose number is below 1."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for members in group_by_label(items):
        number = shots[0] if len(shots) == 1 else shots[items[members[0]].label]
        chosen.update(rng.permutation(members)[: number if number > 0 else None].tolist())
    return [item for i, item in enumerate(items) if i in chosen]


def group_by_label(items: Sequence[Item]) -> list[list[int]]:
    """The items' indices by label, in the labels' order; found in one pass."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.label].append(index)
    return [groups[label] for label in sorted(groups)]


def subsample_classes(splits: Splits, part: str) -> Splits:
    """CoOp's halves: `base` is the first half of the classes, the larger where they are odd, `new` the rest, with
    labels from 0 on; `all` changes nothing. Raises InputError for images without a label.
    """
    if part == "all":
        return splits
    middle = (len(splits.classnames) + 1) // 2
    kept = splits.classnames[:middle] if part == "base" else splits.classnames[middle:]
    if len(kept) < 2:
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES {part}: of {splits.name}'s {len(splits.classnames)} class(es) it "
                         f"leaves {len(kept)}: with one alone there is nothing to learn")
    if any(item.label == UNKNOWN for items in (splits.train, splits.val, splits.test) for item in items):
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES {part} needs labels, and images of {splits.name} have none")
    return order_classes(splits, kept)


def order_classes(splits: Splits, classnames: Sequence[str]) -> Splits:
    """The images of `classnames`, all of which `splits` knows, and those without a label, labelled in that order. A
    distribution keeps its shares of these classes, renormalised. Raises InputError where it has none."""
    labels = {splits.classnames.index(name): label for label, name in enumerate(classnames)}
    if list(labels) == list(range(len(splits.classnames))):
        return splits

    def order(items: Sequence[Item]) -> list[Item]:
        return [replace(item, label=labels.get(item.label, UNKNOWN), distribution=_shares_of(item, list(labels)))
                for item in items if item.label in labels or item.label == UNKNOWN]

    return Splits(splits.name, splits.root, list(classnames), *map(order, (splits.train, splits.val, splits.test)))


def _shares_of(item: Item, labels: Sequence[int]) -> tuple[float, ...] | None:
    if item.distribution is None:
        return None
    shares = [item.distribution[label] for label in labels]
    if not sum(shares):
        raise InputError(f"the distribution of {item.path} has no share of its part of the classes; take "
                         "DATASET.LABEL_SOURCE votes")
    return tuple(share / sum(shares) for share in shares)
