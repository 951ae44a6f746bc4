"""The one place that lists a user's files: which are images, which folders count, and what is left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import InputError
from .image_formats import hint, open_image, readable_suffixes, signed_formats
from .images import DAMAGED_IMAGE

log = logging.getLogger(__name__)

# what systems and their tools leave in folders, beside hidden names, in lower case
LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information",
          "lost+found", "@eadir"}
HIDDEN, NO_SUFFIX, BROKEN, LIKE_IMAGE = ("hidden or system", "without suffix", "broken links",
                                         "folders named like an image")
SHOWN_KINDS = 10


def list_images(folder: Path, left_out: Counter[str] | None = None, below: bool = False,
                also: Collection[str] = ()) -> list[Path]:
    """The image files of a folder, with those of its sub-folders where `below`, sorted by the characters of their
    paths in it, with slashes: the order is the same on every system.

    Files are known by suffix, those without one by their header; `also` names further suffixes to take. What is
    left out is counted in `left_out` by kind. Raises InputError for a folder that cannot be listed.
    """
    counts = Counter() if left_out is None else left_out
    suffixes = readable_suffixes() | set(also)
    found = []
    for name in list_files(folder, counts, below):
        suffix = suffix_of(name)
        if suffix in suffixes or not suffix and is_image(folder / name):
            found.append(name)
        else:
            counts[suffix or NO_SUFFIX] += 1
    return [folder / name for name in sorted(found)]


def list_class(folder: Path, left_out: Counter[str], below: bool = False) -> list[Path]:
    """The images of a class folder, as `list_images`. Raises InputError where there are none."""
    counts: Counter[str] = Counter()
    found = list_images(folder, counts, below)
    if not found:
        raise InputError(f"class folder {folder} holds no image; fill or remove it{in_brackets(counts)}")
    left_out.update(counts)
    return found


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by the characters of their names, without hidden ones, system litter and those
    named like an image. Raises InputError for a folder that cannot be listed."""
    return [folder / entry.name for entry in _entries(folder)
            if is_folder(entry) and not is_litter(entry.name) and suffix_of(entry.name) not in readable_suffixes()]


def count_images(folder: Path) -> int:
    """How many image files are in and below a folder, by their suffixes alone: none is opened."""
    suffixes = readable_suffixes()
    return sum(suffix_of(name) in suffixes for name in list_files(folder, Counter(), below=True))


def list_files(folder: Path, left_out: Counter[str], below: bool) -> Iterator[str]:
    """The paths of all files in a folder, relative to it with slashes, but hidden ones and system litter.

    Links to folders are followed, and each folder is listed once, so that links in a circle end. Raises InputError
    for a folder that cannot be listed.
    """
    listed, waiting = set(), [""]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(folder / place)
        if real in listed:
            continue
        listed.add(real)
        for entry in _entries(folder / place):
            if is_litter(entry.name):
                left_out[HIDDEN] += 1
            elif not is_folder(entry):
                if entry.is_symlink() and not os.path.isfile(entry):
                    left_out[BROKEN] += 1
                else:
                    yield place + entry.name
            elif suffix_of(entry.name) in readable_suffixes():
                left_out[LIKE_IMAGE] += 1
            elif below:  # links wait for the rest: a folder is called by its own name where it has one here
                waiting.insert(0 if entry.is_symlink() else len(waiting), f"{place}{entry.name}/")


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be listed ({error.strerror}); allow reading it, or remove it"
                         ) from error


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere, or to itself, is none."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def suffix_of(name: str) -> str:
    """A file name's suffix in lower case."""
    return os.path.splitext(name)[1].lower()


def is_litter(name: str) -> bool:
    """Whether a name is hidden or a system's own: such files and folders are no data."""
    return name.startswith(".") or name.lower() in LITTER


def is_image(path: Path) -> bool:
    """Whether the header is an image's that can be opened here, whatever the name."""
    try:
        with open_image(path, signed_formats()):
            return True
    except DAMAGED_IMAGE:
        return False


def describe_left_out(left_out: Counter[str]) -> str:
    """`left out: 13 .heic, 1 .csv; .heic: pip install pillow-heif`, or nothing where nothing was."""
    if not left_out:
        return ""
    kinds = sorted(left_out, key=lambda kind: (-left_out[kind], kind))
    told = [f"{left_out[kind]} {kind}" for kind in kinds[:SHOWN_KINDS]]
    if others := kinds[SHOWN_KINDS:]:
        told.append(f"{sum(left_out[kind] for kind in others)} of {len(others)} other kinds")
    hints = [f"{kind}: {hint(kind)}" for kind in kinds if hint(kind)]
    return "; ".join([f"left out: {', '.join(told)}", *hints])


def in_brackets(left_out: Counter[str]) -> str:
    """The same for the end of a message."""
    return f" ({describe_left_out(left_out)})" if left_out else ""


def tell_left_out(left_out: Counter[str]) -> None:
    """Log what was left out in one line; a warning where images are among it."""
    if left_out:
        level = logging.WARNING if any(map(hint, left_out)) else logging.INFO
        log.log(level, describe_left_out(left_out))
