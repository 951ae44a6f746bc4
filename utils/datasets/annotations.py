"""How the annotation of each classification data set is read: its lists, tables and folders, into one `Listing`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from yacs.config import CfgNode

from ..config import PROJECT
from ..data.listing import list_class, list_folders, list_images, tell_left_out
from ..errors import InputError
from ..files import read_json, read_text
from .reading import configured_classnames, existing, read_mat

IMAGENET_CLASSNAMES = PROJECT / "configs" / "datasets" / "imagenet_classnames.txt"  # its origin: the .md beside it
COOP_SPLIT = "put CoOp's split_zhou_*.json beside it"  # in place of a MATLAB file
Rows = list[tuple[str, str]]  # (image below the images folder, class key)


class Home(NamedTuple):
    """A data set's folder and, in it, the folder that its image paths are relative to."""

    folder: Path
    images: Path


@dataclass(frozen=True)
class Listing:
    """What an annotation says.

    Attributes:
        splits: rows by split. Without `test`, it is carved; without `val`, that is carved from train.
        classes: the class keys in label order; None: sorted.
        names: readable names of class keys that are none themselves.
        on_disk: the rows were listed from the disk, so that their files need no check.
    """

    splits: dict[str, Rows]
    classes: Sequence[str] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    on_disk: bool = False


def folder_rows(images: Path, prefix: str = "", skip: Sequence[str] = ()) -> Rows:
    """Rows of images/prefix/<class>/*. Raises InputError for a class folder without images, or if there are none."""
    base = existing("folder of images", images / prefix)
    rows, left_out = [], Counter()
    for folder in list_folders(base):
        if folder.name not in skip:
            rows += [(path.relative_to(images).as_posix(), folder.name) for path in list_class(folder, left_out)]
    tell_left_out(left_out)
    if not rows:
        raise InputError(f"{base} holds no class folders with images")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of an annotation that hold something."""
    return [line.strip() for line in read_text(existing("annotation", path)).splitlines() if line.strip()]


def _fields(path: Path, count: int) -> list[list[str]]:
    """The words of each line; the last of `count` takes the rest. Raises InputError for a line with fewer."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split(maxsplit=count - 1)
        if len(words) < count:
            raise InputError(f"{path}, line {number}: {line!r} must have {count} fields")
        rows.append(words)
    return rows


def read_folders(home: Home, cfg: CfgNode) -> Listing:
    """EuroSAT: a folder per class."""
    return Listing({"train": folder_rows(home.images)}, on_disk=True)


def read_caltech101(home: Home, cfg: CfgNode) -> Listing:
    """A folder per class, without the background and, as in CoOp, without the second crop of the faces."""
    return Listing({"train": folder_rows(home.images, skip=("BACKGROUND_Google", "Faces_easy"))}, on_disk=True)


def read_cifar(home: Home, cfg: CfgNode) -> Listing:
    """{train,test}/<class>/*.png, as `unpack_cifar` writes them."""
    return Listing({split: folder_rows(home.images, split) for split in ("train", "test")}, on_disk=True)


def read_dtd(home: Home, cfg: CfgNode) -> Listing:
    """labels/{train,val,test}1.txt, the first of the ten official splits: a line is <class>/<image>."""
    return Listing({split: [(line, line.split("/")[0]) for line in read_lines(home.folder / "labels" / f"{split}1.txt")]
                    for split in ("train", "val", "test")})


def read_fgvc_aircraft(home: Home, cfg: CfgNode) -> Listing:
    """variants.txt names the classes; images_variant_{train,val,test}.txt have lines `<number> <variant>`."""
    return Listing({split: [(f"{number}.jpg", variant) for number, variant in
                            _fields(home.folder / f"images_variant_{split}.txt", 2)]
                    for split in ("train", "val", "test")}, read_lines(home.folder / "variants.txt"))


def read_food101(home: Home, cfg: CfgNode) -> Listing:
    """meta/{train,test}.txt: a line is <class>/<number>."""
    return Listing({split: [(f"{line}.jpg", line.split("/")[0]) for line in
                            read_lines(home.folder / "meta" / f"{split}.txt")] for split in ("train", "test")})


def read_flowers(home: Home, cfg: CfgNode) -> Listing:
    """imagelabels.mat: the class 1 … 102 of image_00001.jpg and on; setid.mat: the numbers of each split's images.
    The classes' names are cat_to_name.json's or, without it, DATASET.CLASSNAMES."""
    labels = np.ravel(read_mat(home.folder / "imagelabels.mat", COOP_SPLIT)["labels"]).tolist()
    numbers = read_mat(home.folder / "setid.mat", COOP_SPLIT)
    keys = [str(label) for label in range(1, max(labels) + 1)]
    names_file = home.folder / "cat_to_name.json"
    names = read_json(names_file) if names_file.is_file() else dict(zip(keys, configured_classnames(cfg)))
    missing = [key for key in keys if key not in names]
    if missing:
        raise InputError(f"class {missing[0]} of {home.folder / 'imagelabels.mat'} has no name: give it in "
                         f"{names_file.name} or DATASET.CLASSNAMES")
    return Listing({split: [(f"image_{number:05d}.jpg", str(labels[number - 1])) for number in np.ravel(numbers[key])]
                    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))}, keys, names)


