"""Prepared pixels of images, decoded once and kept in files that are mapped into memory."""

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
from ..failures import plain_errors
from .images import AS_SEEN, Decoding, image_shape, summarise_unreadable
from .views import WeakView

log = logging.getLogger(__name__)
FORMAT = 4  # part of every name: raise it where the pixels of a view or the layout of a file change
KEY, SHAPE, COUNT = np.dtype("S16"), np.dtype("<u4"), np.dtype("<u8")
HEADER = 128  # bytes that numpy writes before an array
PER_IMAGE = KEY.itemsize + 3 * SHAPE.itemsize + 1  # bytes beside its pixels
BLOCK = 1024  # images whose headers are opened before it is asked whether the next ones still fit
ABANDONED = 24 * 3600  # seconds after which a file that is still partial belongs to a run that was killed


class CacheFile:
    """One file of the cache: the pixels of some images, by their keys; it never changes once it has its name.

    An array of bytes: the number of images; a key for each (see `image_keys`); their shapes, three uint32 each; a byte
    per image, 1 where its pixels are there; then all pixels.
    """

    def __init__(self, path: Path, keys: np.ndarray, shapes: np.ndarray):
        self.path, self.keys, self.shapes = path, keys, shapes
        self.flags = COUNT.itemsize + (PER_IMAGE - 1) * len(keys)  # where they begin
        self.ends = self.flags + len(keys) + shapes.prod(1).cumsum()
        self.filled = np.zeros(len(keys), dtype=bool)

    @classmethod
    def find(cls, path: Path) -> CacheFile | None:
        """What lies at `path`; None where nothing does any more or, told by a warning, what is damaged. Raises
        SystemFailure where the machine fails: too many open files, for one, and the file is not to blame."""
        try:
            with plain_errors():
                content = np.load(path, mmap_mode="r", allow_pickle=False)
            count = int(content[:COUNT.itemsize].view(COUNT)[0])
            keys, shapes = (content[start:start + count * size] for start, size in (
                (COUNT.itemsize, KEY.itemsize), (COUNT.itemsize + count * KEY.itemsize, 3 * SHAPE.itemsize)))
            file = cls(path, keys.view(KEY).copy(), shapes.view(SHAPE).reshape(count, 3).astype(np.int64))
            if len(content) != file.size:
                raise ValueError(f"{len(content)} bytes in place of {file.size}")
        except FileNotFoundError:  # another run has just deleted it
            return None
        except (ValueError, LookupError, OSError, EOFError) as error:
            log.warning("the image cache %s is damaged (%s): decoding its images anew", path, words(error, path))
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        file.filled[:] = content[file.flags:file.flags + count]
        return file

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return int(self.ends[-1])

    def fill(self, pixels: np.ndarray, index: int, prepared: np.ndarray) -> None:
        """Put an image's pixels into the mapped file."""
        pixels[self.ends[index] - prepared.size:self.ends[index]] = prepared.reshape(-1)
        pixels[self.flags + index] = 1


class CachedImages:
    """What a view's `prepare` made of each image: uint8 [height, width, 3], by the image's index.

    None for one that the cache has no room for or that could not be read, so that whoever asks for it decodes it, and
    for all of a file that another run has deleted, for want of room. Only names travel to other processes; each maps
    the files for itself.
    """

    def __init__(self, count: int):
        self.paths: list[Path] = []
        self.known = np.zeros(count, dtype=bool)  # in a file, be it without pixels
        self.file = np.full(count, -1)  # that holds its pixels; −1: none
        self.start, self.shapes = np.zeros(count, dtype=np.int64), np.zeros((count, 3), dtype=np.int64)
        self.pixels: dict[int, np.ndarray | None] = {}

    def add(self, keys: np.ndarray, files: Sequence[CacheFile]) -> None:
        """Take the images that are not known yet from `files`, where these have them."""
        for file in files:
            wanted, order = np.flatnonzero(~self.known), file.keys.argsort()
            place = order[np.searchsorted(file.keys, keys[wanted], sorter=order).clip(max=len(order) - 1)]
            there = file.keys[place] == keys[wanted]
            if not there.any():
                continue
            wanted, place = wanted[there], place[there]
            self.known[wanted] = True
            self.file[wanted] = np.where(file.filled[place], len(self.paths), -1)
            self.shapes[wanted] = file.shapes[place]
            self.start[wanted] = file.ends[place] - file.shapes[place].prod(1)
            self.paths.append(file.path)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> np.ndarray | None:
        file, start, shape = int(self.file[index]), self.start[index], self.shapes[index]
        if file not in self.pixels:
            try:
                self.pixels[file] = np.load(self.paths[file], mmap_mode="r", allow_pickle=False) if file >= 0 else None
            except FileNotFoundError:  # deleted by another run's _make_room; a file that is mapped already stays
                self.pixels[file] = None
        pixels = self.pixels[file]
        return None if pixels is None else np.asarray(pixels[start:start + shape.prod()]).reshape(shape)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "pixels": {}}


