"""Readers of the emotion data sets: Emotion6, and those in Mikels' eight emotions.

Where a data set has votes, every sample carries their shares as its own distribution.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from ..data.items import Item, Splits
from ..data.listing import list_images, tell_left_out
from ..errors import InputError
from ..files import read_json, read_text
from .reading import Source, carve_splits, check_complete, check_items, data_folder, existing, find_image, read_mat

log = logging.getLogger(__name__)

EMOTION6_VOTES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")  # the columns of its file
# Class order of every data set in Mikels' emotions: the wheel's, so that bars of a distribution show neighbours side
# by side and a model of one data set serves another. Annotations are matched by name, whatever their own order.
MIKELS = ("fear", "excitement", "awe", "contentment", "amusement", "anger", "disgust", "sadness")
SHORT_FORMS = {"sad": "sadness", "content": "contentment"}  # in the public files of Abstract and ArtPhoto


def read_emotion6(cfg: CfgNode) -> Splits:
    """Emotion6 (Peng et al., CVPR 2015) from ROOT/Emotion6: images/<keyword>/N.jpg with ground_truth.txt or, where
    that is absent, with Emotion6.json.

    The votes give each image's distribution and, by default, its label; LABEL_SOURCE keyword takes the search
    keyword instead, which is the folder, or `true_emotion` in the JSON. NEUTRAL: drop that share, or keep it as
    a class.
    """
    root = data_folder(cfg, SOURCES["emotion6"])
    classes = list(EMOTION6_VOTES if cfg.DATASET.NEUTRAL == "keep" else EMOTION6_VOTES[:-1])
    table = existing("annotation", root / "ground_truth.txt", root / "Emotion6.json")
    rows = _emotion6_table(table) if table.suffix == ".txt" else _emotion6_json(table, classes)
    items, neutral, moved = [], 0, 0
    for where, name, keyword, votes in rows:
        if keyword not in classes:
            raise InputError(f"{where}: keyword {keyword!r} is none of {', '.join(classes)}")
        kept = votes[: len(classes)]
        if not sum(kept):
            neutral += 1  # every vote went to neutral, which is dropped
            continue
        label = votes_label(kept, classes.index(keyword))
        moved += classes[label] != keyword
        if cfg.DATASET.LABEL_SOURCE == "keyword":
            label = classes.index(keyword)
        items.append(Item(find_image(root, name, where, ("images", "")), label, classes[label], _shares(kept)))
    check_items(items)
    log.info("Emotion6 (%s): %d images, %d left out (all votes neutral), the votes' argmax differs from the keyword "
             "for %d", table.name, len(items), neutral, moved)
    return carve_splits(cfg, "emotion6", root, classes, items, None)


def _emotion6_table(path: Path) -> Iterator[tuple[str, str, str, list[float]]]:
    """(where, image, keyword, votes) of each row: image, valence, arousal and the seven votes, between tabs."""
    columns = 3 + len(EMOTION6_VOTES)
    for number, line in enumerate(read_text(path).splitlines()[1:], start=2):
        where, fields = f"{path}, line {number}", line.split("\t")
        if len(fields) != columns:
            raise InputError(f"{where}: {len(fields)} columns where {columns} belong")
        yield where, fields[0], fields[0].split("/")[0], _votes(fields[3:], where)


def _emotion6_json(path: Path, classes: Sequence[str]) -> Iterator[tuple[str, str, str, list[float]]]:
    """(where, image, keyword, votes) of {image: {true_emotion, dominant_emotion, emotions: {emotion: votes}}}.

    The image's path is relative to Emotion6/images or to Emotion6. `dominant_emotion` is not read: it tells no
    more than the votes do, and ties and neutral are settled from these as for ground_truth.txt.
    """
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise InputError(f"{path} must hold an object of images, not a {type(rows).__name__}")
    for name, row in rows.items():
        where = f"{path}, {name!r}"
        if not isinstance(row, dict) or "true_emotion" not in row or not isinstance(row.get("emotions"), dict):
            raise InputError(f"{where} must have 'true_emotion' and 'emotions', an object of votes")
        names = _each_once(row["emotions"], classes, where, optional=EMOTION6_VOTES[-1:])
        votes = dict(zip(names, _votes(row["emotions"].values(), where)))
        yield where, name, row["true_emotion"], [votes.get(emotion, 0.0) for emotion in EMOTION6_VOTES]


def votes_label(votes: list[float], keyword: int) -> int:
    """The index of the most votes; a tie goes to `keyword` where it is among the tied, else to the first."""
    best = max(votes)
    return keyword if votes[keyword] == best else votes.index(best)


def read_emoset(cfg: CfgNode) -> Splits:
    """EmoSet-118K (Yang et al., ICCV 2023) from ROOT/EmoSet or ROOT/EmoSet-118K, in its official splits.

    info.json names the classes: `label2idx`, at its top or under `emotion`; its indices are not used, as they
    differ between releases. train.json, val.json and test.json list [emotion, image path, annotation path] rows,
    with or without a fourth field, which is not read. One label per image and no votes: no distributions.
    """
    root = data_folder(cfg, SOURCES["emoset"])
    classes = _emoset_classes(existing("annotation", root / "info.json"))
    train, val, test = (_emoset_items(root, existing("annotation", root / f"{split}.json"), classes)
                        for split in ("train", "val", "test"))
    check_items([*train, *val, *test])
    return Splits("emoset", root, classes, train, val, test)


def _emoset_classes(path: Path) -> list[str]:
    info = read_json(path)
    table = info.get("emotion") if isinstance(info, dict) and "label2idx" not in info else info
    names = table.get("label2idx") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path} has no 'label2idx' of the emotions, at its top or under 'emotion'")
    found = {_emotion(name, MIKELS, f"{path}, label2idx") for name in names}
    return [emotion for emotion in MIKELS if emotion in found]


def _emoset_items(root: Path, path: Path, classes: list[str]) -> list[Item]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of rows, not a {type(rows).__name__}")
    items = []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, list) or len(row) not in (3, 4) or not isinstance(row[1], str):
            raise InputError(f"{where} must be [emotion, image path, annotation path], not {row!r}")
        emotion = _emotion(row[0], classes, where)
        items.append(Item(find_image(root, row[1], where), classes.index(emotion), emotion))
    return items


def read_artphoto(cfg: CfgNode) -> Splits:
    """ArtPhoto (Machajdik and Hanbury, MM 2010): 806 images, ROOT/ArtPhoto/<emotion>_*.jpg. The names give the labels;
    there are no votes."""
    root = data_folder(cfg, SOURCES["artphoto"])
    items, left_out = [], Counter()
    for path in list_images(root, left_out):
        emotion = _emotion(path.name.split("_")[0], MIKELS, str(path))
        items.append(Item(path, MIKELS.index(emotion), emotion))
    tell_left_out(left_out)
    splits = carve_splits(cfg, "artphoto", root, list(MIKELS), items, None)
    check_complete(cfg, splits, len(MIKELS), 806, SOURCES["artphoto"].where)
    return splits


def read_abstract(cfg: CfgNode) -> Splits:
    """Abstract (Machajdik and Hanbury, MM 2010) from ROOT/Abstract: ABSTRACT_groundTruth.csv beside the paintings."""
    root = data_folder(cfg, SOURCES["abstract"])
    return _read_voted(cfg, "abstract", root, root / "ABSTRACT_groundTruth.csv", root)


def read_flickr_ldl(cfg: CfgNode) -> Splits:
    """Flickr_LDL (Yang, Sun and Sun, AAAI 2017) from ROOT/Flickr_LDL: ground_truth.txt, images/ and, where it
    is there, the official split in *config.mat."""
    root = data_folder(cfg, SOURCES["flickr_ldl"])
    return _read_voted(cfg, "flickr_ldl", root, root / "ground_truth.txt", root / "images")


def read_twitter_ldl(cfg: CfgNode) -> Splits:
    """Twitter_LDL (Yang, Sun and Sun, AAAI 2017) from ROOT/Twitter_LDL: ground_truth.txt, images/ and, where it
    is there, the official split in *config.mat."""
    root = data_folder(cfg, SOURCES["twitter_ldl"])
    return _read_voted(cfg, "twitter_ldl", root, root / "ground_truth.txt", root / "images")


def _read_voted(cfg: CfgNode, name: str, root: Path, table: Path, images: Path) -> Splits:
    """A table of votes: their shares are the distributions, the most votes the labels, ties to the first class."""
    items, ties = [], 0
    for where, image, votes in _vote_rows(existing("annotation", table)):
        label = votes.index(max(votes))
        ties += votes.count(max(votes)) > 1
        items.append(Item(find_image(images, _file_name(image), where), label, MIKELS[label], _shares(votes)))
    check_items(items)
    log.info("%s: %d images; for %d the most votes are tied, and the first class in order is the label", name,
             len(items), ties)
    official = sorted(path for path in root.iterdir() if path.name.lower().endswith("config.mat"))
    train, test = _official_split(official[0], items) if official else (items, None)
    return carve_splits(cfg, name, root, list(MIKELS), train, test)


def _official_split(path: Path, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """(train, test) as {flickr,twitter}_ldl_config.mat has them: `imgname`, an image in each row, and the flags of
    these rows, `train_ind` and `test_ind`. Raises InputError for what does not fit."""
    otherwise = "rename it, and a split is drawn"
    table = read_mat(path, otherwise)
    columns = [np.ravel(table.get(key, ())) for key in ("imgname", "train_ind", "test_ind")]
    names, *flags = columns
    if not len(names) or any(len(column) != len(names) or not set(column.tolist()) <= {0, 1} for column in flags):
        raise InputError(f"{path} must hold imgname and as many flags, 0 or 1, in train_ind and test_ind: restore it, "
                         f"or {otherwise}")
    chosen = [{_file_name(str(name)) for name, flag in zip(names, column) if flag} for column in flags]
    train, test = ([item for item in items if item.path.name in part] for part in chosen)
    if chosen[0] & chosen[1] or len(train) + len(test) != len(items):
        raise InputError(f"{path}: each of the {len(items)} images must be either in train_ind or in test_ind, and "
                         f"{len(train)} and {len(test)} are: restore it, or {otherwise}")
    log.info("%s: the official split, %d images to train and %d to test", path.name, len(train), len(test))
    return train, test


def _file_name(name: str) -> str:
    """The file of an image that a table of votes may call by a bare number."""
    return name if not name or Path(name).suffix else f"{name}.jpg"


def _vote_rows(path: Path) -> Iterator[tuple[str, str, list[float]]]:
    """(where, image, votes in MIKELS' order) of each row below a header of an image column and the eight emotions.

    Tabs, commas or spaces separate; fields may stand in single or double quotes.
    """
    lines = read_text(path).splitlines()
    if not lines:
        raise InputError(f"{path} is empty; it must name an image column and the eight emotions in its first line")
    separator = next((mark for mark in "\t," if mark in lines[0]), None)
    header, *rows = ([field.strip().strip("'\"") for field in line.split(separator)] for line in lines)
    columns = _each_once(header[1:], MIKELS, f"{path}, line 1 (the header)")
    for number, fields in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        if not any(fields):
            continue  # a blank line
        if len(fields) != len(header):
            raise InputError(f"{where}: {len(fields)} columns where {len(header)} belong")
        votes = dict(zip(columns, _votes(fields[1:], where)))
        yield where, fields[0], [votes[emotion] for emotion in MIKELS]


def _emotion(name: object, classes: Collection[str], where: str) -> str:
    """The class that `name` means, in any case or in a short form. Raises InputError if it is none."""
    full = str(name).strip().lower()
    full = SHORT_FORMS.get(full, full)
    if full not in classes:
        raise InputError(f"{where}: {name!r} is none of the emotions {', '.join(classes)}")
    return full


def _each_once(names: Iterable[object], classes: Sequence[str], where: str, optional: Sequence[str] = ()) -> list[str]:
    """The classes that `names` mean, in their order. Raises InputError unless each of `classes` is there once."""
    found = [_emotion(name, (*classes, *optional), where) for name in names]
    for emotion in (*classes, *optional):
        if (count := found.count(emotion)) > 1 or not count and emotion in classes:
            raise InputError(f"{where}: emotion {emotion!r} is there {count} times instead of once")
    return found


def _votes(fields: Iterable[object], where: str) -> list[float]:
    """Votes or probabilities. Raises InputError for what is no number, negative or not finite, and if all are 0."""
    fields = list(fields)
    try:
        votes = [float(field) for field in fields]
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: a probability is no number ({error})") from error
    if not (all(vote >= 0 for vote in votes) and 0 < sum(votes) < math.inf):  # nan fails the first, inf the second
        raise InputError(f"{where}: votes must be finite, not negative, and not all 0: {fields}")
    return votes


def _shares(votes: Sequence[float]) -> tuple[float, ...]:
    return tuple(vote / sum(votes) for vote in votes)


SOURCES = {
    "abstract": Source(read_abstract, ("Abstract", "abstract", "testImages_abstract"), "https://www.imageemotion.org"),
    "artphoto": Source(read_artphoto, ("ArtPhoto", "artphoto", "testImages_artphoto"), "https://www.imageemotion.org"),
    "emoset": Source(read_emoset, ("EmoSet", "EmoSet-118K"), "https://vcc.tech/EmoSet"),
    "emotion6": Source(read_emotion6, ("Emotion6",), "http://chenlab.ece.cornell.edu/downloads.html"),
    "flickr_ldl": Source(read_flickr_ldl, ("Flickr_LDL",), "its authors (Yang, Sun and Sun, AAAI 2017)"),
    "twitter_ldl": Source(read_twitter_ldl, ("Twitter_LDL",), "its authors (Yang, Sun and Sun, AAAI 2017)"),
}