def read_pets(home: Home, cfg: CfgNode) -> Listing:
    """annotations/{trainval,test}.txt: lines `<Breed>_<number> <class> <species> <breed>`; the class is the name."""
    splits = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        images = [row[0] for row in _fields(home.folder / "annotations" / f"{file}.txt", 4)]
        splits[split] = [(f"{image}.jpg", image.rsplit("_", 1)[0].lower()) for image in images]
    return Listing(splits)


def read_stanford_cars(home: Home, cfg: CfgNode) -> Listing:
    """devkit/cars_meta.mat, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat. As in CoOp, the year
    comes first: 2012 Audi A5 Coupe."""
    meta = read_mat(home.folder / "devkit" / "cars_meta.mat", COOP_SPLIT)
    names = [str(name) for name in np.ravel(meta["class_names"])]
    splits = {}
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        annotations = np.ravel(read_mat(home.folder / file, COOP_SPLIT)["annotations"])
        splits[split] = [(f"cars_{split}/{row['fname']}", str(int(row["class"]))) for row in annotations]
    return Listing(splits, [str(label) for label in range(1, len(names) + 1)], {
        str(label): " ".join([name.split()[-1], *name.split()[:-1]]) for label, name in enumerate(names, start=1)})


def read_sun397(home: Home, cfg: CfgNode) -> Listing:
    """ClassName.txt: lines such as /a/apartment_building/outdoor, called `outdoor apartment_building`; the first
    official split, {Training,Testing}_01.txt, where it is there, else all images, of which a test split is drawn."""
    below = home.folder / "ClassName.txt"
    keys = [line.strip("/") for line in read_lines(below if below.is_file() else home.images / "ClassName.txt")]
    names = {key: " ".join(reversed(key.split("/")[1:])) for key in keys}
    if (home.folder / "Training_01.txt").is_file():
        lists = {split: [line.strip("/") for line in read_lines(home.folder / f"{file}_01.txt")]
                 for split, file in (("train", "Training"), ("test", "Testing"))}
        return Listing({split: [(line, line.rsplit("/", 1)[0]) for line in lines] for split, lines in lists.items()},
                       keys, names)
    rows = [(path.relative_to(home.images).as_posix(), key) for key in keys
            for path in list_images(existing("class folder", home.images / key))]
    return Listing({"train": rows}, keys, names, on_disk=True)


def read_ucf101(home: Home, cfg: CfgNode) -> Listing:
    """The middle frame of each video, <Apply_Eye_Makeup>/<video>.jpg, in the first official split:
    ucfTrainTestlist/{train,test}list01.txt, lines `<ApplyEyeMakeup>/<video>.avi`; classInd.txt orders the classes."""
    lists = home.folder / "ucfTrainTestlist"
    classes = [split_camel_case(name) for _, name in _fields(lists / "classInd.txt", 2)]
    splits = {}
    for split in ("train", "test"):
        videos = [line.split()[0].split("/") for line in read_lines(lists / f"{split}list01.txt")]
        splits[split] = [(f"{split_camel_case(action)}/{Path(video).stem}.jpg", split_camel_case(action))
                         for action, video in videos]
    return Listing(splits, classes)


def split_camel_case(name: str) -> str:
    """ApplyEyeMakeup → Apply_Eye_Makeup."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name))


def read_imagenet(home: Home, cfg: CfgNode) -> Listing:
    """{train,val}/<wnid>/*; `val` is the test split."""
    train, test = folder_rows(home.images, "train"), folder_rows(home.images, "val")
    wnids = sorted({wnid for _, wnid in train})
    return Listing({"train": train, "test": test}, wnids, imagenet_names(home, cfg, wnids), on_disk=True)


def read_imagenet_variant(home: Home, cfg: CfgNode) -> Listing:
    """<wnid>/* of ImageNet's classes or of some of them, made for evaluation: DATASET.TEST_FRACTION and TEST_IMAGES
    say what trains and what is scored."""
    rows = folder_rows(home.images)
    wnids = sorted({wnid for _, wnid in rows})
    return Listing({"train": rows}, wnids, imagenet_names(home, cfg, wnids), on_disk=True)


def imagenet_names(home: Home, cfg: CfgNode, wnids: Sequence[str]) -> dict[str, str]:
    """The name of each wnid: CLIP's, or what classnames.txt (lines `<wnid> <name>`, as CoOp's) of this data set or of
    ImageNet says. A name that it gives to two classes, as CoOp's does with missile and sunglasses, is not taken.
    Raises InputError for a wnid without a name."""
    names = dict(_fields(IMAGENET_CLASSNAMES, 2))
    places = (home.folder, home.images, Path(cfg.DATASET.ROOT) / "imagenet")
    written = next((place / "classnames.txt" for place in places if (place / "classnames.txt").is_file()), None)
    given = dict(_fields(written, 2)) if written else {}
    counts = Counter(given.values())
    names |= {wnid: name for wnid, name in given.items() if counts[name] == 1 or wnid not in names}
    missing = [wnid for wnid in wnids if wnid not in names]
    if missing:
        raise InputError(f"{home.images / missing[0]} is none of ImageNet's 1,000 classes: remove the folder, or name "
                         f"it in {home.folder / 'classnames.txt'} (a line `<wnid> <name>`)")
    return {wnid: names[wnid] for wnid in wnids}
