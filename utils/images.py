"""Images as they lie in files: decoded, or no more than their size."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image

from .errors import InputError, SystemFailure
from .failures import plain_errors

# what Pillow raises for damaged files
DAMAGED_IMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError,
                 struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """The image in RGB; InputError that names a file which cannot be decoded."""
    try:
        with plain_errors(), Image.open(path) as image:
            return image.convert("RGB")
    except SystemFailure:  # too many open files, for one: the image is not to blame
        raise
    except DAMAGED_IMAGE as error:
        raise InputError(f"cannot read image {path} ({error}); replace or remove it") from error


def image_shape(path: Path) -> tuple[int, int] | None:
    """(height, width), from the header alone; None where it is no image's."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except DAMAGED_IMAGE:
        return None
