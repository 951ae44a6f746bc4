"""Data sets that are packed, downloaded, absent or not whole; class halves."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from layouts import images, told
from PIL import Image

from utils.config import load_config
from utils.datasets.classification import DEFINITIONS
from utils.datasets.table import load_dataset
from utils.demo.faces import draw_dataset
from utils.errors import InputError

# --- CIFAR, whose images lie in few files ----------------------------------------------------------------------------

@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 and CIFAR-100 in torchvision's files, whose hashes torchvision is told."""
    from torchvision import datasets

    def pack(folder: str, file: str, content: dict) -> tuple[str, str]:
        path = tmp_path / folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return file, hashlib.md5(path.read_bytes()).hexdigest()

    pixels = np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8)
    for name, folder, key, meta_key, classes in (
            (datasets.CIFAR10, "cifar-10-batches-py", "labels", "label_names", ["airplane", "truck"]),
            (datasets.CIFAR100, "cifar-100-python", "fine_labels", "fine_label_names", ["apple", "aquarium_fish"])):
        train = pack(folder, "train", {"data": pixels, key: [1, 0, 1]})
        test = pack(folder, "test", {"data": pixels[:2], key: [0, 1]})
        meta, digest = pack(folder, "meta", {meta_key: classes})
        monkeypatch.setattr(name, "train_list", [train])
        monkeypatch.setattr(name, "test_list", [test])
        monkeypatch.setattr(name, "meta", {"filename": meta, "key": meta_key, "md5": digest})
    return pixels


@pytest.mark.parametrize("name, classes", [("cifar10", ["airplane", "truck"]),
                                           ("cifar100", ["apple", "aquarium_fish"])])
def test_cifars_images_become_files_once(tmp_path, read_dataset, cifar, name, classes):
    splits = read_dataset(name)
    assert splits.classnames == classes
    assert told(splits) == {"train": [(f"train/{classes[0]}/00001.png", 0, classes[0]),
                                      (f"train/{classes[1]}/00000.png", 1, classes[1]),
                                      (f"train/{classes[1]}/00002.png", 1, classes[1])],
                            "val": [], "test": [(f"test/{classes[0]}/00000.png", 0, classes[0]),
                                                (f"test/{classes[1]}/00001.png", 1, classes[1])]}
    stored = np.asarray(Image.open(splits.train[0].path))
    assert np.array_equal(stored, cifar[1].reshape(3, 32, 32).transpose(1, 2, 0))
    written = splits.train[0].path.stat().st_mtime_ns
    assert read_dataset(name) == splits and splits.train[0].path.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_cifar_leaves_nothing_half_written(tmp_path, read_dataset, cifar):
    (tmp_path / "cifar-10-batches-py" / "test").write_bytes(b"broken")
    with pytest.raises(InputError, match="CIFAR10.*corrupted.*--root"):
        read_dataset("cifar10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py", "cifar-100-python"]


# --- absent, empty ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DEFINITIONS)
def test_absent_data_says_where_to_get_it(tmp_path, read_dataset, name):
    with pytest.raises(FileNotFoundError) as caught:
        read_dataset(name)
    message, definition = str(caught.value), DEFINITIONS[name]
    assert definition.where in message and "--root" in message and "\n" not in message
    assert str(tmp_path / definition.places[0][0]) in message
    assert ("DATASET.DOWNLOAD True" in message) == bool(definition.torchvision)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_says_so(tmp_path, read_dataset, monkeypatch):
    from torchvision.datasets import DTD

    def refuse(self):
        raise OSError("<urlopen error\n no route>")

    monkeypatch.setattr(DTD, "_download", refuse)
    with pytest.raises(InputError, match=r"DTD.*no route.*vgg/data/dtd.*--root"):
        read_dataset("dtd", "DATASET.DOWNLOAD", "True")


def test_an_empty_class_and_a_missing_list_are_named(tmp_path, read_dataset):
    images(tmp_path / "eurosat" / "2750", "Forest/1.jpg")
    (tmp_path / "eurosat" / "2750" / "River").mkdir()
    with pytest.raises(InputError, match="River holds no image"):
        read_dataset("eurosat")
    images(tmp_path / "dtd" / "images", "banded/1.jpg")
    with pytest.raises(FileNotFoundError, match="train1.txt"):
        read_dataset("dtd")


# --- halves of the classes -------------------------------------------------------------------------------------------

@pytest.fixture
def five(tmp_path, read_dataset):
    for split in ("train", "test"):
        images(tmp_path / split, *(f"{name}/{i}.png" for name in "abcde" for i in range(4)))
    return read_dataset


def test_base_and_new_halve_the_classes_as_in_coop(five):
    everything, base, new = (five("folder", "DATASET.SUBSAMPLE_CLASSES", part) for part in ("all", "base", "new"))
    assert (everything.classnames, base.classnames, new.classnames) == (list("abcde"), list("abc"), list("de"))
    for part in (base, new):
        assert all(part.classnames[item.label] == item.classname for item in [*part.train, *part.test])
    assert [item.path for item in [*base.test, *new.test]] == [item.path for item in everything.test]
    assert {item.label for item in new.train} == {0, 1}
    few = five("folder", "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", "2")
    assert Counter(item.classname for item in few.train) == {"d": 2, "e": 2} and few.test == new.test
    shots = five("folder", "DATASET.NUM_SHOTS", "2")  # a half has the very shots of the whole
    assert [item.path for item in shots.train if item.classname in "de"] == [item.path for item in few.train]


def test_halves_need_labels_and_a_known_name(five, tmp_path):
    with pytest.raises(InputError, match="SUBSAMPLE_CLASSES is 'old'; valid: all, base, new"):
        five("folder", "DATASET.SUBSAMPLE_CLASSES", "old")
    images(tmp_path / "train", "stray.png")
    with pytest.raises(InputError, match="base needs labels"):
        five("folder", "DATASET.SUBSAMPLE_CLASSES", "base")


def test_a_half_keeps_its_part_of_the_distributions(tmp_path):
    options = ["DATASET.ROOT", str(tmp_path)]
    draw_dataset(tmp_path / "demo", train_per_class=2, test_per_class=2)
    everything = load_dataset(load_config("demo", options=options))
    base = load_dataset(load_config("demo", options=[*options, "DATASET.SUBSAMPLE_CLASSES", "base"]))
    whole = {item.path: item for item in everything.test}
    assert base.classnames == everything.classnames[:3] and base.test
    for item in base.test:
        kept = whole[item.path].distribution[:3]
        assert item.distribution == pytest.approx([share / sum(kept) for share in kept])
