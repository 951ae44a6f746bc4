"""What the readers of the data sets share: to find and read files, to check what they name, to carve splits."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from yacs.config import CfgNode

from .data import Item, Splits, carve, check_images
from .errors import InputError

log = logging.getLogger(__name__)



def existing(what: str, *paths: Path) -> Path:
    """The first of `paths` that exists. Raises FileNotFoundError that says `what` they are and names them."""
    for path in paths:
        if path.exists():
            return path
    others = f" (nor {', '.join(path.name for path in paths[1:])} beside it)" if len(paths) > 1 else ""
    raise FileNotFoundError(f"{what} {paths[0]} does not exist{others}; set --root to the folder that holds the data")


def data_folder(cfg: CfgNode, *names: str) -> Path:
    """The data set's folder under DATASET.ROOT, by the first of its usual names that is there."""
    return existing("data set folder", *(Path(cfg.DATASET.ROOT) / name for name in names))


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark; InputError that names a file in another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); restore it") from error


def read_json(path: Path) -> object:
    """The content of a JSON file; InputError that names a damaged one and where it breaks."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON ({error}); restore it") from error


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
        raise InputError(f"{path} is no MATLAB file ({error}); restore it") from error


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
    """DATASET.CLASSNAMES; where it is one text file, the lines of that file."""
    names = [str(name) for name in cfg.DATASET.CLASSNAMES]
    if len(names) == 1 and names[0].endswith(".txt"):
        lines = existing("file of class names", Path(names[0])).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    return names


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
