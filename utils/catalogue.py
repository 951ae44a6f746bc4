"""What `LaFTer.py --list` shows: the known data sets, which are present under a root, and where to get the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .classification_datasets import DEFINITIONS
from .emotion_datasets import FOLDERS
from .readers import IMAGE_SUFFIXES

# the others' folders stand in DEFINITIONS and FOLDERS
WHERE = {
    "abstract": "https://www.imageemotion.org",
    "artphoto": "https://www.imageemotion.org",
    "demo": "drawn by the project on first use",
    "emoset": "https://vcc.tech/EmoSet",
    "emotion6": "http://chenlab.ece.cornell.edu/downloads.html",
    "flickr_ldl": "ask its authors: Yang, Sun and Sun, AAAI 2017",
    "folder": "your own images: ROOT/train/<class>/*, or unlabelled in ROOT/train",
    "twitter_ldl": "ask its authors: Yang, Sun and Sun, AAAI 2017",
}


class Entry(NamedTuple):
    """A known data set; `folder` is None where it is absent. `images` counts its image files without opening
    them; None: they are packed into few files."""

    name: str
    folder: Path | None
    images: int | None
    where: str


def list_datasets(root: Path) -> list[Entry]:
    """All known data sets, sorted by name."""
    entries = []
    for name in sorted({*DEFINITIONS, *WHERE}):
        folder = next((place for place in _places(name, root) if place.is_dir()), None)
        packed = folder is not None and name in DEFINITIONS and folder.name == DEFINITIONS[name].packed
        where = WHERE.get(name) or DEFINITIONS[name].where
        if name in DEFINITIONS and DEFINITIONS[name].torchvision:
            where += " (or let torchvision download it)"
        entries.append(Entry(name, folder, None if packed else count_images(folder) if folder else 0, where))
    return entries


def _places(name: str, root: Path) -> list[Path]:
    if name in DEFINITIONS:
        definition = DEFINITIONS[name]
        places = [root / folder / images for folder, images in definition.places]
        return places + ([root / definition.packed] if definition.packed else [])
    if name == "folder":
        return [root / "train"]
    return [root / folder for folder in FOLDERS.get(name, (name,))]


def count_images(folder: Path) -> int:
    """Image files in and below a folder, by their suffixes."""
    return sum(os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
               for _, _, files in os.walk(folder) for file in files)


def format_datasets(entries: list[Entry]) -> str:
    """The entries as a text table."""
    rows = [("data set", "images", "folder", "where to get it")]
    for entry in entries:
        count = "packed" if entry.images is None else f"{entry.images:,}" if entry.folder else "-"
        rows.append((entry.name, count, str(entry.folder or "absent"), entry.where))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:<{widths[0]}}  {count:>{widths[1]}}  {folder:<{widths[2]}}  {where}"
                     for name, count, folder, where in rows)
