"""What a run's numbers answer for: its settings, images, classes, texts and weights. Whoever opens its folder with
others is refused, and told what differs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from ..config import flatten, resolve_path
from ..data.items import Splits, load_splits
from ..errors import InputError
from ..files import read_yaml, write_whole

log = logging.getLogger(__name__)

# keys that change a run's numbers by no more than rounding
HARMLESS = {"RESUME", "PICTURES", "DEVICE", "LOG_DIR", "OUTPUT_DIR", "EXP_NAME", "DATALOADER.NUM_WORKERS",
            "TRAIN.PRINT_FREQ", "TRAIN.KEEP", "TEXT.CACHE_DIR", "DATASET.ROOT", "DATASET.DOWNLOAD",
            "DATALOADER.CACHE_GB", "DATALOADER.CACHE_DIR", "DATALOADER.ON_ERROR", "MODEL.DOWNLOAD_ROOT",
            "DATALOADER.TIMEOUT", "DATALOADER.TRAIN_X.MICRO_BATCH", "MODEL.CHECKPOINT_GRADIENTS", "MODEL.TF32",
            "TRAIN.CUDA_GRAPH", "LOG.TENSORBOARD"}
# keys that name what counts by its content, wherever it lies and however it was found: that is compared in their place
BY_CONTENT = {"DATASET.CLASSNAMES", "DATASET.SPLIT_FILE", "DATASET.DESCRIPTIONS", "DATASET.TEXT_FEATURES",
              "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.QUICK_GELU"}
# keys that a trained model can be used with in another value than it was trained with; the answer says so
CHANGEABLE = ("MODEL.PRECISION", "INPUT.SIZE", "INPUT.EXIF")
# values that stand for others until trainers.precision and trainers.calibration settle them
SETTLED = (("MODEL.PRECISION", "auto"), ("PSEUDO_LABEL.CALIBRATION", "auto"))
# keys, and beginnings of keys, that make it another model, or one that sees other images
FIXED = ("PROMPT_NUM", "MULTI_LAYER_PROMPT.", "DUAL_TASK.ENABLED", "INPUT.INTERPOLATION", "INPUT.PIXEL_")
ACTIVATION = {True: "QuickGELU", False: "the plain GELU"}
FILE = "identity.json"
SPLITS = ("train", "val", "test")
CHANGES = {"bytes": "has {} bytes there and {} here", "class": "is of class {!r} there and {!r} here",
           "distribution": "has another distribution"}


@dataclass(frozen=True)
class Identity:
    """What must be equal for numbers to be those of one run. None is what is not known yet: it equals everything.

    Fields:
        settings: every key of the configuration and its value.
        splits: the content of split.json, which holds the classes, the images and their labels.
        sizes: of each split's images, in its order, the bytes in the file; None of one that is not there.
        texts: SHA-256 of each file that texts come from, by its key; None where it is not there.
        weights: the backbone's clip.weights_hash.
        quick_gelu: the backbone's activation, however it was found out.
    """

    settings: Mapping[str, object] | None = None
    splits: str | None = None
    sizes: Mapping[str, list[int | None]] | None = None
    texts: Mapping[str, str | None] | None = None
    weights: str | None = None
    quick_gelu: bool | None = None

    def differences(self, other: Identity) -> Iterator[str]:
        """How `other` differs from this one, a phrase each: settings, then texts, classes, images, weights."""
        if self.settings is not None and other.settings is not None:
            yield from setting_differences(self.settings, other.settings)
        for key in sorted(self.texts.keys() | other.texts.keys()) if None not in (self.texts, other.texts) else ():
            if self.texts.get(key) != other.texts.get(key):
                yield f"the file of {key} has another content"
        if self.splits is not None and other.splits is not None and (
                self.splits != other.splits or None not in (self.sizes, other.sizes) and self.sizes != other.sizes):
            yield from _split_differences(self, other)
        if None not in (self.weights, other.weights) and self.weights != other.weights:
            yield f"the backbone's weights have SHA-256 {self.weights[:12]}… there and {other.weights[:12]}… here"
        if None not in (self.quick_gelu, other.quick_gelu) and self.quick_gelu != other.quick_gelu:
            yield f"the backbone has {ACTIVATION[self.quick_gelu]} there and {ACTIVATION[other.quick_gelu]} here"

    def tree(self) -> dict:
        """What split.json holds. Raises InputError where that is no such file."""
        try:
            tree = json.loads(self.splits)
            if not all(tree[key] for key in ("name", "classnames")) or any(
                    len(row) < 4 for split in SPLITS for row in tree[split]):
                raise ValueError("something is missing")
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"the run's split.json is damaged ({error!r}): restore it, or delete the "
                             "folder") from error
        return tree

    @property
    def dataset(self) -> str:
        """The images in a line, for a checkpoint: how many, and the SHA-256 of their names, labels and sizes."""
        tree = self.tree()
        counts = "/".join(str(len(tree[split])) for split in SPLITS)
        content = json.dumps([tree["classnames"], *([tree[split], self.sizes[split]] for split in SPLITS)])
        return f"{counts} train/val/test images, SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def check_complete(self, folder: Path) -> None:
        """InputError where the run in `folder` did not record all that it answers for, as earlier versions' runs."""
        if self.weights is None:
            raise InputError(f"{folder} holds a run of an earlier version, which did not record what its images and "
                             f"weights were (it has no {FILE}): train anew under another --exp-name, or delete the "
                             "folder")

    def save(self, folder: Path) -> None:
        """Write split.json and identity.json; the settings are config.yaml's."""
        write_whole(folder / "split.json", self.splits.encode())
        told = {"weights": self.weights, "quick_gelu": self.quick_gelu, "texts": self.texts, "sizes": self.sizes}
        write_whole(folder / "identity.json", json.dumps(told).encode())


