"""Prepared pixels of a list of images, decoded once and kept in a file that is mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError, words
from .images import AS_SEEN, Decoding, image_shape, summarise_unreadable
from .views import WeakView

log = logging.getLogger(__name__)
FORMAT = 3  # part of every key: raise it where the pixels of a view or the layout of a file change
SHAPE = np.dtype("<u4")
ABANDONED = 24 * 3600  # seconds after which a file that is still partial belongs to a run that was killed


class CachedImages:
    """What a view's `prepare` made of each image: uint8 [height, width, 3], by the image's index; None for one that
    could not be read, so that whoever asks for it tries it again, and for all once another run needed the room.

    The file holds the shape of each image, three uint32; a byte per image, 1 where its pixels are there; then all
    pixels. Only its name travels to other processes; each maps it for itself.
    """

    def __init__(self, path: Path, shapes: np.ndarray):
        self.path, self.shapes = path, shapes
        self.flags = shapes.size * SHAPE.itemsize  # where they begin
        self.ends = self.flags + len(shapes) + shapes.prod(1).cumsum()
        self.pixels: np.ndarray | None = None

    @classmethod
    def find(cls, path: Path, count: int) -> CachedImages | None:
        """The images of a file of `count` of them; None where it is not there or, told by a warning, damaged."""
        try:
            content = np.load(path, mmap_mode="r", allow_pickle=False)
            images = cls(path, content[:3 * count * SHAPE.itemsize].view(SHAPE).reshape(count, 3).astype(np.int64))
            if len(content) != images.size:
                raise ValueError(f"{len(content)} bytes in place of {images.size}")
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            log.warning("the image cache %s is damaged (%s): decoding the images anew", path, words(error, path))
            return None
        return images

    @property
    def size(self) -> int:
        """Bytes of the file, but for its header."""
        return int(self.ends[-1])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray | None:
        if self.pixels is None:
            try:
                self.pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:  # deleted by another run's _make_room; a file that is mapped already stays
                return None
        if not self.pixels[self.flags + index]:
            return None
        return np.asarray(self.pixels[self.place(index)]).reshape(self.shapes[index])

    def place(self, index: int) -> slice:
        """Where the image's pixels lie in the file."""
        return slice(self.ends[index] - self.shapes[index].prod(), self.ends[index])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pixels": None}


class ImageCache:
    """A folder of such files, of at most `limit` bytes together; the longest unused ones make room for new ones."""

    def __init__(self, folder: Path, limit: int, workers: int = os.cpu_count() or 1):
        self.folder, self.limit, self.workers = folder, limit, workers
        self.used: set[Path] = set()

    def open(self, paths: Sequence[Path], view: WeakView, read: Callable[[Path], Image.Image],
             on_error: str = "raise", decoding: Decoding = AS_SEEN) -> CachedImages | None:
        """The prepared pixels of all `paths`, from the cache or made now: `read` decodes them, as `decoding` says.

        What is in the cache is found without a look into any image. None where they would not fit; then a line in the
        log says so. Raises InputError for images that cannot be read, all of which are counted, unless `on_error` is
        `skip`: then they are None.
        """
        path = self.folder / f"images_{cache_key(paths, view.source, decoding)}.npy"
        images = CachedImages.find(path, len(paths))
        if images is None:
            images = CachedImages(path, self._shapes(paths, view, decoding))
            if not self._make_room(images.size):
                log.info("%d images need %.1f GB of cache, which DATALOADER.CACHE_GB does not leave: they are decoded "
                         "in every epoch", len(paths), images.size / 1e9)
                return None
            self._build(images, paths, view, read, on_error)
        with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
            os.utime(path)
        self.used.add(path)
        return images

    def _shapes(self, paths: Sequence[Path], view: WeakView, decoding: Decoding) -> np.ndarray:
        """The shape [n, 3] of what `view` makes of each image; 0 for what is none. Headers are opened where it is not
        the same for all."""
        if view.fixed_shape:
            return np.tile(np.array(view.fixed_shape, dtype=np.int64), (len(paths), 1))
        with ThreadPoolExecutor(self.workers) as pool:
            sizes = pool.map(lambda path: image_shape(path, decoding), paths)
            return np.array([view.stored_shape(*size) if size else (0, 0, 0) for size in sizes],
                            dtype=np.int64).reshape(-1, 3)

    def _build(self, images: CachedImages, paths: Sequence[Path], view: WeakView,
               read: Callable[[Path], Image.Image], on_error: str) -> None:
        """Decode all images into a temporary file, in threads, and give it its name when it is whole: several
        processes may do so at once."""
        partial = images.path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < images.size:  # writing to the mapped file would kill the run
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (images.size,))
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise InputError(f"cannot write the image cache in {self.folder} ({error.strerror or error}); make room, "
                             "name another folder with DATALOADER.CACHE_DIR, or set DATALOADER.CACHE_GB 0") from error

        pixels[:images.flags] = images.shapes.astype(SHAPE).reshape(-1).view(np.uint8)

        def fill(index: int) -> str:
            try:
                prepared = view.prepare(read(paths[index]))
            except InputError as error:
                return str(error)
            if prepared.shape == tuple(images.shapes[index]):  # else the header told another size: decoded each time
                pixels[images.place(index)] = prepared.reshape(-1)
                pixels[images.flags + index] = 1
            return ""

        try:
            with ThreadPoolExecutor(self.workers) as pool:  # Pillow decodes and resizes without holding Python's lock
                done = pool.map(fill, range(len(paths)))
                bar = tqdm(done, desc="decoding", total=len(paths), leave=False, disable=None)
                unreadable = [error for error in bar if error]
            if unreadable and on_error == "raise":
                raise InputError(f"{summarise_unreadable(unreadable)}; replace or remove what is damaged, or leave it "
                                 "out with DATALOADER.ON_ERROR skip")
            pixels.flush()
            pixels._mmap.close()  # Windows renames no file that is mapped
            _rename(partial, images.path)
        finally:
            if partial.exists():
                pixels._mmap.close()
                partial.unlink()

    def _make_room(self, needed: int) -> bool:
        """Delete the longest unused files, but none of this run's, until `needed` bytes fit; False if they cannot."""
        for partial in self.folder.glob("images_*.part"):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if time.time() - partial.stat().st_mtime > ABANDONED:
                    partial.unlink()
        files = []
        for path in self.folder.glob("images_*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        taken = sum(size for _, size, _ in files)
        spare = sorted(file for file in files if file[2] not in self.used)
        if taken - sum(size for _, size, _ in spare) + needed > self.limit:
            return False
        for _, size, path in spare:
            if taken + needed <= self.limit:
                break
            taken -= size
            with contextlib.suppress(PermissionError):  # Windows: another run has it open
                path.unlink(missing_ok=True)
        return True


def cache_key(paths: Sequence[Path], source: str, decoding: Decoding) -> str:
    """SHA-256 of what the pixels depend on: every file by path, size and time of change, whether it is turned, and the
    view's source."""
    files = [[str(path.resolve()), *_version(path)] for path in paths]
    content = json.dumps([FORMAT, source, decoding.exif, Image.__version__, files])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _version(path: Path) -> tuple[int, int]:
    """(size, time of change in ns); (0, 0) of a file that is not there."""
    try:
        stat = path.stat()
    except OSError:  # left to the reader, which names it
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _rename(partial: Path, path: Path) -> None:
    """Give a whole file its name, unless another process was faster and has its own open (Windows)."""
    try:
        os.replace(partial, path)
    except PermissionError:
        if not path.is_file():
            raise
