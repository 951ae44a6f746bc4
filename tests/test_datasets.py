"""The table of readers: one's own folders, and the demo that draws itself. Emotion data sets have their own files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from utils.config import load_config
from utils.data import UNKNOWN, Splits
from utils.datasets import load_dataset
from utils.errors import InputError

SIX = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]


def image(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


# --- one's own folders ----------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    """Images in a user's layout, and its reader."""

    def read(*names: str, options: tuple[str, ...] = ()) -> Splits:
        for name in names:
            image(tmp_path / "mine" / name)
        return load_dataset(load_config("folder", options=["DATASET.ROOT", str(tmp_path / "mine"), *options]))

    return read


def test_a_labelled_folder(folder):
    splits = folder("train/dog/1.JPG", "train/dog/2.png", "train/cat/1.webp", "test/cat/9.png", "test/dog/8.bmp",
                    options=("DATASET.VAL_FRACTION", "0"))
    assert (splits.name, splits.classnames) == ("mine", ["cat", "dog"])
    assert [(item.path.name, item.label, item.classname) for item in splits.train] == [
        ("1.webp", 0, "cat"), ("1.JPG", 1, "dog"), ("2.png", 1, "dog")]
    assert [(item.path.name, item.label) for item in splits.test] == [("9.png", 0), ("8.bmp", 1)]
    assert splits.val == [] and all(item.distribution is None for item in splits.train)


def test_a_labelled_folder_without_a_test_split_is_carved(folder):
    splits = folder(*(f"train/{name}/{i}.png" for name in "ab" for i in range(10)))
    assert [Counter(item.classname for item in split) for split in (splits.train, splits.val, splits.test)] == [
        {"a": 6, "b": 6}, {"a": 1, "b": 1}, {"a": 3, "b": 3}]
    few = folder(options=("DATASET.NUM_SHOTS", "2"))
    assert Counter(item.classname for item in few.train) == {"a": 2, "b": 2}
    assert (few.val, few.test) == (splits.val, splits.test) and set(few.train) < set(splits.train)


@pytest.mark.parametrize("way", ["list", "file"])
def test_an_unlabelled_folder_with_class_names(folder, tmp_path, way):
    (tmp_path / "names.txt").write_text("red fox\n\n größe \n", encoding="utf-8")
    names = {"list": "[red fox, größe]", "file": str(tmp_path / "names.txt")}[way]
    splits = folder("train/1.png", "train/2.png", options=("DATASET.CLASSNAMES", names))
    assert splits.classnames == ["red fox", "größe"]
    assert [item.label for item in splits.train] == [UNKNOWN, UNKNOWN]
    assert (splits.test, splits.val) == (splits.train, [])


def test_an_unlabelled_folder_with_a_labelled_test_split(folder):
    splits = folder("train/1.png", "train/2.png", "test/a/3.png", options=("DATASET.CLASSNAMES", "[a, b]"))
    assert [item.label for item in splits.train] == [UNKNOWN] * 2 and [item.label for item in splits.test] == [0]


@pytest.mark.parametrize("names, empty, options, words", [
    (["train/a/1.png"], "", ("DATASET.CLASSNAMES", "[a, b, a]"), ("duplicated", "'a'")),
    (["train/a/1.png"], "train/b", (), ("b", "no image")),
    (["train/a/1.png", "train/c/1.png"], "", ("DATASET.CLASSNAMES", "[a, b]"), ("train", "c", "a, b")),
    (["train/a/1.png", "test/z/1.png"], "", (), ("test", "z")),
    (["train/1.png"], "", (), ("DATASET.CLASSNAMES",)),
    ([], "train", ("DATASET.CLASSNAMES", "[a]"), ("no training images",)),
])
def test_a_folder_that_cannot_be_read_says_why(folder, tmp_path, names, empty, options, words):
    (tmp_path / "mine" / empty).mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        folder(*names, options=options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_absent_folders_and_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="mine.*--root"):
        folder()
    with pytest.raises(FileNotFoundError, match="train"):
        folder("test/a/1.png")
    with pytest.raises(FileNotFoundError, match="nameless.txt"):
        folder("train/1.png", options=("DATASET.CLASSNAMES", "nameless.txt"))


def test_a_split_file_stands_in_for_the_draw(folder, tmp_path):
    splits = folder(*(f"train/{name}/{i}.png" for name in "ab" for i in range(10)))
    splits.save(tmp_path / "split.json")
    assert folder(options=("SEED", "5")) != splits  # another draw
    assert folder(options=("SEED", "5", "DATASET.SPLIT_FILE", str(tmp_path / "split.json"))) == splits
    with pytest.raises(FileNotFoundError, match="no-split.json"):
        folder(options=("DATASET.SPLIT_FILE", "no-split.json"))


# --- the demo, and the table ----------------------------------------------------------------------------------------

def test_the_demo_draws_itself_once(tmp_path, caplog):
    cfg = load_config("demo", options=["DATASET.ROOT", str(tmp_path)])
    with caplog.at_level(logging.INFO):
        splits = load_dataset(cfg)
    assert "drawing" in caplog.text
    assert sorted(splits.classnames) == SIX and splits.name == "demo"
    counts = [Counter(item.classname for item in getattr(splits, name)) for name in ("train", "val", "test")]
    assert all(len(set(count.values())) == 1 and len(count) == 6 for count in counts)
    assert len(splits.train) > 2 * len(splits.val) > 0 and len(splits.test) > 100
    assert not {item.path for item in splits.train} & {item.path for item in [*splits.val, *splits.test]}
    for item in [*splits.train, *splits.val, *splits.test]:
        assert sum(item.distribution) == pytest.approx(1, abs=1e-5) and min(item.distribution) >= 0
        assert item.distribution[item.label] == max(item.distribution)
        assert splits.classnames[item.label] == item.classname
    caplog.clear()
    assert load_dataset(cfg) == splits
    assert "drawing" not in caplog.text


def test_a_foreign_folder_in_the_demos_place_is_refused(tmp_path):
    image(tmp_path / "demo" / "holiday.png")
    with pytest.raises((InputError, FileNotFoundError), match="demo"):
        load_dataset(load_config("demo", options=["DATASET.ROOT", str(tmp_path)]))
    assert (tmp_path / "demo" / "holiday.png").is_file()


def test_an_unknown_data_set_lists_the_known():
    with pytest.raises(InputError, match="imagenet22k.*demo.*emotion6.*folder"):
        load_dataset(load_config(options=["DATASET.NAME", "imagenet22k"]))
