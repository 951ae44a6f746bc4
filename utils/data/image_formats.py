"""Which image files can be opened here: what Pillow reads, and HEIC where pillow-heif is installed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import Image

# what Pillow only identifies, or hands to another program: documents, video, weather and science data
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
CONVERT = "convert it to JPEG or PNG"
# images that cannot be opened everywhere or not at all, and the mend
HINTS = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pip install --upgrade pillow"),
    **dict.fromkeys((".jxl", ".svg", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), CONVERT),
}


@functools.cache
def register_plugins() -> None:
    """Teach Pillow what an optional package reads, in this process."""
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener  # an optional package

        register_heif_opener()


def open_image(path: Path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """As PIL.Image.open, with the formats of optional packages."""
    register_plugins()
    return Image.open(path, formats=formats)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of the images that can be opened here, in lower case."""
    register_plugins()
    suffixes = Image.registered_extensions()  # loads all of Pillow's own plugins
    readable = {*Image.OPEN, "MPO"} - NO_PICTURES  # MPO is opened as JPEG is
    return frozenset(suffix for suffix, name in suffixes.items() if name in readable)


@functools.cache
def signed_formats() -> tuple[str, ...]:
    """The formats that begin with a signature, so that a header alone tells them from other files."""
    readable_suffixes()
    return tuple(name for name, (_, accept) in Image.OPEN.items() if accept and name not in NO_PICTURES)


def hint(suffix: str) -> str:
    """What to do about images of a suffix that cannot be opened here; nothing for all others."""
    return "" if suffix in readable_suffixes() else HINTS.get(suffix, "")
