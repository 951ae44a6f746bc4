"""What the readers of the data sets share: to find and read files, to check what they name, to carve splits."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from yacs.config import CfgNode

from ..config import resolve_path
from ..data.items import Item, Splits, carve, check_images
from ..errors import InputError, words
from ..files import read_text

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A data set with a reader of its own.

    Attributes:
        read: its reader.
        folders: the usual names under DATASET.ROOT of the folder that holds its images.
        where: where to get it.
    """

    read: Callable[[CfgNode], Splits]
    folders: tuple[str, ...]
    where: str


def existing(what: str, *paths: Path, mend: str = "set --root to the folder that holds the data") -> Path:
    """The first of `paths` that exists. Raises FileNotFoundError that says `what` they are, names them and the mend."""
    for path in paths:
        if path.exists():
            return path
    names = " or ".join([str(paths[0]), *(path.name for path in paths[1:])])
    raise FileNotFoundError(f"{what} {names} does not exist; {mend}")


def data_folder(cfg: CfgNode, source: Source) -> Path:
    """The data set's folder under DATASET.ROOT, by the first of its usual names that is there. Raises
    FileNotFoundError, which says where to get the data set."""
    places = [Path(cfg.DATASET.ROOT) / name for name in source.folders]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"data set folder {' or '.join(map(str, places))} does not exist; get it from "
                            f"{source.where} and set --root to the folder that holds it")


def read_mat(path: Path, otherwise: str) -> dict:
    """A MATLAB file. Raises InputError where scipy, which reads it, is not installed, and says what serves
    `otherwise`; and for a file that scipy cannot read."""
    existing("annotation", path)
    try:
        from scipy.io import loadmat  # few data sets have such files: scipy is no requirement
        from scipy.io.matlab import MatReadError
    except ModuleNotFoundError as error:
        raise InputError(f"{path} is a MATLAB file: pip install scipy, or {otherwise}") from error
    try:
        return loadmat(str(path), squeeze_me=True)
    except NotImplementedError as error:
        raise InputError(f"{path} is a MATLAB file of version 7.3, which scipy does not read: save it anew with "
                         f"MATLAB's or Octave's save -v7, or {otherwise}") from error
    except (MatReadError, ValueError, TypeError, IndexError, OSError, EOFError) as error:
        raise InputError(f"{path} is no MATLAB file ({words(error, path)}); restore it") from error


