"""Batches of views: the data set of items, the order of an epoch, the loader."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..errors import InputError
from .cache import CachedImages, ImageCache
from .images import AS_SEEN, Decoding, read_image
from .items import Item
from .views import WeakView

PARAMS = "_params"  # after a view's name: the column of what was drawn for it


class ImageDataset(Dataset):
    """Items as dictionaries: of each of `views` its 8-bit image by its name and `<name>_params`, what was drawn for
    it; `label`, `index` and, where annotated, `distribution`. `ViewLoader` turns the images into views.

    Keys are (epoch, index) as `EpochSampler` draws them: a view's randomness depends on the seed, the epoch, the
    index and the view's name alone, so neither the order nor the number of workers or processes changes an image.
    `cache` spares the decoding where it has the room; `decoding` is how files are read. An image that cannot be read is
    an InputError or, with `on_error` `skip`, a sample that only says why: `unreadable`.
    """

    def __init__(self, items: Sequence[Item], views: dict[str, WeakView], seed: int = 0, on_error: str = "raise",
                 cache: ImageCache | None = None, decoding: Decoding = AS_SEEN):
        self.items, self.views, self.seed, self.on_error = list(items), views, seed, on_error
        self.decoding, self.read = decoding, partial(read_image, decoding=decoding)
        self.annotated = bool(items) and all(item.distribution is not None for item in items)
        self.cached: dict[str, CachedImages] = {}
        for view in {view.source: view for view in views.values()}.values() if cache and items else ():
            self.cached[view.source] = cache.open([item.path for item in items], view, self.read, on_error, decoding)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        epoch, index = key
        item, sample, prepared = self.items[index], {}, {}
        try:
            for view in self.views.values():
                if view.source not in prepared:
                    prepared[view.source] = self._prepare(view, index)
        except InputError as error:
            if self.on_error == "skip":
                return {"unreadable": str(error)}
            raise InputError(f"{error}, or leave such images out: DATALOADER.ON_ERROR skip") from error
        for name, view in self.views.items():
            rng = np.random.default_rng([self.seed, epoch, index, *name.encode()])
            sample[name], sample[name + PARAMS] = view.sample(prepared[view.source], rng)
        sample |= {"label": item.label, "index": index}
        if self.annotated:
            sample["distribution"] = torch.tensor(item.distribution, dtype=torch.float32)
        return sample

    def _prepare(self, view: WeakView, index: int) -> np.ndarray:
        pixels = self.cached[view.source][index] if view.source in self.cached else None
        return view.prepare(self.read(self.items[index].path)) if pixels is None else pixels


class ViewLoader(DataLoader):
    """Batches of an `ImageDataset` with their views finished on `device`: float [batch, 3, size, size], normalised.

    A batch holds the images that could be read; one without any is {}. What was said of the others gathers in
    `unreadable`, batch by batch as they are given out. `workers` processes load ahead, none: this one. RuntimeError
    where one ends, or where they give no batch for `timeout` seconds (0: ever).
    """

    def __init__(self, dataset: ImageDataset, device: torch.device | str = "cpu", workers: int = 0,
                 timeout: float = 0, **options):
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.compiled: dict[tuple[str, int], Callable[[Tensor, Tensor], Tensor]] = {}
        self.unreadable: list[str] = []
        super().__init__(dataset, num_workers=workers, timeout=timeout if workers else 0,
                         persistent_workers=workers > 0, pin_memory=self.device.type == "cuda",
                         worker_init_fn=leave_ctrl_c_to_the_main_process, **options)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.unreadable = []
        return self._read(super().__iter__())  # at once, as a DataLoader's workers start

    def _read(self, batches: Iterator[dict[str, object]]) -> Iterator[dict[str, Tensor]]:
        try:
            for batch in batches:
                yield self._finish(batch)
        except (ConnectionError, EOFError) as error:  # torch says so itself where it notices first
            raise RuntimeError("DataLoader worker exited unexpectedly while it handed over a batch") from error

    def load(self, indices: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        """The batch of these images, read here and now."""
        self.unreadable = []
        return self._finish(collate([self.dataset[epoch, int(index)] for index in indices]))

    def _finish(self, batch: dict[str, object]) -> dict[str, Tensor]:
        """On a GPU in a stream of its own: the views of a batch are made while the step before it still runs."""
        self.unreadable += batch.pop("unreadable", [])
        if not batch or self.stream is None:
            return self._make_views(batch)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            batch = self._make_views(batch)
        current.wait_stream(self.stream)
        for name in self.dataset.views:
            batch[name].record_stream(current)
        return batch

    def _make_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, view in self.dataset.views.items() if batch else ():
            finish = self.compiled.get((name, len(batch[name])), view.finish)
            batch[name] = finish(send(batch[name], self.device), send(batch.pop(name + PARAMS), self.device))
        return batch

    def compile_views(self, images: int) -> None:
        """Let torch compile how the views of a batch of so many images are finished; of others they are as they were.
        RuntimeError where that fails, for want of a compiler as a rule; then nothing has changed."""
        compiled = {(name, images): torch.compile(view.finish, dynamic=False)
                    for name, view in self.dataset.views.items()}
        for (name, _), finish in compiled.items():
            view = self.dataset.views[name]
            finish(torch.zeros(images, view.size, view.size, 3, dtype=torch.uint8, device=self.device),
                   torch.zeros(images, view.num_params, device=self.device))
        self.compiled = compiled


def send(column: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device. A GPU's copy is not waited for, which is safe from pinned memory alone: other memory may
    be freed meanwhile."""
    if device.type == "cuda" and column.device.type == "cpu":
        return column.pin_memory().to(device, non_blocking=True)  # itself where the loader has pinned it
    return column.to(device)


