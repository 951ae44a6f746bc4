"""Images as they lie in files: decoded, or no more than their size."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image

from .errors import InputError
from .image_formats import open_image

# what Pillow raises for damaged files
DAMAGED_IMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError,
                 struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """The image in RGB; InputError that names a file which cannot be decoded."""
    try:
        with open_image(path) as image:
            return image.convert("RGB")
    except DAMAGED_IMAGE as error:
        raise InputError(f"cannot read image {path} ({error}); replace or remove it") from error


def image_shape(path: Path) -> tuple[int, int] | None:
    """(height, width), from the header alone; None where it is no image's."""
    try:
        with open_image(path) as image:
            return image.height, image.width
    except DAMAGED_IMAGE:
        return None
