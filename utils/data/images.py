"""Images as they lie in files: decoded as a person sees them, or no more than their size."""

from __future__ import annotations

import functools
import logging
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from yacs.config import CfgNode

from ..errors import InputError, SystemFailure, words
from ..failures import plain_errors
from .image_formats import hint, open_image

log = logging.getLogger(__name__)

# what Pillow raises for damaged files
DAMAGED_IMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError,
                 struct.error, zlib.error, Image.DecompressionBombError)
UNREADABLE = "cannot read image "
MAX_PIXELS = 178_956_970  # Pillow refuses larger images if nobody says otherwise
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose mode I holds 0 … 65,535 by their own definition
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATIONS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
                5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
                8: Image.Transpose.ROTATE_90}  # what undoes EXIF's orientation, by its number
BY_A_QUARTER = (5, 6, 7, 8)


@dataclass(frozen=True)
class Decoding:
    """How image files are read: `exif` turns them as their EXIF orientation says, and those with more than
    `max_pixels` are refused."""

    exif: bool = True
    max_pixels: int = MAX_PIXELS


AS_SEEN = Decoding()


def choose_decoding(cfg: CfgNode, own: bool) -> Decoding:
    """As INPUT.EXIF and INPUT.MAX_PIXELS say; `auto` turns a user's `own` images, but not those of published data
    sets, whose figures were made by CLIP's pipeline, which does not look at the orientation."""
    return Decoding({"auto": own, "apply": True, "ignore": False}[cfg.INPUT.EXIF], cfg.INPUT.MAX_PIXELS)


def read_image(path: Path, decoding: Decoding = AS_SEEN) -> Image.Image:
    """The first frame of an image in RGB, 8 bits. Raises InputError that names a file which cannot be decoded."""
    try:
        with plain_errors(), _open(path, decoding) as image:
            rgb = to_rgb(image)
            turn = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation)) if decoding.exif else None
            return rgb if turn is None else rgb.transpose(turn)
    except SystemFailure:  # too many open files, for one: the image is not to blame
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{UNREADABLE}{path} ({words(error, path)}); raise INPUT.MAX_PIXELS if it is to be "
                         "trusted") from error
    except DAMAGED_IMAGE as error:
        mend = hint(path.suffix.lower()) or "replace or remove it"
        raise InputError(f"{UNREADABLE}{path} ({words(error, path)}); {mend}") from error


def summarise_unreadable(messages: Sequence[str], named: int = 5) -> str:
    """What `read_image` said of several images, in one line: how many, and the first `named` with their reasons."""
    reasons = [message.removeprefix(UNREADABLE).rpartition("; ")[0] or message for message in messages[:named]]
    more = f" and {len(messages) - named} more" if len(messages) > named else ""
    return f"{len(messages)} image{'s' * (len(messages) > 1)} cannot be read: {'; '.join(reasons)}{more}"


def image_shape(path: Path, decoding: Decoding = AS_SEEN) -> tuple[int, int] | None:
    """(height, width) as `read_image` will have it, from the header alone; None where it is no image's."""
    try:
        with _open(path, decoding) as image:
            turned = (decoding.exif and image.format != "TIFF"  # which Pillow turns by itself
                      and image.getexif().get(ExifTags.Base.Orientation) in BY_A_QUARTER)
            return (image.width, image.height) if turned else (image.height, image.width)
    except DAMAGED_IMAGE:
        return None


def _open(path: Path, decoding: Decoding) -> Image.Image:
    # Pillow knows but one limit for the whole process, at half of what it refuses; it is set where files are opened,
    # so that a loader's processes have it too
    Image.MAX_IMAGE_PIXELS = decoding.max_pixels // 2
    return open_image(path)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any of Pillow's modes in RGB: transparency is laid on white, 16-bit greys are divided by 257, and
    32-bit ones and floats are stretched from their own range to 0 … 255.

    Raises ValueError for floats without a finite value, and for a mode that Pillow cannot convert.
    """
    if image.mode in SIXTEEN_BITS or image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS:
        pixels = np.asarray(image).astype(np.float64) / 257
    elif image.mode in ("I", "F"):
        pixels = _stretched(np.asarray(image).astype(np.float64), image.mode)
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    else:
        return image.convert("RGB")
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).convert("RGB")


def _stretched(values: np.ndarray, mode: str) -> np.ndarray:
    """From their own range to 0 … 255, a constant image to 0; what is no number counts as the least, infinity as the
    end of the range that it is nearer to."""
    _tell_stretching(mode)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("it holds no finite value")
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return (values - low) * (255 / (high - low) if high > low else 0.0)


@functools.cache  # once is enough
def _tell_stretching(mode: str) -> None:
    log.info("grey images of %s are stretched, each from its own range, to 0 … 255",
             {"I": "32-bit integers", "F": "floats"}[mode])