class EpochSampler(Sampler):
    """The batches of an epoch as lists of (epoch, index), shuffled anew in each epoch by the seed, or in order; from
    batch `start` of the epoch on.

    `shard` is (rank, processes): each process draws its part of every batch, so that together they draw each image
    once, in batches of `batch_size`. A part of a last, smaller batch may be empty, so that all processes have equally
    many batches.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, batch_size: int = 1, shard: tuple[int, int] = (0, 1)):
        self.size, self.seed, self.shuffle, self.batch_size, self.shard = size, seed, shuffle, batch_size, shard
        self.epoch = self.start = 0
        self.num_batches = -(-size // batch_size)

    def batch_images(self, batch: int) -> int:
        """How many images batch number `batch` of the epoch has, over all processes."""
        return min(self.batch_size, self.size - batch * self.batch_size)

    def __len__(self) -> int:
        return self.num_batches - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.size) if self.shuffle else np.arange(self.size)
        rank, processes = self.shard
        for begin in range(self.start * self.batch_size, self.size, self.batch_size):
            own = order[begin: begin + self.batch_size][rank::processes]
            yield [(self.epoch, int(index)) for index in own]


def collate(samples: Sequence[dict[str, object]]) -> dict[str, object]:
    """A batch: tensors of the samples that could be read, if any, and under `unreadable` what the others say."""
    readable = [sample for sample in samples if "unreadable" not in sample]
    unreadable = [sample["unreadable"] for sample in samples if "unreadable" in sample]
    return {**(default_collate(readable) if readable else {}), **({"unreadable": unreadable} if unreadable else {})}


def leave_ctrl_c_to_the_main_process(_: int) -> None:
    """For a loader's process: Ctrl-C reaches it too, but the main process decides when training stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def build_loader(items: Sequence[Item], views: dict[str, WeakView], batch_size: int, workers: int, seed: int = 0,
                 shuffle: bool = False, shard: tuple[int, int] = (0, 1), on_error: str = "raise",
                 cache: ImageCache | None = None, device: torch.device | str = "cpu",
                 decoding: Decoding = AS_SEEN, timeout: float = 0) -> ViewLoader:
    """A loader of `ImageDataset` batches; set `loader.batch_sampler.epoch` before each epoch.

    `batch_size` is that of all processes together; see `EpochSampler` for `shard`, `ViewLoader` for `timeout`. Raises
    InputError for a batch that has no image for some process.
    """
    if batch_size < shard[1]:
        raise InputError(f"a batch of {batch_size} cannot be divided over {shard[1]} processes: raise --batch_size "
                         "and DATALOADER.TEST.BATCH_SIZE, or start fewer")
    workers = min(workers, -(-len(items) // batch_size))  # a worker without a batch would only cost its start
    return ViewLoader(ImageDataset(items, views, seed, on_error, cache, decoding), device, workers, timeout,
                      batch_sampler=EpochSampler(len(items), seed, shuffle, batch_size, shard), collate_fn=collate,
                      generator=torch.Generator())  # else each pass draws from the global one


CPU_MICRO_BATCH = 10  # ViT-B/32's widest activations then stay under the size that glibc maps afresh each time


def micro_batches(batch: dict[str, Tensor], size: int = 0) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of `size` images, the last one perhaps smaller. `size` 0: 10 on a CPU, all elsewhere.

    The parts' gradients, each times its fraction of the batch, add up to the batch's, in a part of its memory; on a CPU
    smaller parts are faster too.
    """
    images = next(batch[name] for name in ("strong", "weak") if name in batch)
    size = size or (CPU_MICRO_BATCH if images.device.type == "cpu" else len(images))
    for start in range(0, len(images), size):
        yield {name: column[start:start + size] for name, column in batch.items()}
