"""LaFTer's classification data sets: a table of where each lies, how it is read and where it comes from."""

from __future__ import annotations

import importlib.util
import logging
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm
from yacs.config import CfgNode

from ..data.items import Item, Splits
from ..errors import InputError
from ..files import move_in, read_json, whole_folder
from .annotations import (
    Home,
    Listing,
    read_caltech101,
    read_cifar,
    read_dtd,
    read_fgvc_aircraft,
    read_flowers,
    read_folders,
    read_food101,
    read_imagenet,
    read_imagenet_variant,
    read_pets,
    read_stanford_cars,
    read_sun397,
    read_ucf101,
)
from .reading import carve_splits, check_complete, check_items, find_image

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Definition:
    """A data set.

    Attributes:
        places: (folder under ROOT, images folder in it), CoOp's first, then torchvision's.
        read: its annotation, where CoOp's split file is not there.
        where: where to get it.
        classes: how many there are.
        images: how many there are in all its splits, where every source of it has the same.
        split_file: CoOp's split.
        torchvision: the class of torchvision.datasets that downloads it, to the last of `places`.
        needs: a package that its annotation takes.
        packed: the folder under ROOT in which torchvision keeps CIFAR's images in few files.
        names: readable names of classes that the files call otherwise.
    """

    places: tuple[tuple[str, str], ...]
    read: Callable[[Home, CfgNode], Listing]
    where: str
    classes: int
    images: int | None = None
    split_file: str = ""
    torchvision: str = ""
    needs: str = ""
    packed: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


DEFINITIONS = {
    "caltech101": Definition(  # as in CoOp without the background and the second crop of the faces
        (("caltech-101", "101_ObjectCategories"), ("caltech101", "101_ObjectCategories")), read_caltech101,
        "https://data.caltech.edu/records/mzrjq-6wc02", 100, 8_242, "split_zhou_Caltech101.json", "Caltech101",
        names={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}),
    "cifar10": Definition((("cifar10", ""),), read_cifar, "https://www.cs.toronto.edu/~kriz/cifar.html", 10, 60_000,
                          torchvision="CIFAR10", packed="cifar-10-batches-py"),
    "cifar100": Definition((("cifar100", ""),), read_cifar, "https://www.cs.toronto.edu/~kriz/cifar.html", 100, 60_000,
                           torchvision="CIFAR100", packed="cifar-100-python"),
    "dtd": Definition((("dtd", "images"), ("dtd/dtd", "images")), read_dtd,
                      "https://www.robots.ox.ac.uk/~vgg/data/dtd/", 47, 5_640,
                      "split_zhou_DescribableTextures.json", "DTD"),
    "eurosat": Definition(
        (("eurosat", "2750"),), read_folders, "https://github.com/phelber/EuroSAT", 10, 27_000,
        "split_zhou_EuroSAT.json", "EuroSAT",
        names={"AnnualCrop": "Annual Crop Land", "HerbaceousVegetation": "Herbaceous Vegetation Land",
               "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
               "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings",
               "SeaLake": "Sea or Lake"}),
    "fgvc_aircraft": Definition((("fgvc_aircraft", "images"), ("fgvc-aircraft-2013b/data", "images")),
                                read_fgvc_aircraft, "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
                                100, 10_000, torchvision="FGVCAircraft"),
    "food101": Definition((("food-101", "images"),), read_food101,
                          "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", 101, 101_000,
                          "split_zhou_Food101.json", "Food101"),
    "imagenet": Definition((("imagenet", "images"), ("imagenet", "")), read_imagenet,
                           "https://www.image-net.org/download.php (ILSVRC2012; needs an account)",
                           1000, 1_281_167 + 50_000),
    "imagenet_a": Definition((("imagenet-adversarial", "imagenet-a"), ("imagenet-a", "")), read_imagenet_variant,
                             "https://github.com/hendrycks/natural-adv-examples", 200, 7_500),
    "imagenet_r": Definition((("imagenet-rendition", "imagenet-r"), ("imagenet-r", "")), read_imagenet_variant,
                             "https://github.com/hendrycks/imagenet-r", 200, 30_000),
    "imagenet_s": Definition((("imagenet-sketch", "images"), ("imagenet-sketch", "sketch"), ("sketch", "")),
                             read_imagenet_variant, "https://github.com/HaohanWang/ImageNet-Sketch", 1000, 50_889),
    "oxford_flowers": Definition((("oxford_flowers", "jpg"), ("flowers-102", "jpg")), read_flowers,
                                 "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", 102, 8_189,
                                 "split_zhou_OxfordFlowers.json", "Flowers102", needs="scipy"),
    "oxford_pets": Definition((("oxford_pets", "images"), ("oxford-iiit-pet", "images")), read_pets,
                              "https://www.robots.ox.ac.uk/~vgg/data/pets/", 37, 7_349,
                              "split_zhou_OxfordPets.json", "OxfordIIITPet"),
    "stanford_cars": Definition(  # its first address is gone, and torchvision no longer downloads it
        (("stanford_cars", ""),), read_stanford_cars,
        "CoOp's DATASETS.md (https://github.com/KaiyangZhou/CoOp) names a copy", 196, 16_185,
        "split_zhou_StanfordCars.json"),
    "sun397": Definition(  # 39,700 images in a split, 108,754 in the folders
        (("sun397", "SUN397"), ("", "SUN397")), read_sun397,
        "https://vision.princeton.edu/projects/2010/SUN/", 397, None, "split_zhou_SUN397.json", "SUN397"),
    "ucf101": Definition((("ucf101", "UCF-101-midframes"),), read_ucf101,
                         "middle frames as images: CoOp's DATASETS.md (https://github.com/KaiyangZhou/CoOp)",
                         101, 13_320, "split_zhou_UCF101.json"),
}