class ImageCache:
    """A folder of such files, of at most `limit` bytes together; the longest unused ones make room for new ones.

    Images are found one by one, whichever list they first came in: the splits of several seeds share them, and where
    an image is new or has changed, it alone is decoded.
    """

    def __init__(self, folder: Path, limit: int, workers: int = os.cpu_count() or 1):
        self.folder, self.limit, self.workers = folder, limit, workers
        self.used: set[Path] = set()

    def open(self, paths: Sequence[Path], view: WeakView, read: Callable[[Path], Image.Image],
             on_error: str = "raise", decoding: Decoding = AS_SEEN) -> CachedImages:
        """The prepared pixels of all `paths`, from the cache or made now: `read` decodes them, as `decoding` says.

        What is in the cache is found without a look into any image. Of the others as many are added, in their order,
        as fit; a line in the log tells of those that do not. Raises InputError for images that cannot be read, all of
        which are counted, unless `on_error` is `skip`: then they are None.
        """
        kind, keys, images = file_kind(view.source, decoding), image_keys(paths), CachedImages(len(paths))
        images.add(keys, [file for path in sorted(self.folder.glob(f"images_{kind}_*.npy"))
                          if (file := CacheFile.find(path))])
        self._use(images.paths)
        new = np.flatnonzero(~images.known)
        new = new[np.sort(np.unique(keys[new], return_index=True)[1])]  # each once
        shapes = self._shapes_that_fit([paths[index] for index in new], view, decoding)
        if len(shapes):
            fitting = new[:len(shapes)]
            digest = hashlib.sha256(keys[fitting].tobytes()).hexdigest()[:32]
            built = CacheFile(self.folder / f"images_{kind}_{digest}.npy", keys[fitting], shapes)
            self._make_room(HEADER + built.size)
            self._build(built, [paths[index] for index in fitting], view, read, on_error)
            images.add(keys, [built])
            self._use([built.path])
        if len(shapes) < len(new):
            log.info("%d of %d images do not fit into the cache (DATALOADER.CACHE_GB): they are decoded in every epoch",
                     len(new) - len(shapes), len(paths))
        return images

    def _use(self, files: Sequence[Path]) -> None:
        for path in files:
            with contextlib.suppress(FileNotFoundError, PermissionError):  # deleted by another run; another user's
                os.utime(path)
        self.used.update(files)

    def _shapes_that_fit(self, paths: Sequence[Path], view: WeakView, decoding: Decoding) -> np.ndarray:
        """The shapes [n, 3] of what `view` makes of the first n images, as many as the limit leaves room for beside
        what this run uses; 0 for what is no image. Headers are opened where the shape is not the same for all."""
        used = sum(size for _, size, path in self._files() if path in self.used)
        room = self.limit - used - HEADER - COUNT.itemsize
        shapes = np.zeros((0, 3), dtype=np.int64)
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(paths), BLOCK):
                block = paths[start:start + BLOCK]
                sizes = ((1, 1) for _ in block) if view.fixed_shape else pool.map(
                    lambda path: image_shape(path, decoding), block)
                more = np.array([view.stored_shape(*size) if size else (0, 0, 0) for size in sizes], dtype=np.int64)
                fit = int(np.searchsorted((more.prod(1) + PER_IMAGE).cumsum(), room, side="right"))
                shapes = np.concatenate([shapes, more[:fit]])
                room -= (more[:fit].prod(1) + PER_IMAGE).sum()
                if fit < len(block):
                    break
        return shapes

    def _build(self, file: CacheFile, paths: Sequence[Path], view: WeakView, read: Callable[[Path], Image.Image],
               on_error: str) -> None:
        """Decode all images into a temporary file, in threads, and give it its name when it is whole: several
        processes may do so at once."""
        partial = file.path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < file.size:  # writing to the mapped file would kill the run
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (file.size,))
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise InputError(f"cannot write the image cache in {self.folder} ({error.strerror or error}); make room, "
                             "name another folder with DATALOADER.CACHE_DIR, or set DATALOADER.CACHE_GB 0") from error

        parts = np.array([len(paths)], COUNT), file.keys, file.shapes.astype(SHAPE)
        pixels[:file.flags] = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])

        def fill(index: int) -> str:
            try:
                prepared = view.prepare(read(paths[index]))
            except InputError as error:
                return str(error)
            if prepared.shape == tuple(file.shapes[index]):  # else the header told another size: decoded each time
                file.fill(pixels, index, prepared)
                file.filled[index] = True
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
            _rename(partial, file.path)
        finally:
            if partial.exists():
                pixels._mmap.close()
                partial.unlink()

    def _files(self) -> list[tuple[float, int, Path]]:
        """(when it was last used, bytes, path) of every file, those of earlier versions among them."""
        files = []
        for path in self.folder.glob("images_*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        return sorted(files)

    def _make_room(self, needed: int) -> None:
        """Delete the longest unused files, but none of this run's, until `needed` bytes fit."""
        for partial in self.folder.glob("images_*.part"):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if time.time() - partial.stat().st_mtime > ABANDONED:
                    partial.unlink()
        files = self._files()
        taken = sum(size for _, size, _ in files)
        for _, size, path in files:
            if taken + needed <= self.limit:
                break
            if path not in self.used:
                taken -= size
                with contextlib.suppress(PermissionError):  # Windows: another run has it open
                    path.unlink(missing_ok=True)


def file_kind(source: str, decoding: Decoding) -> str:
    """Names what the pixels depend on beside the image files: the view's source, whether images are turned, Pillow."""
    content = json.dumps([FORMAT, source, decoding.exif, Image.__version__])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def image_keys(paths: Sequence[Path]) -> np.ndarray:
    """For each image file 16 bytes of the SHA-256 of its path, size and time of change."""
    contents = (json.dumps([str(path.resolve()), *_version(path)]) for path in paths)
    return np.array([hashlib.sha256(content.encode()).digest()[:16] for content in contents], KEY)


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
