"""Samples, splits and loaders. What a sample carries, its distribution above all, travels with it through any order."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .errors import InputError
from .files import read_text
from .image_cache import CachedImages, ImageCache
from .images import AS_SEEN, Decoding, read_image
from .transforms import WeakView

UNKNOWN = -1  # the label of an image without one
PARAMS = "_params"  # after a view's name: the column of what was drawn for it


@dataclass(frozen=True)
class Item:
    """One image. `distribution` is its annotated emotion distribution, one probability per class, if it has one."""

    path: Path
    label: int
    classname: str
    distribution: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Splits:
    """A data set: `root` is the folder that its image paths are told relative to, `origin` the published file that
    divides it, "" where none does."""

    name: str
    root: Path
    classnames: list[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    origin: str = ""

    def to_json(self) -> str:
        """The splits as JSON: class names and [relative path, label, class name, distribution] rows."""
        rows = {split: [[item.path.relative_to(self.root).as_posix(), item.label, item.classname, item.distribution]
                        for item in getattr(self, split)] for split in ("train", "val", "test")}
        return json.dumps({"name": self.name, "classnames": self.classnames, **rows})

    def save(self, path: Path) -> None:
        """Write `to_json` to a file, for `load_splits`."""
        path.write_text(self.to_json(), encoding="utf-8")


def load_splits(path: Path, root: Path) -> Splits:
    """Read what `Splits.save` wrote. Raises InputError for a damaged file or an image that is not under `root`."""
    try:
        data = json.loads(read_text(path))
        splits = {split: [Item(root / row[0], int(row[1]), row[2], tuple(row[3]) if row[3] else None)
                          for row in data[split]] for split in ("train", "val", "test")}
        result = Splits(data["name"], root, data["classnames"], **splits)
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no split file of this project: {error!r}") from error
    for item in (item for items in splits.values() for item in items):
        known = 0 <= item.label < len(result.classnames)
        shares = item.distribution or result.classnames
        if not (known or item.label == UNKNOWN) or len(shares) != len(result.classnames):
            raise InputError(f"{path}: {item.path} does not fit the classes {', '.join(result.classnames[:10])}")
    check_images([item for split in splits.values() for item in split])
    return result


def check_images(items: Sequence[Item]) -> None:
    """InputError that names the first image file that is not there, and counts the others."""
    missing = [item.path for item in items if not item.path.is_file()]
    if missing:
        raise InputError(f"image {missing[0]} is missing" + (f" ({len(missing)} in all)" if len(missing) > 1 else "")
                         + "; restore it or correct the annotation")


def carve(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(rest, part): a seeded draw of `fraction` of each class, both in the original order."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for members in group_by_label(items):
        chosen.update(rng.permutation(members)[: round(fraction * len(members))].tolist())
    return ([item for i, item in enumerate(items) if i not in chosen],
            [item for i, item in enumerate(items) if i in chosen])


def few_shot(items: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """`shots` items of each class, drawn with the seed; a class with fewer gives all that it has."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for members in group_by_label(items):
        chosen.update(rng.permutation(members)[:shots].tolist())
    return [item for i, item in enumerate(items) if i in chosen]


