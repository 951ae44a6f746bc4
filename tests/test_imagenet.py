"""ImageNet, its variants and their names: CLIP's 1,000, LaFTer's splits of -A, -R and -S."""

from __future__ import annotations

import importlib.util
import json
import logging
import runpy
from pathlib import Path

import pytest
from layouts import images, told, write

import LaFTer
from tests.conftest import CLASSNAMES
from tests.tiny_run import make_inputs
from utils.config import load_config
from utils.datasets.annotations import IMAGENET_CLASSNAMES, read_lines
from utils.datasets.table import check_classnames
from utils.errors import InputError

NAMES = dict(line.split(" ", 1) for line in read_lines(IMAGENET_CLASSNAMES))
WNIDS = list(NAMES)
FOLDERS = {"imagenet_a": "imagenet-a", "imagenet_r": "imagenet-r", "imagenet_s": "sketch"}
# facts of ILSVRC2012: wnid, label and a word of the synset
KNOWN = (("n01440764", 0, "tench"), ("n01443537", 1, "goldfish"), ("n02085620", 151, "Chihuahua"),
         ("n02123045", 281, "tabby cat"), ("n03393912", 565, "freight car"), ("n07753592", 954, "banana"),
         ("n15075141", 999, "toilet paper"))


# --- the names -------------------------------------------------------------------------------------------------------

def test_the_shipped_names_are_a_thousand_in_label_order():
    assert len(read_lines(IMAGENET_CLASSNAMES)) == len(NAMES) == 1000 and sorted(WNIDS) == WNIDS
    check_classnames(list(NAMES.values()))
    assert len({name.lower() for name in NAMES.values()}) == 1000
    for wnid, label, name in KNOWN:
        assert (WNIDS[label], NAMES[wnid]) == (wnid, name)


def test_the_shipped_names_are_clips_but_for_two():
    package = importlib.util.find_spec("open_clip") or pytest.skip("open_clip_torch is not installed")
    metadata = runpy.run_path(str(Path(package.origin).with_name("zero_shot_metadata.py")))
    differ = {(wnid, theirs, name) for (wnid, name), theirs in zip(NAMES.items(), metadata["IMAGENET_CLASSNAMES"])
              if name != theirs}
    assert differ == {("n04008634", "missile", "projectile"), ("n04355933", "sunglasses", "sunglass")}


def test_the_two_changed_names_are_words_of_their_synsets():
    """torchvision tells each class by a word of its synset, in label order."""
    from torchvision.models import ResNet18_Weights

    words = dict(zip(WNIDS, ResNet18_Weights.IMAGENET1K_V1.meta["categories"]))
    assert {wnid: words[wnid] for wnid in ("n04008634", "n03773504", "n04355933", "n04356056")} == {
        "n04008634": "projectile", "n03773504": "missile", "n04355933": "sunglass", "n04356056": "sunglasses"}
    same = sum(words[wnid].lower() == name.lower() for wnid, name in NAMES.items())
    assert same > 600  # a shifted list would agree nowhere


@pytest.mark.parametrize("below", ["images", "."])
def test_imagenet_needs_no_file_of_names(tmp_path, read_dataset, below):
    for split, wnid, image in (("train", 1, "b"), ("train", 0, "a"), ("val", 1, "c"), ("val", 0, "d")):
        images(tmp_path / "imagenet" / below, f"{split}/{WNIDS[wnid]}/{image}.JPEG")
    splits = read_dataset("imagenet")
    assert splits.classnames == ["tench", "goldfish"] and splits.val == []
    assert [(item.path.name, item.label) for item in splits.train] == [("a.JPEG", 0), ("b.JPEG", 1)]
    assert [(item.path.name, item.label) for item in splits.test] == [("d.JPEG", 0), ("c.JPEG", 1)]


@pytest.mark.parametrize("place", ["imagenet-a", "imagenet"])
def test_names_of_ones_own_count_unless_two_classes_share_them(tmp_path, read_dataset, place):
    missiles = ["n03773504", "n04008634"]
    images(tmp_path / "imagenet-a", *(f"{wnid}/1.jpg" for wnid in ["n01440764", *missiles]))
    write(tmp_path / place / "classnames.txt", "n01440764 an old fish", *(f"{wnid} missile" for wnid in missiles))
    splits = read_dataset("imagenet_a", "DATASET.TEST_FRACTION", "0")
    assert splits.classnames == ["an old fish", "missile", "projectile"]


def test_a_stranger_among_the_classes_is_named(tmp_path, read_dataset):
    images(tmp_path / "imagenet-a", "n01440764/1.jpg", "n99999999/1.jpg")
    with pytest.raises(InputError, match="n99999999 is none of ImageNet's 1,000 classes.*classnames.txt"):
        read_dataset("imagenet_a")
    write(tmp_path / "imagenet-a" / "classnames.txt", "n99999999 unicorn")
    assert read_dataset("imagenet_a", "DATASET.TEST_FRACTION", "0").classnames == ["tench", "unicorn"]


