"""LaFTer's classification data sets, each from a small copy of its real layout: CoOp's, torchvision's, or absent."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
from layouts import images, told, write

from utils.datasets.annotations import split_camel_case
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


# --- CoOp's split files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", COOP_SPLITS)
def test_coops_split_file_counts(tmp_path, read_dataset, name):
    folder, below, file = COOP_SPLITS[name]
    images(tmp_path / folder / below, "x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg", "y/unused.jpg")
    split = {"train": [["x/1.jpg", 1, "zebra crossing"], ["y/3.jpg", 0, "yak"]],
             "val": [["x/2.jpg", 1, "zebra crossing"]], "test": [["y/4.jpg", 0, "yak"]]}
    write(tmp_path / folder / file, json.dumps(split))
    splits = read_dataset(name)
    assert (splits.name, splits.classnames) == (name, ["yak", "zebra crossing"])
    assert told(splits) == {part: [tuple(row) for row in rows] for part, rows in split.items()}


def test_eurosats_folder_names_become_readable_from_either_source(tmp_path, read_dataset):
    folder = tmp_path / "eurosat" / "2750"
    for name in ("AnnualCrop", "Forest", "SeaLake"):
        images(folder, *(f"{name}/{name}_{i}.jpg" for i in range(10)))
    drawn = read_dataset("eurosat", "DATASET.TEST_FRACTION", "0.2")
    assert drawn.classnames == ["Annual Crop Land", "Forest", "Sea or Lake"]
    assert [Counter(item.label for item in part) for part in (drawn.train, drawn.val, drawn.test)] == [
        {0: 8, 1: 8, 2: 8}, {}, {0: 2, 1: 2, 2: 2}]
    write(tmp_path / "eurosat" / "split_zhou_EuroSAT.json", json.dumps({
        "train": [["SeaLake/SeaLake_1.jpg", 0, "SeaLake"]], "val": [],
        "test": [["SeaLake/SeaLake_2.jpg", 0, "SeaLake"]]}))
    assert read_dataset("eurosat").classnames == ["Sea or Lake"]


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
def test_a_split_file_that_cannot_be_right_says_why(tmp_path, read_dataset, split, words):
    images(tmp_path / "dtd" / "images", "x/1.jpg", "x/2.jpg")
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps(split))
    with pytest.raises(InputError) as caught:
        read_dataset("dtd")
    message = str(caught.value).replace("\\", "/")
    assert "\n" not in message and all(word in message for word in words), message


# --- the data sets' own lists, in CoOp's folder and in torchvision's ------------------------------------------------

@pytest.mark.parametrize("folder", ["caltech-101", "caltech101"])
def test_caltech101(tmp_path, read_dataset, folder):
    below = tmp_path / folder / "101_ObjectCategories"
    for name in ("Faces", "Faces_easy", "BACKGROUND_Google", "airplanes", "yin_yang"):
        images(below, *(f"{name}/image_{i:04d}.jpg" for i in range(4)))
    splits = read_dataset("caltech101", "DATASET.TEST_FRACTION", "0.5")
    assert splits.classnames == ["face", "airplane", "yin_yang"]  # sorted as the folders are
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 0, 6]


@pytest.mark.parametrize("folder", ["dtd", "dtd/dtd"])
def test_dtd(tmp_path, read_dataset, folder):
    rows = {"train": ["banded/banded_0002.jpg", "woven/woven_0001.jpg"], "val": ["banded/banded_0004.jpg"],
            "test": ["woven/woven_0009.jpg"]}
    for split, lines in rows.items():
        images(tmp_path / folder / "images", *lines)
        write(tmp_path / folder / "labels" / f"{split}1.txt", *lines)
    splits = read_dataset("dtd")
    assert splits.classnames == ["banded", "woven"]
    assert told(splits) == {split: [(line, int(line[0] == "w"), line.split("/")[0]) for line in lines]
                            for split, lines in rows.items()}


@pytest.mark.parametrize("folder", ["fgvc_aircraft", "fgvc-aircraft-2013b/data"])
def test_fgvc_aircraft(tmp_path, read_dataset, folder):
    write(tmp_path / folder / "variants.txt", "707-320", "Cessna 172", "F/A-18")
    for split, number, variant in (("train", 34958, "F/A-18"), ("val", 10, "707-320"), ("test", 77, "Cessna 172")):
        images(tmp_path / folder / "images", f"{number}.jpg")
        write(tmp_path / folder / f"images_variant_{split}.txt", f"{number} {variant}")
    splits = read_dataset("fgvc_aircraft")
    assert splits.classnames == ["707-320", "Cessna 172", "F/A-18"]
    assert told(splits) == {"train": [("34958.jpg", 2, "F/A-18")], "val": [("10.jpg", 0, "707-320")],
                            "test": [("77.jpg", 1, "Cessna 172")]}
    write(tmp_path / folder / "images_variant_test.txt", "77 Concorde")
    with pytest.raises(InputError, match="'Concorde'.*test"):
        read_dataset("fgvc_aircraft")
    write(tmp_path / folder / "images_variant_test.txt", "77")
    with pytest.raises(InputError, match="images_variant_test.txt, line 1.*2 fields"):
        read_dataset("fgvc_aircraft")


def test_food101(tmp_path, read_dataset):
    for split, lines in (("train", ["apple_pie/1005649", "waffles/5"]), ("test", ["apple_pie/7"])):
        images(tmp_path / "food-101" / "images", *(f"{line}.jpg" for line in lines))
        write(tmp_path / "food-101" / "meta" / f"{split}.txt", *lines)
    assert told(read_dataset("food101")) == {
        "train": [("apple_pie/1005649.jpg", 0, "apple_pie"), ("waffles/5.jpg", 1, "waffles")],
        "val": [], "test": [("apple_pie/7.jpg", 0, "apple_pie")]}


@pytest.mark.parametrize("folder, named", [("oxford_flowers", True), ("flowers-102", False)])
def test_flowers(tmp_path, read_dataset, folder, named):
    savemat = pytest.importorskip("scipy.io").savemat
    images(tmp_path / folder / "jpg", *(f"image_{i:05d}.jpg" for i in (1, 2, 3, 4)))
    savemat(tmp_path / folder / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 3]], dtype=np.uint8)})
    savemat(tmp_path / folder / "setid.mat", {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3]]}, do_compression=True)
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]  # the first of the 102
    if named:
        names = ["a", "b", "c"]
        write(tmp_path / folder / "cat_to_name.json", json.dumps({"2": "b", "1": "a", "3": "c"}))
    splits = read_dataset("oxford_flowers")
    assert splits.classnames == names
    assert told(splits) == {"train": [("image_00004.jpg", 2, names[2]), ("image_00001.jpg", 1, names[1])],
                            "val": [("image_00002.jpg", 0, names[0])], "test": [("image_00003.jpg", 1, names[1])]}
    (tmp_path / folder / "setid.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(30))
    with pytest.raises(InputError, match="setid.mat is no MATLAB file"):
        read_dataset("oxford_flowers")


def test_a_matlab_file_without_scipy_says_what_to_install(tmp_path, read_dataset, monkeypatch):
    images(tmp_path / "flowers-102" / "jpg", "image_00001.jpg")
    write(tmp_path / "flowers-102" / "imagelabels.mat", "x")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match="imagelabels.mat.*pip install scipy.*split_zhou"):
        read_dataset("oxford_flowers")


@pytest.mark.parametrize("folder", ["oxford_pets", "oxford-iiit-pet"])
def test_pets(tmp_path, read_dataset, folder):
    names = ["Abyssinian_100", "american_pit_bull_terrier_7", "Bombay_1", "Abyssinian_2"]
    images(tmp_path / folder / "images", *(f"{name}.jpg" for name in names))
    write(tmp_path / folder / "annotations" / "trainval.txt", *(f"{name} 1 1 1" for name in names[:3]))
    write(tmp_path / folder / "annotations" / "test.txt", f"{names[3]} 1 1 1")
    splits = read_dataset("oxford_pets")
    assert splits.classnames == ["abyssinian", "american_pit_bull_terrier", "bombay"]
    assert [label for _, label, _ in told(splits)["train"]] == [0, 1, 2]
    assert told(splits)["test"] == [("Abyssinian_2.jpg", 0, "abyssinian")]


def test_stanford_cars(tmp_path, read_dataset):
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
    splits = read_dataset("stanford_cars")
    assert splits.classnames == ["2000 AM General Hummer SUV", "2012 Acura RL Sedan"]
    assert [row[:2] for row in told(splits)["train"]] == [("cars_train/00001.jpg", 1), ("cars_train/00002.jpg", 0)]
    assert told(splits)["test"] == [("cars_test/00001.jpg", 1, "2012 Acura RL Sedan")]


@pytest.mark.parametrize("lists", [True, False])
def test_sun397(tmp_path, read_dataset, lists):
    folder, annotation = (tmp_path / "sun397",) * 2 if lists else (tmp_path, tmp_path / "SUN397")
    names = ["a/abbey/sun_1.jpg", "a/abbey/sun_2.jpg", "a/apartment_building/outdoor/sun_3.jpg",
             "a/apartment_building/outdoor/sun_4.jpg"]
    images(folder / "SUN397", *names)
    write(annotation / "ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    if lists:
        write(annotation / "Training_01.txt", *(f"/{name}" for name in names[::2]))
        write(annotation / "Testing_01.txt", *(f"/{name}" for name in names[1::2]))
    splits = read_dataset("sun397", "DATASET.TEST_FRACTION", "0.5")
    assert splits.classnames == ["abbey", "outdoor apartment_building"]
    assert [item.label for item in splits.train] == [item.label for item in splits.test] == [0, 1]
    if lists:
        assert [row[0] for row in told(splits)["train"]] == names[::2]


def test_ucf101(tmp_path, read_dataset):
    folder = tmp_path / "ucf101"
    images(folder / "UCF-101-midframes", "Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg", "Yo_Yo/v_YoYo_g01_c01.jpg",
           "Yo_Yo/v_YoYo_g02_c01.jpg")
    write(folder / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup", "101 YoYo")
    write(folder / "ucfTrainTestlist" / "trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 101")
    write(folder / "ucfTrainTestlist" / "testlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
          "YoYo/v_YoYo_g02_c01.avi")
    splits = read_dataset("ucf101")
    assert splits.classnames == ["Apply_Eye_Makeup", "Yo_Yo"]
    assert told(splits)["train"] == [("Yo_Yo/v_YoYo_g01_c01.jpg", 1, "Yo_Yo")]
    assert [label for _, label, _ in told(splits)["test"]] == [0, 1]
    assert split_camel_case("CleanAndJerk") == "Clean_And_Jerk"