def group_by_label(items: Sequence[Item]) -> list[list[int]]:
    """The items' indices by label, in the labels' order; found in one pass."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.label].append(index)
    return [groups[label] for label in sorted(groups)]


def subsample_classes(splits: Splits, part: str) -> Splits:
    """CoOp's halves: `base` is the first half of the classes, the larger where they are odd, `new` the rest, with
    labels from 0 on; `all` changes nothing. Raises InputError for images without a label.
    """
    if part == "all":
        return splits
    middle = (len(splits.classnames) + 1) // 2
    kept = splits.classnames[:middle] if part == "base" else splits.classnames[middle:]
    if len(kept) < 2:
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES {part}: of {splits.name}'s {len(splits.classnames)} class(es) it "
                         f"leaves {len(kept)}: with one alone there is nothing to learn")
    if any(item.label == UNKNOWN for items in (splits.train, splits.val, splits.test) for item in items):
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES {part} needs labels, and images of {splits.name} have none")
    return order_classes(splits, kept)


def order_classes(splits: Splits, classnames: Sequence[str]) -> Splits:
    """The images of `classnames`, all of which `splits` knows, and those without a label, labelled in that order. A
    distribution keeps its shares of these classes, renormalised. Raises InputError where it has none."""
    labels = {splits.classnames.index(name): label for label, name in enumerate(classnames)}
    if list(labels) == list(range(len(splits.classnames))):
        return splits

    def order(items: Sequence[Item]) -> list[Item]:
        return [replace(item, label=labels.get(item.label, UNKNOWN), distribution=_shares_of(item, list(labels)))
                for item in items if item.label in labels or item.label == UNKNOWN]

    return Splits(splits.name, splits.root, list(classnames), *map(order, (splits.train, splits.val, splits.test)))


def _shares_of(item: Item, labels: Sequence[int]) -> tuple[float, ...] | None:
    if item.distribution is None:
        return None
    shares = [item.distribution[label] for label in labels]
    if not sum(shares):
        raise InputError(f"the distribution of {item.path} has no share of its part of the classes; take "
                         "DATASET.LABEL_SOURCE votes")
    return tuple(share / sum(shares) for share in shares)


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
            images = cache.open([item.path for item in items], view, self.read, on_error, decoding)
            if images is not None:
                self.cached[view.source] = images

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

    `workers` processes load ahead, none: this one. RuntimeError where one ends, or where they give no batch for
    `timeout` seconds (0: ever).
    """

    def __init__(self, dataset: ImageDataset, device: torch.device | str = "cpu", workers: int = 0,
                 timeout: float = 0, **options):
        self.device = torch.device(device)
        super().__init__(dataset, num_workers=workers, timeout=timeout if workers else 0,
                         persistent_workers=workers > 0, pin_memory=self.device.type == "cuda",
                         worker_init_fn=leave_ctrl_c_to_the_main_process, **options)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._read(super().__iter__())  # at once, as a DataLoader's workers start

    def _read(self, batches: Iterator[dict[str, object]]) -> Iterator[dict[str, Tensor]]:
        try:
            for batch in batches:
                yield self._finish(batch)
        except (ConnectionError, EOFError) as error:  # torch says so itself where it notices first
            raise RuntimeError("DataLoader worker exited unexpectedly while it handed over a batch") from error

    def load(self, indices: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        """The batch of these images, read here and now."""
        return self._finish(collate([self.dataset[epoch, int(index)] for index in indices]))

    def _finish(self, batch: dict[str, object]) -> dict[str, object]:
        for name, view in self.dataset.views.items():
            if name not in batch:  # no image of the batch could be read
                continue
            # a copy that is not waited for is safe from pinned memory alone: other memory may be freed meanwhile
            images = batch[name].to(self.device, non_blocking=self.device.type == "cuda" and batch[name].is_pinned())
            batch[name] = view.finish(images, batch.pop(name + PARAMS))
        return batch


class EpochSampler(Sampler):
    """(epoch, index) keys, shuffled anew in each epoch by the seed, or in order; from batch `start` of the epoch on.

    `shard` is (rank, processes): each process draws its share of every batch, so that together they draw each image
    once, in batches of `batch_size`. The share of a last, smaller batch may be empty: that process has a batch less
    than the `batches` of an epoch.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, batch_size: int = 1, shard: tuple[int, int] = (0, 1)):
        self.size, self.seed, self.shuffle, self.batch_size, self.shard = size, seed, shuffle, batch_size, shard
        self.epoch = self.start = 0
        self.batches = -(-size // batch_size)

    def __len__(self) -> int:
        rank, processes = self.shard
        return sum(len(range(rank, min(self.batch_size, self.size - begin), processes))
                   for begin in range(self.start * self.batch_size, self.size, self.batch_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.size) if self.shuffle else np.arange(self.size)
        rank, processes = self.shard
        first = self.start * self.batch_size
        shares = [order[begin: begin + self.batch_size][rank::processes]
                  for begin in range(first, self.size, self.batch_size)]
        return iter([(self.epoch, int(index)) for share in shares for index in share])


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
    """A loader of `ImageDataset` batches; set `loader.sampler.epoch` before each epoch.

    `batch_size` is that of all processes together; see `EpochSampler` for `shard`, `ViewLoader` for `timeout`. Raises
    InputError for a batch that has no image for some process.
    """
    rank, processes = shard
    if batch_size < processes:
        raise InputError(f"a batch of {batch_size} cannot be divided over {processes} processes: raise --batch_size "
                         "and DATALOADER.TEST.BATCH_SIZE, or start fewer")
    workers = min(workers, -(-len(items) // batch_size))  # a worker without a batch would only cost its start
    return ViewLoader(ImageDataset(items, views, seed, on_error, cache, decoding), device, workers, timeout,
                      batch_size=len(range(rank, batch_size, processes)),
                      sampler=EpochSampler(len(items), seed, shuffle, batch_size, shard), collate_fn=collate,
                      generator=torch.Generator())  # else each pass draws from the global one
