"""Samples, splits and loaders. What a sample carries, its distribution above all, travels with it through any order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .errors import InputError
from .image_cache import ImageCache
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
    """A data set: `root` is the folder that its image paths are told relative to."""

    name: str
    root: Path
    classnames: list[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]

    def save(self, path: Path) -> None:
        """Write the splits as JSON: class names and [relative path, label, class name, distribution] rows."""
        rows = {split: [[item.path.relative_to(self.root).as_posix(), item.label, item.classname, item.distribution]
                        for item in getattr(self, split)] for split in ("train", "val", "test")}
        path.write_text(json.dumps({"name": self.name, "classnames": self.classnames, **rows}), encoding="utf-8")


def load_splits(path: Path, root: Path) -> Splits:
    """Read what `Splits.save` wrote. Raises InputError for a damaged file or an image that is not under `root`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        splits = {split: [Item(root / row[0], int(row[1]), row[2], tuple(row[3]) if row[3] else None)
                          for row in data[split]] for split in ("train", "val", "test")}
        result = Splits(data["name"], root, data["classnames"], **splits)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
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
    for label in sorted({item.label for item in items}):
        members = [i for i, item in enumerate(items) if item.label == label]
        chosen.update(rng.permutation(members)[: round(fraction * len(members))].tolist())
    return ([item for i, item in enumerate(items) if i not in chosen],
            [item for i, item in enumerate(items) if i in chosen])


def few_shot(items: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """`shots` items of each class, drawn with the seed; a class with fewer gives all that it has."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for label in sorted({item.label for item in items}):
        members = [i for i, item in enumerate(items) if item.label == label]
        chosen.update(rng.permutation(members)[:shots].tolist())
    return [item for i, item in enumerate(items) if i in chosen]


def read_image(path: Path) -> Image.Image:
    """The image in RGB; InputError that names a file which cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged files
        raise InputError(f"cannot read image {path} ({error}); replace or remove it") from error


class ImageDataset(Dataset):
    """Items as dictionaries: of each of `views` its 8-bit image by its name and `<name>_params`, what was drawn for
    it; `label`, `index` and, where annotated, `distribution`. `ViewLoader` turns the images into views.

    Keys are (epoch, index) as `EpochSampler` draws them: a view's randomness depends on the seed, the epoch, the
    index and the view's name alone, so neither the order nor the number of workers changes an image. `cache`
    spares the decoding where it has the room.
    """

    def __init__(self, items: Sequence[Item], views: dict[str, WeakView], seed: int = 0,
                 cache: ImageCache | None = None):
        self.items, self.views, self.seed = list(items), views, seed
        self.annotated = bool(items) and all(item.distribution is not None for item in items)
        sources = {view.source: view for view in views.values()}
        paths = [item.path for item in items]
        opened = {source: cache.open(paths, view, read_image) if cache else None for source, view in sources.items()}
        self.cached = {source: images for source, images in opened.items() if images is not None}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        epoch, index = key
        item, sample, prepared = self.items[index], {}, {}
        for name, view in self.views.items():
            if view.source not in prepared:
                prepared[view.source] = self._prepare(view, index)
            rng = np.random.default_rng([self.seed, epoch, index, *name.encode()])
            sample[name], sample[name + PARAMS] = view.sample(prepared[view.source], rng)
        sample |= {"label": item.label, "index": index}
        if self.annotated:
            sample["distribution"] = torch.tensor(item.distribution, dtype=torch.float32)
        return sample

    def _prepare(self, view: WeakView, index: int) -> np.ndarray:
        if view.source in self.cached:
            return self.cached[view.source][index]
        return view.prepare(read_image(self.items[index].path))


class ViewLoader(DataLoader):
    """Batches of an `ImageDataset` with their views finished on `device`: float [batch, 3, size, size], normalised."""

    def __init__(self, dataset: ImageDataset, device: torch.device | str = "cpu", **options):
        super().__init__(dataset, **options)
        self.device = torch.device(device)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = super().__iter__()  # at once, as a DataLoader's workers start
        return (self._finish(batch) for batch in batches)

    def load(self, indices: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        """The batch of these images, read here and now."""
        return self._finish(default_collate([self.dataset[epoch, int(index)] for index in indices]))

    def _finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, view in self.dataset.views.items():
            images = batch[name].to(self.device, non_blocking=True)
            batch[name] = view.finish(images, batch.pop(name + PARAMS))
        return batch


class EpochSampler(Sampler):
    """(epoch, index) keys, shuffled anew in each epoch by the seed, or in order."""

    def __init__(self, size: int, seed: int, shuffle: bool):
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.size) if self.shuffle else np.arange(self.size)
        return iter([(self.epoch, int(index)) for index in order])


def build_loader(items: Sequence[Item], views: dict[str, WeakView], batch_size: int, workers: int, seed: int = 0,
                 shuffle: bool = False, cache: ImageCache | None = None,
                 device: torch.device | str = "cpu") -> ViewLoader:
    """A loader of `ImageDataset` batches; set `loader.sampler.epoch` before each epoch."""
    workers = min(workers, -(-len(items) // batch_size))  # a worker without a batch would only cost its start
    return ViewLoader(ImageDataset(items, views, seed, cache), device, batch_size=batch_size, num_workers=workers,
                      sampler=EpochSampler(len(items), seed, shuffle), persistent_workers=workers > 0,
                      pin_memory=torch.cuda.is_available())