def read_classification(cfg: CfgNode) -> Splits:
    """The data set that DATASET.NAME names, from ROOT in CoOp's or torchvision's layout, or downloaded into ROOT.

    CoOp's split_zhou_*.json counts where it is there, else the data set's own lists, else what DATASET.TEST_FRACTION
    and VAL_FRACTION draw. Raises FileNotFoundError for absent data, InputError for what does not fit.
    """
    name, root = cfg.DATASET.NAME, Path(cfg.DATASET.ROOT)
    definition = DEFINITIONS[name]
    home = find_home(definition, root)
    if home is None:
        prepare(name, definition, root, cfg.DATASET.DOWNLOAD)
        home = find_home(definition, root)
    split_file = home.folder / definition.split_file
    if split_file.is_file():
        splits = read_coop_split(name, home, split_file, definition.names)
    else:
        splits = build_splits(cfg, home, definition.read(home, cfg), definition.names)
    check_complete(cfg, splits, definition.classes, definition.images, definition.where)
    return splits


def find_home(definition: Definition, root: Path) -> Home | None:
    """Where the data set lies under `root`, or None."""
    homes = (Home(root / folder, root / folder / images) for folder, images in definition.places)
    return next((home for home in homes if home.images.is_dir()), None)


def prepare(name: str, definition: Definition, root: Path, download: bool) -> None:
    """Let torchvision fetch an absent data set; CIFAR's images become PNG files.

    Raises FileNotFoundError for data that is not there and may or can not be downloaded, InputError if that fails.
    """
    packed = bool(definition.packed) and (root / definition.packed).is_dir()
    if not packed and not (download and definition.torchvision):
        folders = " or ".join(str(root / folder) for folder, _ in definition.places)
        hint = "; or set DATASET.DOWNLOAD True" if definition.torchvision else ""
        raise FileNotFoundError(f"data set {name}: {folders} does not exist; get it from {definition.where} and set "
                                f"--root{hint}")
    if definition.needs and importlib.util.find_spec(definition.needs) is None:
        raise InputError(f"torchvision's {definition.torchvision} needs {definition.needs}: pip install "
                         f"{definition.needs}")
    if packed:
        return unpack_cifar(definition, root, root, download)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=root) as temporary:
        if definition.packed:
            return unpack_cifar(definition, Path(temporary), root, download)
        fetch(definition, Path(temporary), root)


def fetch(definition: Definition, temporary: Path, root: Path) -> None:
    """Download and unpack in a temporary folder, then move into `root` what is there whole, the images last. The
    archive is left behind where torchvision puts it beside the data set's folder."""
    open_torchvision(definition, temporary, download=True)
    folder, images = definition.places[-1]
    top = Path(folder, images).parts[0]
    move_in(temporary / top, root / top, temporary / folder / images)