def identify(cfg: CfgNode, splits: Splits | None = None) -> Identity:
    """The identity of the run that a configuration and its data set ask for, but for its backbone."""
    settings = dict(flatten(cfg))
    texts = {key: _file_hash(resolve_path(settings[key])) for key in _text_files(cfg)}
    if splits is None:
        return Identity(settings, texts=texts)
    sizes = {split: [_file_size(item.path) for item in getattr(splits, split)] for split in SPLITS}
    return Identity(settings, splits.to_json(), sizes, texts)


def read_identity(folder: Path) -> Identity:
    """The identity of the run in `folder`, as far as it tells: one of an earlier version has no identity.json.

    Raises InputError for a damaged file.
    """
    config, split, rest = (folder / name for name in ("config.yaml", "split.json", FILE))
    try:
        told = json.loads(rest.read_text(encoding="utf-8")) if rest.is_file() else {}
        fields = {name: told.get(name) for name in ("weights", "quick_gelu", "texts", "sizes")}
        if rest.is_file() and (None in fields.values() or set(fields["sizes"]) != set(SPLITS)):
            raise ValueError("something is missing")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{rest} is damaged ({error}): restore it, or delete the folder") from error
    return Identity(dict(flatten(read_yaml(config))) if config.is_file() else None,
                    split.read_bytes().decode("utf-8", "replace") if split.is_file() else None, **fields)


def changed_settings(run: Identity, cfg: CfgNode) -> dict[str, list[object]]:
    """{key: [of the run, asked for]} of the CHANGEABLE keys that a model is to be used with in another value; says so.

    Raises InputError where the configuration asks for another model than the run's.
    """
    here, there = dict(flatten(cfg)), run.settings or {}
    different = [key for key in here if key in there and there[key] != here[key]]
    if built := [key for key in different if key.startswith(FIXED)]:
        raise InputError(f"{built[0]} is {there[built[0]]!r} in the run and {here[built[0]]!r} here, which makes "
                         "another model: leave it out")
    changed = {key: [there[key], here[key]] for key in CHANGEABLE if key in different}
    for key, (trained, asked) in changed.items():
        log.info("the run was trained with %s %s and is used with %s", key, trained, asked)
    return changed


def setting_differences(there: Mapping[str, object], here: Mapping[str, object]) -> Iterator[str]:
    """`KEY is x there and y here` of each key that changes numbers by its value, in alphabetical order."""
    for key in sorted((there.keys() | here.keys()) - HARMLESS - BY_CONTENT):
        if there.get(key) != here.get(key) and (key, here.get(key)) not in SETTLED:
            yield f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"


