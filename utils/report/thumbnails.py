"""Thumbnails: small JPEGs of images, inside a page or in a folder beside it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..data.images import Decoding, read_image
from ..errors import InputError, TrainingError

SIDE = 160  # pixels of the longer side
QUALITY = 80  # of JPEG: about 5 kB for a photograph
INSIDE = 8_000_000  # bytes of thumbnails up to which they stand in the page itself


def make_thumbnail(image: Image.Image) -> bytes:
    """An RGB image as a JPEG of at most SIDE x SIDE pixels; a smaller image keeps its size."""
    factor = min(1.0, SIDE / max(image.size))
    size = [max(1, round(side * factor)) for side in image.size]
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def read_thumbnails(files: Sequence[Path], decoding: Decoding, threads: int) -> Iterator[bytes | str]:
    """The thumbnail of each file or, where it cannot be read, what `read_image` says of it, in their order."""

    def read(file: Path) -> bytes | str:
        try:
            return make_thumbnail(read_image(file, decoding))
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        yield from pool.map(read, files)


def place_thumbnails(thumbnails: Sequence[bytes], page: Path) -> list[str]:
    """What an <img> in the file `page` has as `src` for each thumbnail, "" for an empty one.

    Up to INSIDE bytes they are data of the page; more of them are written into the folder <page>_thumbnails beside it,
    from which a browser loads those that are looked at. What an earlier page of this name had there is removed. Raises
    TrainingError where the disk does not take them.
    """
    folder = page.with_name(f"{page.stem}_thumbnails")
    inside = sum(map(len, thumbnails)) <= INSIDE
    try:
        for old in folder.glob("*.jpg"):
            if re.fullmatch(r"\d+\.jpg", old.name):
                old.unlink()
        if inside:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            return [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else "" for data in thumbnails]
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(thumbnails):
            if data:
                (folder / f"{number}.jpg").write_bytes(data)
    except OSError as error:
        raise TrainingError(f"cannot write the thumbnails into {folder} ({error.strerror or error}): make room and "
                            "repeat the command") from error
    return [quote(f"{folder.name}/{number}.jpg") if data else "" for number, data in enumerate(thumbnails)]
