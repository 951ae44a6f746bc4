"""LaFTer's classification data sets, each from a small copy of its real layout: CoOp's, torchvision's, or absent."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.classification_datasets import DEFINITIONS
from utils.classification_readers import imagenet_categories, split_camel_case
from utils.config import load_config
from utils.data import Splits
from utils.datasets import load_dataset
from utils.errors import InputError

COOP_SPLITS = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def read(tmp_path):
    def load(name: str, *options: str) -> Splits:
        return load_dataset(load_config(name, options=["DATASET.ROOT", str(tmp_path), "DATASET.DOWNLOAD", "False",
                                                       "DATASET.VAL_FRACTION", "0", *options]))

    return load


def told(splits: Splits) -> dict[str, list[tuple[str, int, str]]]:
    """The rows of each split: image below the root, label, class name."""
    return {split: [(item.path.relative_to(splits.root).as_posix(), item.label, item.classname)
                    for item in getattr(splits, split)] for split in ("train", "val", "test")}


# --- CoOp's split files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", COOP_SPLITS)
def test_coops_split_file_counts(tmp_path, read, name):
    folder, below, file = COOP_SPLITS[name]
    images(tmp_path / folder / below, "x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg", "y/unused.jpg")
    split = {"train": [["x/1.jpg", 1, "zebra crossing"], ["y/3.jpg", 0, "yak"]],
             "val": [["x/2.jpg", 1, "zebra crossing"]], "test": [["y/4.jpg", 0, "yak"]]}
    write(tmp_path / folder / file, json.dumps(split))
    splits = read(name)
    assert (splits.name, splits.classnames) == (name, ["yak", "zebra crossing"])
    assert told(splits) == {part: [tuple(row) for row in rows] for part, rows in split.items()}


def test_eurosats_folder_names_become_readable_from_either_source(tmp_path, read):
    folder = tmp_path / "eurosat" / "2750"
    for name in ("AnnualCrop", "Forest", "SeaLake"):
        images(folder, *(f"{name}/{name}_{i}.jpg" for i in range(10)))
    drawn = read("eurosat", "DATASET.TEST_FRACTION", "0.2")
    assert drawn.classnames == ["Annual Crop Land", "Forest", "Sea or Lake"]
    assert [Counter(item.label for item in part) for part in (drawn.train, drawn.val, drawn.test)] == [
        {0: 8, 1: 8, 2: 8}, {}, {0: 2, 1: 2, 2: 2}]
    write(tmp_path / "eurosat" / "split_zhou_EuroSAT.json", json.dumps({
        "train": [["SeaLake/SeaLake_1.jpg", 0, "SeaLake"]], "val": [],
        "test": [["SeaLake/SeaLake_2.jpg", 0, "SeaLake"]]}))
    assert read("eurosat").classnames == ["Sea or Lake"]


@pytest.mark.parametrize("split, words", [
    ({"train": [], "val": []}, ("no list 'test'",)),
    ({"train": [["x/1.jpg", "0", "a"]], "val": [], "test": []}, ("train 1", "[image, label, class name]")),
    ({"train": [["x/1.jpg", 0, "a"]], "val": [], "test": [["x/2.jpg", 0, "b"]]}, ("test 1", "'b'", "'a'")),
    ({"train": [["x/1.jpg", 0, "a"], ["x/2.jpg", 2, "b"]], "val": [], "test": []}, ("without a gap", "[0, 2]")),
    ({"train": [["x/1.jpg", 0, "a"], ["x/2.jpg", 1, "a"]], "val": [], "test": []}, ("duplicated", "'a'")),
    ({"train": [["x/1.jpg", 0, "a"]], "val": [], "test": [["x/1.jpg", 0, "a"]]}, ("x/1.jpg", "more than once")),
    ({"train": [["x/1.jpg", 0, "a"]], "val": [], "test": [["x/9.jpg", 0, "a"]]}, ("9.jpg", "missing")),
    ({"train": [["../1.jpg", 0, "a"]], "val": [], "test": []}, ("../1.jpg", "inside")),
])
def test_a_split_file_that_cannot_be_right_says_why(tmp_path, read, split, words):
    images(tmp_path / "dtd" / "images", "x/1.jpg", "x/2.jpg")
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps(split))
    with pytest.raises(InputError) as caught:
        read("dtd")
    message = str(caught.value).replace("\\", "/")
    assert "\n" not in message and all(word in message for word in words), message


# --- the data sets' own lists, in CoOp's folder and in torchvision's ------------------------------------------------

@pytest.mark.parametrize("folder", ["caltech-101", "caltech101"])
def test_caltech101(tmp_path, read, folder):
    below = tmp_path / folder / "101_ObjectCategories"
    for name in ("Faces", "Faces_easy", "BACKGROUND_Google", "airplanes", "yin_yang"):
        images(below, *(f"{name}/image_{i:04d}.jpg" for i in range(4)))
    splits = read("caltech101", "DATASET.TEST_FRACTION", "0.5")
    assert splits.classnames == ["face", "airplane", "yin_yang"]  # sorted as the folders are
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 0, 6]


@pytest.mark.parametrize("folder", ["dtd", "dtd/dtd"])
def test_dtd(tmp_path, read, folder):
    rows = {"train": ["banded/banded_0002.jpg", "woven/woven_0001.jpg"], "val": ["banded/banded_0004.jpg"],
            "test": ["woven/woven_0009.jpg"]}
    for split, lines in rows.items():
        images(tmp_path / folder / "images", *lines)
        write(tmp_path / folder / "labels" / f"{split}1.txt", *lines)
    splits = read("dtd")
    assert splits.classnames == ["banded", "woven"]
    assert told(splits) == {split: [(line, int(line[0] == "w"), line.split("/")[0]) for line in lines]
                            for split, lines in rows.items()}


@pytest.mark.parametrize("folder", ["fgvc_aircraft", "fgvc-aircraft-2013b/data"])
def test_fgvc_aircraft(tmp_path, read, folder):
    write(tmp_path / folder / "variants.txt", "707-320", "Cessna 172", "F/A-18")
    for split, number, variant in (("train", 34958, "F/A-18"), ("val", 10, "707-320"), ("test", 77, "Cessna 172")):
        images(tmp_path / folder / "images", f"{number}.jpg")
        write(tmp_path / folder / f"images_variant_{split}.txt", f"{number} {variant}")
    splits = read("fgvc_aircraft")
    assert splits.classnames == ["707-320", "Cessna 172", "F/A-18"]
    assert told(splits) == {"train": [("34958.jpg", 2, "F/A-18")], "val": [("10.jpg", 0, "707-320")],
                            "test": [("77.jpg", 1, "Cessna 172")]}
    write(tmp_path / folder / "images_variant_test.txt", "77 Concorde")
    with pytest.raises(InputError, match="'Concorde'.*test"):
        read("fgvc_aircraft")
    write(tmp_path / folder / "images_variant_test.txt", "77")
    with pytest.raises(InputError, match="images_variant_test.txt, line 1.*2 fields"):
        read("fgvc_aircraft")


def test_food101(tmp_path, read):
    for split, lines in (("train", ["apple_pie/1005649", "waffles/5"]), ("test", ["apple_pie/7"])):
        images(tmp_path / "food-101" / "images", *(f"{line}.jpg" for line in lines))
        write(tmp_path / "food-101" / "meta" / f"{split}.txt", *lines)
    assert told(read("food101")) == {
        "train": [("apple_pie/1005649.jpg", 0, "apple_pie"), ("waffles/5.jpg", 1, "waffles")],
        "val": [], "test": [("apple_pie/7.jpg", 0, "apple_pie")]}


@pytest.mark.parametrize("folder, named", [("oxford_flowers", True), ("flowers-102", False)])
def test_flowers(tmp_path, read, folder, named):
    savemat = pytest.importorskip("scipy.io").savemat
    images(tmp_path / folder / "jpg", *(f"image_{i:05d}.jpg" for i in (1, 2, 3, 4)))
    savemat(tmp_path / folder / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 3]], dtype=np.uint8)})
    savemat(tmp_path / folder / "setid.mat", {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3]]}, do_compression=True)
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]  # the first of the 102
    if named:
        names = ["a", "b", "c"]
        write(tmp_path / folder / "cat_to_name.json", json.dumps({"2": "b", "1": "a", "3": "c"}))
    splits = read("oxford_flowers")
    assert splits.classnames == names
    assert told(splits) == {"train": [("image_00004.jpg", 2, names[2]), ("image_00001.jpg", 1, names[1])],
                            "val": [("image_00002.jpg", 0, names[0])], "test": [("image_00003.jpg", 1, names[1])]}
    (tmp_path / folder / "setid.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(30))
    with pytest.raises(InputError, match="setid.mat is no MATLAB file"):
        read("oxford_flowers")


def test_a_matlab_file_without_scipy_says_what_to_install(tmp_path, read, monkeypatch):
    images(tmp_path / "flowers-102" / "jpg", "image_00001.jpg")
    write(tmp_path / "flowers-102" / "imagelabels.mat", "x")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(InputError, match="imagelabels.mat.*pip install scipy.*split_zhou"):
        read("oxford_flowers")


@pytest.mark.parametrize("folder", ["oxford_pets", "oxford-iiit-pet"])
def test_pets(tmp_path, read, folder):
    names = ["Abyssinian_100", "american_pit_bull_terrier_7", "Bombay_1", "Abyssinian_2"]
    images(tmp_path / folder / "images", *(f"{name}.jpg" for name in names))
    write(tmp_path / folder / "annotations" / "trainval.txt", *(f"{name} 1 1 1" for name in names[:3]))
    write(tmp_path / folder / "annotations" / "test.txt", f"{names[3]} 1 1 1")
    splits = read("oxford_pets")
    assert splits.classnames == ["abyssinian", "american_pit_bull_terrier", "bombay"]
    assert [label for _, label, _ in told(splits)["train"]] == [0, 1, 2]
    assert told(splits)["test"] == [("Abyssinian_2.jpg", 0, "abyssinian")]


def test_stanford_cars(tmp_path, read):
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "stanford_cars"
    images(root, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")
    (root / "devkit").mkdir()
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    savemat(root / "devkit" / "cars_train_annos.mat",
            {"annotations": np.array([(39, 2, "00001.jpg"), (36, 1, "00002.jpg")], dtype=kind)})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": np.array([(30, 2, "00001.jpg")], dtype=kind)})
    splits = read("stanford_cars")
    assert splits.classnames == ["2000 AM General Hummer SUV", "2012 Acura RL Sedan"]
    assert [row[:2] for row in told(splits)["train"]] == [("cars_train/00001.jpg", 1), ("cars_train/00002.jpg", 0)]
    assert told(splits)["test"] == [("cars_test/00001.jpg", 1, "2012 Acura RL Sedan")]


@pytest.mark.parametrize("lists", [True, False])
def test_sun397(tmp_path, read, lists):
    folder, annotation = (tmp_path / "sun397",) * 2 if lists else (tmp_path, tmp_path / "SUN397")
    names = ["a/abbey/sun_1.jpg", "a/abbey/sun_2.jpg", "a/apartment_building/outdoor/sun_3.jpg",
             "a/apartment_building/outdoor/sun_4.jpg"]
    images(folder / "SUN397", *names)
    write(annotation / "ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    if lists:
        write(annotation / "Training_01.txt", *(f"/{name}" for name in names[::2]))
        write(annotation / "Testing_01.txt", *(f"/{name}" for name in names[1::2]))
    splits = read("sun397", "DATASET.TEST_FRACTION", "0.5")
    assert splits.classnames == ["abbey", "outdoor apartment_building"]
    assert [item.label for item in splits.train] == [item.label for item in splits.test] == [0, 1]
    if lists:
        assert [row[0] for row in told(splits)["train"]] == names[::2]


def test_ucf101(tmp_path, read):
    folder = tmp_path / "ucf101"
    images(folder / "UCF-101-midframes", "Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg", "Yo_Yo/v_YoYo_g01_c01.jpg",
           "Yo_Yo/v_YoYo_g02_c01.jpg")
    write(folder / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup", "101 YoYo")
    write(folder / "ucfTrainTestlist" / "trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 101")
    write(folder / "ucfTrainTestlist" / "testlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
          "YoYo/v_YoYo_g02_c01.avi")
    splits = read("ucf101")
    assert splits.classnames == ["Apply_Eye_Makeup", "Yo_Yo"]
    assert told(splits)["train"] == [("Yo_Yo/v_YoYo_g01_c01.jpg", 1, "Yo_Yo")]
    assert [label for _, label, _ in told(splits)["test"]] == [0, 1]
    assert split_camel_case("CleanAndJerk") == "Clean_And_Jerk"


# --- CIFAR, whose images lie in few files ------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name, classes", [("cifar10", ["airplane", "truck"]), ("cifar100", ["apple", "aquarium_fish"])])
def test_cifars_images_become_files_once(tmp_path, read, cifar, name, classes):
    splits = read(name)
    assert splits.classnames == classes
    assert told(splits) == {"train": [(f"train/{classes[0]}/00001.png", 0, classes[0]),
                                      (f"train/{classes[1]}/00000.png", 1, classes[1]),
                                      (f"train/{classes[1]}/00002.png", 1, classes[1])],
                            "val": [], "test": [(f"test/{classes[0]}/00000.png", 0, classes[0]),
                                                (f"test/{classes[1]}/00001.png", 1, classes[1])]}
    stored = np.asarray(Image.open(splits.train[0].path))
    assert np.array_equal(stored, cifar[1].reshape(3, 32, 32).transpose(1, 2, 0))
    written = splits.train[0].path.stat().st_mtime_ns
    assert read(name) == splits and splits.train[0].path.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_cifar_leaves_nothing_half_written(tmp_path, read, cifar):
    (tmp_path / "cifar-10-batches-py" / "test").write_bytes(b"broken")
    with pytest.raises(InputError, match="CIFAR10.*corrupted.*--root"):
        read("cifar10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py", "cifar-100-python"]


# --- ImageNet and its variants -----------------------------------------------------------------------------------------

WNIDS = [f"n{1440764 + 7 * i:08d}" for i in range(1000)]  # in the place of the real ones, which sort as the names do


@pytest.mark.parametrize("below", ["images", "."])
def test_imagenet(tmp_path, read, below):
    write(tmp_path / "imagenet" / "classnames.txt", f"{WNIDS[1]} gold fish", f"{WNIDS[0]} tench")
    for split, wnid, image in (("train", 0, "a"), ("train", 1, "b"), ("val", 1, "c"), ("val", 0, "d")):
        images(tmp_path / "imagenet" / below, f"{split}/{WNIDS[wnid]}/{image}.JPEG")
    splits = read("imagenet")
    assert splits.classnames == ["tench", "gold fish"] and splits.val == []
    assert [item.label for item in splits.train] == [0, 1]
    assert [(item.path.name, item.label) for item in splits.test] == [("d.JPEG", 0), ("c.JPEG", 1)]


@pytest.mark.parametrize("name, folder", [("imagenet_a", "imagenet-adversarial/imagenet-a"), ("imagenet_a", "imagenet-a"),
                                          ("imagenet_r", "imagenet-rendition/imagenet-r"), ("imagenet_r", "imagenet-r"),
                                          ("imagenet_s", "imagenet-sketch/images"), ("imagenet_s", "sketch")])
@pytest.mark.parametrize("source", ["synsets", "folders", "classnames"])
def test_variants_of_imagenet_have_its_names(tmp_path, read, name, folder, source, caplog):
    images(tmp_path / folder, f"{WNIDS[999]}/1.jpg", f"{WNIDS[2]}/2.jpg", f"{WNIDS[2]}/3.jpg")
    expected = [imagenet_categories()[2], imagenet_categories()[999]]
    if source == "synsets":
        write(tmp_path / "imagenet" / "LOC_synset_mapping.txt", *(f"{wnid} name, other" for wnid in reversed(WNIDS)))
    elif source == "folders":
        for wnid in WNIDS:
            (tmp_path / "imagenet" / "images" / "val" / wnid).mkdir(parents=True)
    else:  # two classes of one name: torchvision's list tells them apart
        names = ["missile" if i in (2, 5) else f"name {i}" for i in range(1000)]
        write(tmp_path / "imagenet" / "classnames.txt", *(f"{wnid} {own}" for wnid, own in zip(WNIDS, names)))
        expected[1] = "name 999"
    with caplog.at_level(logging.INFO):
        splits = read(name)
    assert splits.classnames == expected
    assert [item.label for item in splits.train] == [0, 0, 1] and splits.test == splits.train and splits.val == []
    assert "no training split" in caplog.text
    labelled = read(name, "TRAIN.SUPERVISION", "labels", "TEXT.SKIP", "True", "DATASET.TEST_FRACTION", "0.5")
    assert len(labelled.test) == 1 and not {i.path for i in labelled.train} & {i.path for i in labelled.test}


def test_unknown_names_of_imagenet_are_asked_for(tmp_path, read):
    images(tmp_path / "imagenet-a", f"{WNIDS[7]}/1.jpg")
    with pytest.raises(InputError, match=f"{WNIDS[7]}.*classnames.txt.*LOC_synset_mapping.txt"):
        read("imagenet_a")


# --- absent, empty ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DEFINITIONS)
def test_absent_data_says_where_to_get_it(tmp_path, read, name):
    with pytest.raises(FileNotFoundError) as caught:
        read(name)
    message, definition = str(caught.value), DEFINITIONS[name]
    assert definition.where in message and "--root" in message and "\n" not in message
    assert str(tmp_path / definition.places[0][0]) in message
    assert ("DATASET.DOWNLOAD True" in message) == bool(definition.torchvision)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_says_so(tmp_path, read, monkeypatch):
    from torchvision.datasets import DTD

    def refuse(self):
        raise OSError("<urlopen error\n no route>")

    monkeypatch.setattr(DTD, "_download", refuse)
    with pytest.raises(InputError, match=r"DTD.*no route.*vgg/data/dtd.*--root"):
        read("dtd", "DATASET.DOWNLOAD", "True")


def test_an_empty_class_and_a_missing_list_are_named(tmp_path, read):
    images(tmp_path / "eurosat" / "2750", "Forest/1.jpg")
    (tmp_path / "eurosat" / "2750" / "River").mkdir()
    with pytest.raises(InputError, match="River holds no image"):
        read("eurosat")
    images(tmp_path / "dtd" / "images", "banded/1.jpg")
    with pytest.raises(FileNotFoundError, match="train1.txt"):
        read("dtd")


# --- halves of the classes ---------------------------------------------------------------------------------------------

@pytest.fixture
def five(tmp_path, read):
    for split in ("train", "test"):
        images(tmp_path / split, *(f"{name}/{i}.png" for name in "abcde" for i in range(4)))
    return read


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
    from utils.demo_faces import draw_dataset

    draw_dataset(tmp_path / "demo", train_per_class=2, test_per_class=2)
    everything = load_dataset(load_config("demo", options=options))
    base = load_dataset(load_config("demo", options=[*options, "DATASET.SUBSAMPLE_CLASSES", "base"]))
    whole = {item.path: item for item in everything.test}
    assert base.classnames == everything.classnames[:3] and base.test
    for item in base.test:
        kept = whole[item.path].distribution[:3]
        assert item.distribution == pytest.approx([share / sum(kept) for share in kept])