def find_image(root: Path, name: str, where: str, folders: Sequence[str] = ("",)) -> Path:
    """The image that an annotation calls `name`, relative to one of `folders` of `root`; either slash separates.

    If it is in none of them, the path in the first, for `check_items` to report. Raises InputError for a name
    that is no path inside the data set; `where` (file and row) opens its message.
    """
    relative = PureWindowsPath(name)
    if not relative.parts or relative.anchor or ".." in relative.parts:
        raise InputError(f"{where}: image {name!r} must be a path inside {root}")
    places = [root / folder / relative.as_posix() for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def normal_name(name: str) -> str:
    """A class's name as names are compared: `_` and spaces alike, regardless of case."""
    return " ".join(name.replace("_", " ").split()).casefold()


def configured_classnames(cfg: CfgNode) -> list[str]:
    """DATASET.CLASSNAMES; where it is one text file, of whatever suffix, the names in it.

    Raises FileNotFoundError where it looks like a file's path and there is none, InputError from `read_names`.
    """
    names = list(cfg.DATASET.CLASSNAMES)
    if len(names) != 1:
        return names
    path = resolve_path(names[0])
    if path.is_file():
        return read_names(path)
    if path.suffix.lower() in (".txt", ".csv") or len(PureWindowsPath(names[0]).parts) > 1:
        raise FileNotFoundError(f"file of class names {path} does not exist (DATASET.CLASSNAMES); give the path of a "
                                "text file with a name per line, or a list of names")
    return names


def read_names(path: Path) -> list[str]:
    """The names in a text file without header: one per line, or all on one line with commas between them.

    In a .csv a name that holds a comma stands in quotes. Raises InputError for a file without a name, or a .csv
    with several columns.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if path.suffix.lower() == ".csv" or len(lines) == 1:
        rows = [[cell.strip() for cell in row if cell.strip()] for row in csv.reader(lines, skipinitialspace=True)]
        wide = next((row for row in rows if len(row) > 1), None)
        if wide and len(rows) > 1:
            raise InputError(f"{path}: {', '.join(wide)} are several columns; a .csv of class names has one name per "
                             "line, or all on one line, and a name with a comma in quotes")
        lines = [cell for row in rows for cell in row]
    if not lines:
        raise InputError(f"{path} holds no class names: write one per line")
    return lines


# WordNet's n01855672, class_07, 007: a dictionary has none of them
CODE = re.compile(r"\d+|[a-z]{0,3}[_-]?\d{4,}|class[ _-]?\d+", re.IGNORECASE)
LATIN = re.compile("[a-z\u00c0-\u024f]", re.IGNORECASE)
SHOWN_NAMES = 20


def tell_classnames(classnames: Sequence[str]) -> None:
    """Log the class names, the first and the last where there are many, and one warning of those that CLIP cannot
    read as what they mean: it was trained on English."""
    shown = list(map(str, classnames))
    if len(shown) > SHOWN_NAMES:
        shown = [*shown[:SHOWN_NAMES // 2], f"... {len(shown) - SHOWN_NAMES // 2 - 1} more ...", shown[-1]]
    log.info("classes: %s", ", ".join(shown))
    alike = defaultdict(list)
    for name in classnames:
        alike[normal_name(name)].append(name)
    kinds = {"codes": [name for name in classnames if CODE.fullmatch(name)],
             "no Latin letter": [name for name in classnames
                                 if any(map(str.isalpha, name)) and not LATIN.search(name)],
             "they differ only in case or _": [" / ".join(names) for names in alike.values() if len(names) > 1]}
    told = [f"{shorten(names)} ({kind})" for kind, names in kinds.items() if names]
    if told:
        log.warning("CLIP reads English and cannot tell what these class names mean: %s; rename the class folders, or "
                    "the names in DATASET.CLASSNAMES", "; ".join(told))


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_items(items: Sequence[Item]) -> None:
    """InputError that names an image which is annotated twice, as it could be trained and tested on, or is missing."""
    counts = Counter(item.path for item in items)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"image {twice[0]} is annotated more than once; keep one of its rows")
    check_images(items)


def carve_splits(cfg: CfgNode, name: str, root: Path, classnames: list[str], train: list[Item],
                 test: list[Item] | None, val: list[Item] | None = None) -> Splits:
    """Carve what is not given: the test split from all, validation from train."""
    if test is None:
        train, test = carve(train, cfg.DATASET.TEST_FRACTION, cfg.SEED)
    if val is None:
        train, val = carve(train, cfg.DATASET.VAL_FRACTION, cfg.SEED)
    return Splits(name, root, classnames, train, val, test)


def check_complete(cfg: CfgNode, splits: Splits, classes: int, images: int | None, where: str) -> None:
    """InputError for a published data set without images of all its `classes`, as a half-unpacked archive leaves it;
    one warning where only the number of its images is another. DATASET.PARTIAL True: a part is meant."""
    if cfg.DATASET.PARTIAL:
        return
    items = [*splits.train, *splits.val, *splits.test]
    found = sorted({item.label for item in items})
    if len(found) != classes:
        names = ", ".join([*(splits.classnames[label] for label in found[:5]), *(["…"] if len(found) > 5 else [])])
        raise InputError(f"{splits.name}: {splits.root} has images of {len(found)} classes ({names}) where {classes} "
                         f"belong: remove it and unpack it anew (from {where}), or set DATASET.PARTIAL True for a "
                         "part of it")
    if images and len(items) != images:
        log.warning("%s: %s has %s images where %s belong: its figures do not compare with others'",
                    splits.name, splits.root, f"{len(items):,}", f"{images:,}")
