"""What `LaFTer.py --list` shows: the known data sets, which are present under a root, and where to get the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..data.listing import count_images
from ..errors import InputError
from .classification import DEFINITIONS
from .table import READERS, SOURCES


class Entry(NamedTuple):
    """A known data set; `folder` is None where it is absent. `images` counts its image files without opening
    them; `packed`: they lie in few files; `?`: they cannot be listed, and `where` says why."""

    name: str
    folder: Path | None
    images: int | str
    where: str


def list_datasets(root: Path) -> list[Entry]:
    """All known data sets, sorted by name."""
    entries = []
    for name in sorted(READERS):
        folder = next((place for place in _places(name, root) if os.path.isdir(place)), None)
        where = (DEFINITIONS.get(name) or SOURCES[name]).where
        if name in DEFINITIONS and DEFINITIONS[name].torchvision:
            where += " (or let torchvision download it)"
        images = 0
        if folder and name in DEFINITIONS and folder.name == DEFINITIONS[name].packed:
            images = "packed"
        elif folder:
            try:
                images = count_images(folder)
            except InputError as error:  # one folder's fault: the others are listed all the same
                images, where = "?", str(error)
        entries.append(Entry(name, folder, images, where))
    return entries


def _places(name: str, root: Path) -> list[Path]:
    if name in DEFINITIONS:
        definition = DEFINITIONS[name]
        places = [root / folder / images for folder, images in definition.places]
        return places + ([root / definition.packed] if definition.packed else [])
    return [root / folder for folder in SOURCES[name].folders]


def format_datasets(entries: list[Entry]) -> str:
    """The entries as a text table."""
    rows = [("data set", "images", "folder", "where to get it")]
    for entry in entries:
        count = f"{entry.images:,}" if isinstance(entry.images, int) else entry.images
        rows.append((entry.name, count if entry.folder else "-", str(entry.folder or "absent"), entry.where))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:<{widths[0]}}  {count:>{widths[1]}}  {folder:<{widths[2]}}  {where}"
                     for name, count, folder, where in rows)