def open_torchvision(definition: Definition, root: Path, download: bool, **choice: object) -> VisionDataset:
    """torchvision's data set, downloaded where asked for. Raises InputError if that fails."""
    from torchvision import datasets  # only here: the import takes a second

    if download:
        log.info("torchvision looks for %s and downloads what is missing", definition.torchvision)
    try:
        return getattr(datasets, definition.torchvision)(str(root), download=download, **choice)
    except (RuntimeError, OSError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        place = "" if download else f" in {root}"
        raise InputError(f"torchvision could not provide {definition.torchvision}{place} ({reason}); get it from "
                         f"{definition.where} and set --root") from error


def unpack_cifar(definition: Definition, source: Path, root: Path, download: bool) -> None:
    """Write CIFAR's images to {train,test}/<class>/<number>.png once: every other data set's images are files too.
    torchvision has them in `source`, or downloads them to there."""
    target = root / definition.places[0][0]
    with whole_folder(target) as folder:
        for split in ("train", "test"):
            dataset = open_torchvision(definition, source, download, train=split == "train")
            folders = [folder / split / name for name in dataset.classes]
            for path in folders:
                path.mkdir(parents=True)
            rows = enumerate(zip(dataset.data, dataset.targets))
            for number, (pixels, label) in tqdm(rows, desc=f"{target.name} {split}", total=len(dataset), leave=False,
                                                disable=None):
                Image.fromarray(pixels).save(folders[label] / f"{number:05d}.png", compress_level=1)


def read_coop_split(name: str, home: Home, path: Path, names: Mapping[str, str]) -> Splits:
    """CoOp's split file: {"train": [[image below the images folder, label, class name], …], "val", "test"}."""
    data = read_json(path)
    splits: dict[str, list[Item]] = {}
    classes: dict[int, str] = {}
    for split in ("train", "val", "test"):
        rows = data.get(split) if isinstance(data, dict) else None
        if not isinstance(rows, list):
            raise InputError(f"{path} has no list {split!r}; restore CoOp's file, or remove it to go by the "
                             "data's own lists")
        splits[split] = []
        for number, row in enumerate(rows, start=1):
            where = f"{path}, {split} {number}"
            if not (isinstance(row, list) and [type(value) for value in row] == [str, int, str]):
                raise InputError(f"{where} must be [image, label, class name], not {row!r}")
            image, label, classname = row
            classname = names.get(classname, classname)
            if classes.setdefault(label, classname) != classname:
                raise InputError(f"{where}: label {label} is {classname!r} here and {classes[label]!r} before")
            splits[split].append(Item(find_image(home.images, image, where), label, classname))
    if sorted(classes) != list(range(len(classes))):
        raise InputError(f"{path}: the labels must be 0 … {len(classes) - 1} without a gap, not {sorted(classes)[:10]}")
    check_items([item for items in splits.values() for item in items])
    return Splits(name, home.images, [classes[label] for label in sorted(classes)], **splits, origin=path.name)


def build_splits(cfg: CfgNode, home: Home, listing: Listing, names: Mapping[str, str]) -> Splits:
    """Splits from a listing; what it does not split is carved."""
    name = cfg.DATASET.NAME
    keys = list(listing.classes or sorted({key for rows in listing.splits.values() for _, key in rows}))
    classnames = [names.get(key, listing.names.get(key, key)) for key in keys]
    labels = {key: label for label, key in enumerate(keys)}
    items: dict[str, list[Item]] = {}
    for split, rows in listing.splits.items():
        unknown = next((key for _, key in rows if key not in labels), None)
        if unknown:
            raise InputError(f"{home.folder}: class {unknown!r} of the {split} split is none of the {len(keys)} "
                             "classes")
        items[split] = [
            Item(home.images / path if listing.on_disk else find_image(home.images, path, f"{name} {split}"),
                 labels[key], classnames[labels[key]]) for path, key in rows]
    if not listing.on_disk:
        check_items([item for part in items.values() for item in part])
    if "val" in items:
        return Splits(name, home.images, classnames, items["train"], items["val"], items["test"])
    return carve_splits(cfg, name, home.images, classnames, items["train"], items.get("test"))
