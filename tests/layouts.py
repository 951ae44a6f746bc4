"""What tests of the data sets' readers write and read: small copies of their layouts."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from utils.data.items import Splits


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def told(splits: Splits) -> dict[str, list[tuple[str, int, str]]]:
    """The rows of each split: image below the root, label, class name."""
    return {split: [(item.path.relative_to(splits.root).as_posix(), item.label, item.classname)
                    for item in getattr(splits, split)] for split in ("train", "val", "test")}