# --- what of the variants trains and what is scored ------------------------------------------------------------------

@pytest.fixture
def variant(tmp_path, read_dataset):
    """variant(name, KEY, value, …) → the splits of three classes of 10, 20 and 30 images, as the YAML has them."""

    def read(name: str, *options: str):
        for label, count in ((7, 10), (70, 20), (700, 30)):
            images(tmp_path / FOLDERS[name] / WNIDS[label], *(f"{i}.jpg" for i in range(count)))
        return read_dataset(name, "DATASET.VAL_FRACTION", "0", *options)

    return read


@pytest.mark.parametrize("name, folder", [("imagenet_a", "imagenet-adversarial/imagenet-a"),
                                          ("imagenet_r", "imagenet-rendition/imagenet-r"),
                                          ("imagenet_s", "imagenet-sketch/images"),
                                          ("imagenet_s", "imagenet-sketch/sketch")])
def test_coops_places_of_the_variants(tmp_path, read_dataset, name, folder):
    images(tmp_path / folder / WNIDS[999], *(f"{i}.jpg" for i in range(5)))
    splits = told(read_dataset(name))
    everything = [(f"{WNIDS[999]}/{i}.jpg", 0, "toilet paper") for i in range(5)]
    assert len(splits["train"]) == 4 and splits["val"] == []
    if name == "imagenet_r":
        assert splits["test"] == everything
    else:
        assert len(splits["test"]) == 1 and sorted(splits["train"] + splits["test"]) == everything


@pytest.mark.parametrize("name", FOLDERS)
def test_eighty_percent_train_as_published(variant, name, caplog):
    with caplog.at_level(logging.INFO):
        splits = variant(name)
    assert ("scored on all its images" in caplog.text) == (name == "imagenet_r")
    train, test = ({item.path for item in part} for part in (splits.train, splits.test))
    assert [sum(item.label == label for item in splits.train) for label in range(3)] == [8, 16, 24]
    if name == "imagenet_r":
        assert len(splits.test) == len(test) == 60 and train < test
    else:
        assert len(splits.test) == len(test) == 12 and not train & test
    assert splits.val == [] and variant(name) == splits
    assert {item.path for item in variant(name, "SEED", "2").train} != train  # a random 80 %


@pytest.mark.parametrize("name", FOLDERS)
def test_all_can_train_and_be_scored(variant, name):
    splits = variant(name, "DATASET.TEST_FRACTION", "0", "DATASET.TEST_IMAGES", "all")
    assert splits.test == splits.train and len(splits.train) == 60


@pytest.mark.parametrize("name", FOLDERS)
def test_the_yaml_carves_no_validation_images(name):
    dataset = load_config(name).DATASET
    assert (dataset.TEST_FRACTION, dataset.VAL_FRACTION) == (0.2, 0)
    assert (dataset.TEST_IMAGES == "all") == (name == "imagenet_r")


def test_what_trained_with_labels_is_not_scored(variant):
    labels = ("TRAIN.SUPERVISION", "labels")
    with pytest.raises(InputError, match="DATASET.TEST_IMAGES all.*held_out"):
        variant("imagenet_r", *labels)
    splits = variant("imagenet_r", *labels, "DATASET.TEST_IMAGES", "held_out")
    assert len(splits.test) == 12 and not {i.path for i in splits.train} & {i.path for i in splits.test}


def test_a_run_without_validation_images_keeps_its_last_epoch(tmp_path):
    make_inputs(tmp_path)
    (tmp_path / "imagenet-r").mkdir()
    for wnid, name in zip(WNIDS, CLASSNAMES):
        (tmp_path / "data" / "train" / name).rename(tmp_path / "imagenet-r" / wnid)
    result = LaFTer.main(["--dataset-config-file", "imagenet_r", "--root", str(tmp_path), "--backbone",
                          str(tmp_path / "clip.pt"), "--output-dir", str(tmp_path / "runs"), "--exp-name", "r",
                          "--device", "cpu", "--epochs", "3", "--batch_size", "7", "--workers", "0",
                          "DATASET.PARTIAL", "True", "PROMPT_NUM", "4", "PICTURES", "False", "TEXT.EPOCHS", "5",
                          "TEXT.CACHE_DIR", str(tmp_path / "cache")])
    assert set(result["splits"]) == {"test"} and (result["best_epoch"], result["epochs"]) == (3, 3)
    split = json.loads(next(tmp_path.glob("runs/**/split.json")).read_text(encoding="utf-8"))
    assert split["classnames"] == ["tench", "goldfish", "great white shark"]
    assert [len(split[part]) for part in ("train", "val", "test")] == [18, 0, 21]  # of seven of each class one is kept