def image_differences(there: Mapping[tuple[str, str], dict], here: Mapping[tuple[str, str], dict]) -> Iterator[str]:
    """How the images of two `image_table`s differ: a phrase for each kind, with the first such image and how many."""
    common = [key for key in here if key in there]
    before, now = ({path for _, path in table} for table in (there, here))
    moved = sorted({("", path) for _, path in there.keys() ^ here.keys() if path in before and path in now})
    kinds = [("is new", [key for key in here if key[1] not in before]),
             ("is gone", [key for key in there if key[1] not in now]), ("is in another split", moved)]
    for fact, phrase in CHANGES.items():
        changed = [key for key in common if fact in there[key] and fact in here[key]
                   and there[key][fact] != here[key][fact]]
        kinds.append((phrase.format(*(table[changed[0]][fact] for table in (there, here))) if changed else "", changed))
    for phrase, keys in kinds:
        if keys:
            split, path = keys[0]
            count = f" ({len(keys)} such images)" if len(keys) > 1 else ""
            place = f" of the {split} split" if split else ""
            yield f"image {path}{place} {phrase}{count}"


def image_table(tree: Mapping[str, list], sizes: Mapping[str, list[int | None]] | None) -> dict[tuple[str, str], dict]:
    """{(split, path): what is known of the image} of split.json's content and `Identity.sizes`."""
    table = {(split, row[0]): {"class": row[2], "distribution": row[3]} for split in SPLITS for row in tree[split]}
    for split in SPLITS if sizes else ():
        for row, size in zip(tree[split], sizes.get(split, ())):
            table[split, row[0]]["bytes"] = size
    return table


def _split_differences(there: Identity, here: Identity) -> Iterator[str]:
    old, new = there.tree(), here.tree()
    classes, others = old["classnames"], new["classnames"]
    for what, names in (("new", [name for name in others if name not in classes]),
                        ("gone", [name for name in classes if name not in others])):
        if names:
            yield f"class {names[0]!r} is {what}" + (f" ({len(names)} such classes)" if len(names) > 1 else "")
    if classes != others and set(classes) == set(others):
        yield "the classes are in another order"
    before, now = image_table(old, there.sizes), image_table(new, here.sizes)
    yield from image_differences(before, now)
    if before.keys() == now.keys() and list(before) != list(now):
        yield "the images are in another order"


def recorded_splits(folder: Path, run: Identity, splits: Splits, cfg: CfgNode) -> Splits | None:
    """The run's own splits where it was trained on this data set: what was held out then, whatever the seed is now.

    Raises InputError where the configuration asks for other labels or classes than they hold, and for another data
    set of the same name, where an image is new, gone, of another size or labelled otherwise.
    """
    if run.splits is None or (tree := run.tree())["name"] != splits.name:
        return None
    run.check_complete(folder)
    here, there = dict(flatten(cfg)), run.settings or {}
    for key in ("DATASET.LABEL_SOURCE", "DATASET.NEUTRAL", "DATASET.SUBSAMPLE_CLASSES", "DATASET.CLASSNAMES"):
        if there.get(key) != here[key]:
            raise InputError(f"{key} is {here[key]!r}, and {there.get(key)!r} in {folder}: a run is scored on its own "
                             f"splits of {splits.name}, with the labels that they hold")
    known = {item.path: {"class": item.classname, "distribution": item.distribution and list(item.distribution)}
             for split in SPLITS for item in getattr(splits, split)}
    table, found = image_table(tree, run.sizes), {}
    for split, name in table:
        if (size := _file_size(splits.root / name)) is not None:
            found[split, name] = {"bytes": size, **known.get(splits.root / name, {})}
    shots = np.hstack([here["DATASET.NUM_SHOTS"], there.get("DATASET.NUM_SHOTS", 0)])
    if shots.max(initial=0) < 1:  # else most images are in no split
        recorded, listed = ({name for _, name in table}, [path.relative_to(splits.root).as_posix() for path in known])
        found |= {("", name): {} for name in listed if name not in recorded}
    if different := list(image_differences(table, found)):
        raise InputError(f"{splits.root} is not the {splits.name} that {folder} was trained on: "
                         f"{'; '.join(different)}. Restore it, or give another data set another name")
    return load_splits(folder / "split.json", splits.root)


def describe_data(splits: Splits) -> dict[str, object]:
    """What final.json tells of the data: the number of images by split, and the published file that divides them."""
    return {**{split: len(getattr(splits, split)) for split in SPLITS}, "origin": splits.origin}


def _text_files(cfg: CfgNode) -> list[str]:
    """The keys of the files that the run's texts come from."""
    if cfg.TEXT.SKIP:
        return []
    if cfg.DATASET.TEXT_FEATURES:
        return ["DATASET.TEXT_FEATURES"]
    return ["DATASET.DESCRIPTIONS"] if cfg.TEXT.MODE == "lafter" and cfg.DATASET.DESCRIPTIONS else []


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # left to the reader, which names it
        return None
