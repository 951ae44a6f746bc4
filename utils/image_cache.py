"""Prepared pixels of a list of images, decoded once and kept in a file that is mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .errors import InputError
from .transforms import WeakView

log = logging.getLogger(__name__)
FORMAT = 1  # part of every key: raise it where the pixels of a view or the layout of a file change


class CachedImages:
    """What a view's `prepare` made of each image: uint8 [height, width, 3], by the image's index.

    Only the file's name travels to other processes; each maps it for itself.
    """

    def __init__(self, path: Path, shapes: np.ndarray):
        self.path, self.shapes = path, shapes
        self.ends = shapes.prod(1).cumsum()
        self.pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.pixels is None:
            self.pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        start = self.ends[index - 1] if index else 0
        return np.asarray(self.pixels[start:self.ends[index]]).reshape(self.shapes[index])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pixels": None}


class ImageCache:
    """A folder of such files, of at most `limit` bytes together; the longest unused ones make room for new ones."""

    def __init__(self, folder: Path, limit: int, workers: int = os.cpu_count() or 1):
        self.folder, self.limit, self.workers = folder, limit, workers
        self.used: set[Path] = set()

    def open(self, paths: Sequence[Path], view: WeakView, read: Callable[[Path], Image.Image]) -> CachedImages | None:
        """The prepared pixels of all `paths`, from the cache or made now, `read` decoding them.

        None where they would not fit; then a line in the log says so. Raises InputError for images that cannot be
        read, all of which are counted.
        """
        try:
            shapes = np.array([view.stored_shape(*_size(path)) for path in paths], dtype=np.int64).reshape(-1, 3)
        except (OSError, SyntaxError, ValueError):
            return None  # some header is no image's: left to the reader, which names the file when it is its turn
        path = self.folder / f"images_{cache_key(paths, view.source)}.npy"
        images = CachedImages(path, shapes)
        if not path.is_file() and not self._make_room(int(shapes.prod(1).sum())):
            log.info("%d images need %.1f GB of cache, which DATALOADER.CACHE_GB does not leave: they are decoded in "
                     "every epoch", len(paths), shapes.prod(1).sum() / 1e9)
            return None
        if not path.is_file():
            self._build(images, paths, view, read)
        os.utime(path)
        self.used.add(path)
        return images

    def _build(self, images: CachedImages, paths: Sequence[Path], view: WeakView,
               read: Callable[[Path], Image.Image]) -> None:
        """Decode all images into a temporary file, in threads, and give it its name when it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = images.path.with_suffix(f".{os.getpid()}.part")
        pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (int(images.ends[-1]) if len(images) else 0,))

        def fill(index: int) -> str:
            try:
                prepared = view.prepare(read(paths[index]))
            except InputError as error:
                return str(error)
            pixels[images.ends[index] - prepared.size:images.ends[index]] = prepared.reshape(-1)
            return ""

        try:
            with ThreadPoolExecutor(self.workers) as pool:  # Pillow decodes and resizes without holding Python's lock
                done = pool.map(fill, range(len(paths)))
                unreadable = [error for error in tqdm(done, desc="decoding", total=len(paths), leave=False) if error]
            if unreadable:
                raise InputError(unreadable[0] + (f" ({len(unreadable)} such images)" if len(unreadable) > 1 else ""))
            pixels.flush()
            pixels._mmap.close()  # Windows renames no file that is mapped
            os.replace(partial, images.path)
        finally:
            if partial.exists():
                pixels._mmap.close()
                partial.unlink()

    def _make_room(self, needed: int) -> bool:
        """Delete the longest unused files, but none of this run's, until `needed` bytes fit; False if they cannot."""
        files = sorted(self.folder.glob("images_*.npy"), key=lambda path: path.stat().st_mtime)
        taken = sum(path.stat().st_size for path in files)
        spare = [path for path in files if path not in self.used]
        if taken - sum(path.stat().st_size for path in spare) + needed > self.limit:
            return False
        for path in spare:
            if taken + needed <= self.limit:
                break
            taken -= path.stat().st_size
            with contextlib.suppress(PermissionError):  # Windows: another run has it open
                path.unlink()
        return True


def cache_key(paths: Sequence[Path], source: str) -> str:
    """SHA-256 of what the pixels depend on: every file by path, size and time of change, and the view's source."""
    files = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path in paths for stat in [path.stat()]]
    return hashlib.sha256(json.dumps([FORMAT, source, Image.__version__, files]).encode()).hexdigest()[:32]


def _size(path: Path) -> tuple[int, int]:
    """(height, width), from the header alone."""
    with Image.open(path) as image:
        return image.height, image.width
