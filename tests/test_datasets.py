"""The table of readers: one's own folders, and the demo that draws itself. Emotion data sets have their own files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from utils.config import load_config
from utils.data.items import UNKNOWN, Splits
from utils.datasets.table import load_dataset
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
    uneven = folder(options=("DATASET.NUM_SHOTS", "[4, 1]"))
    assert Counter(item.classname for item in uneven.train) == {"a": 4, "b": 1} and uneven.test == splits.test


def test_shots_by_class_need_a_number_for_each_class_and_labels(folder):
    with pytest.raises(InputError, match="NUM_SHOTS has 3 numbers and mine 2 classes"):
        folder("train/a/1.png", "train/b/2.png", options=("DATASET.NUM_SHOTS", "[4, 1, 1]"))
    with pytest.raises(InputError, match=r"NUM_SHOTS is \[2.5\]; it must be a list of whole numbers"):
        folder(options=("DATASET.NUM_SHOTS", "[2.5]"))


def test_shots_by_class_are_refused_for_images_without_labels(folder):
    with pytest.raises(InputError, match="NUM_SHOTS .* without a label; give one number"):
        folder("train/1.png", "train/2.png", options=("DATASET.CLASSNAMES", "[a, b]", "DATASET.NUM_SHOTS", "[1, 2]"))


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
    ([], "train", ("DATASET.CLASSNAMES", "[a]"), ("train holds no training images",)),
    (["train/a/1.png"], "val", (), ("val holds no validation images", "fill or remove")),
    (["train/a/1.png"], "train/a/x.png", (), ("only the class 'a'",)),
    (["train/a/1.png", "train/Training/1.png", "training/a/1.png"], "", (), ("train and training", "keep one")),
    (["train/a/1.png", "train/b/1.png", "test/z/1.png"], "", ("DATASET.CLASSNAMES", "[a, b]"), ("test", "z", "a, b")),
    (["animals/train/a/1.png", "cars/1.png"], "", (), ("has no train/", "set --root", "animals")),
    (["1.png"], "", (), ("no class folders", "DATASET.CLASSNAMES")),
])
def test_a_folder_that_cannot_be_read_says_why(folder, tmp_path, names, empty, options, words):
    (tmp_path / "mine" / empty).mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        folder(*names, options=options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def told(splits: Splits) -> list[list[tuple[str, int]]]:
    """Of train, val and test: each image below the root and its label."""
    return [[(item.path.relative_to(splits.root).as_posix(), item.label) for item in split]
            for split in (splits.train, splits.val, splits.test)]


def test_class_folders_are_read_with_their_sub_folders(folder, tmp_path, caplog):
    for name in ("train/cat/.ipynb_checkpoints/1-checkpoint.png", "train/dog/._1.png", "train/.trash/1.png"):
        image(tmp_path / "mine" / name)
    for name in ("train/dog/notes.csv", "README.md", "train/cat/2024/IMG.CR2", "train/cat/IMG_2.CR2"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch()
    with caplog.at_level(logging.INFO):
        splits = folder("train/cat/2024/b/2.png", "train/cat/1.png", "train/dog/1.png", "test/cat/x/9.png",
                        options=("DATASET.VAL_FRACTION", "0"))
    assert told(splits) == [[("train/cat/1.png", 0), ("train/cat/2024/b/2.png", 0), ("train/dog/1.png", 1)], [],
                            [("test/cat/x/9.png", 0)]]
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert lines == ["left out: 3 hidden or system, 2 .cr2, 1 .csv, 1 .md; .cr2: convert it to JPEG or PNG"]


@pytest.mark.parametrize("train, val, test", [("train", "val", "test"), ("Train", "valid", "Testing"),
                                              ("training", "Validation", "test")])
def test_val_is_the_validation_split(folder, train, val, test):
    given = folder(*(f"{train}/{name}/{i}.png" for name in "ab" for i in range(4)), f"{val}/a/8.png", f"{val}/b/8.png",
                   f"{test}/b/9.png")
    assert told(given)[1:] == [[(f"{val}/a/8.png", 0), (f"{val}/b/8.png", 1)], [(f"{test}/b/9.png", 1)]]
    assert len(given.train) == 8


def test_with_val_alone_the_test_split_is_carved_from_train(folder):
    splits = folder(*(f"train/{name}/{i}.png" for name in "ab" for i in range(10)), "val/a/8.png", "val/b/8.png")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [14, 2, 6]
    assert not set(splits.train) & set(splits.test)


def test_what_lies_beside_train_is_named(folder, caplog):
    with caplog.at_level(logging.INFO):
        splits = folder("train/a/1.png", "train/b/1.png", "test/a/2.png", "raw/1.png", "more/c/1.png", "cover.png")
    assert len(splits.train) == 2 and splits.classnames == ["a", "b"]
    (line,) = [record for record in caplog.records if "not read" in record.getMessage()]
    assert line.levelname == "WARNING" and line.getMessage().endswith("mine: more/, raw/, 1 image(s)")


def test_class_folders_right_under_the_root(folder, caplog):
    with caplog.at_level(logging.INFO):
        splits = folder(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    assert [Counter(item.classname for item in split) for split in (splits.train, splits.val, splits.test)] == [
        {"cat": 6, "dog": 6}, {"cat": 1, "dog": 1}, {"cat": 3, "dog": 3}]
    assert "mine has no train/: what lies right in it is read as training images (folders: cat, dog)" in caplog.text
    given = folder("test/cat/1.png", "test/dog/1.png")
    assert len(given.test) == 2 and len(given.train) == 18 and given.classnames == ["cat", "dog"]


def test_unlabelled_images_right_under_the_root(folder):
    splits = folder("2.png", "10.png", "test/b/3.png", options=("DATASET.CLASSNAMES", "[a, b]"))
    assert told(splits) == [[("10.png", UNKNOWN), ("2.png", UNKNOWN)], [], [("test/b/3.png", 1)]]


@pytest.mark.parametrize("output", ["output", "."])
def test_what_runs_write_under_the_root_is_no_data(folder, tmp_path, monkeypatch, output):
    image(tmp_path / "mine" / output / "mine" / "LaFTer" / "demo" / "seed1" / "predictions.png")
    (tmp_path / "mine" / "cache").mkdir()  # of the texts
    monkeypatch.chdir(tmp_path / "mine")
    splits = folder(*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)), options=("OUTPUT_DIR", output))
    assert splits.classnames == ["cat", "dog"]


@pytest.mark.parametrize("train", ["train/", ""])
def test_folders_of_unlabelled_images_are_no_classes(folder, caplog, train):
    with caplog.at_level(logging.INFO):
        splits = folder(f"{train}b/2.png", f"{train}1.png", f"{train}a/x/3.png", f"{train}a-b/1.png",
                        options=("DATASET.CLASSNAMES", "[cat, dog]"))
    assert [item.path.relative_to(splits.root).as_posix() for item in splits.train] == [
        f"{train}{name}" for name in ("1.png", "a-b/1.png", "a/x/3.png", "b/2.png")]
    assert {item.label for item in splits.train} == {UNKNOWN} and splits.test == splits.train
    assert "is called like a class (a, a-b, b)" in caplog.text and "has no labels" in caplog.text


def test_class_folders_are_found_by_names_that_differ_in_case_and_spaces(folder):
    splits = folder("train/Red_Fox/1.png", "train/WOLF/1.png", "train/red  fox/2.png", "test/red fox/3.png",
                    options=("DATASET.CLASSNAMES", "[wolf, red fox]", "DATASET.VAL_FRACTION", "0"))
    assert [(item.path.parent.name, item.label, item.classname) for item in [*splits.train, *splits.test]] == [
        ("WOLF", 0, "wolf"), ("Red_Fox", 1, "red fox"), ("red  fox", 1, "red fox"), ("red fox", 1, "red fox")]
    alike = folder(options=("DATASET.CLASSNAMES", "[wolf, RED FOX, red fox]"))  # the very name comes first
    assert [item.label for item in alike.test] == [2]


def test_images_outside_the_class_folders_are_counted(folder, caplog):
    with caplog.at_level(logging.INFO):
        splits = folder("train/1.png", "train/a/1.png", "train/b/1.png", "test/a/1.png")
    assert Counter(item.label for item in splits.train) == {UNKNOWN: 1, 0: 1, 1: 1}
    assert "1 image(s) right in" in caplog.text and "are read without label" in caplog.text


# --- splits and classes that are too few ----------------------------------------------------------------------------

def test_one_class_alone_is_refused(folder):
    for options in ((), ("DATASET.CLASSNAMES", "[a]")):
        with pytest.raises(InputError, match="mine has only the class 'a'"):
            folder(*(f"train/a/{i}.png" for i in range(10)), options=options)
    for part in ("base", "new"):
        with pytest.raises(InputError, match=f"SUBSAMPLE_CLASSES {part}: of mine's 2 .* leaves 1: .*nothing to learn"):
            folder("train/b/1.png", options=("DATASET.SUBSAMPLE_CLASSES", part))


def test_an_empty_split_is_named(folder, caplog):
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(3)]
    with caplog.at_level(logging.INFO):
        splits = folder(*names)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [4, 0, 2]
    assert "validation split of mine is empty: DATASET.VAL_FRACTION 0.1 of each class's images is none" in caplog.text
    assert "no labels" not in caplog.text
    with pytest.raises(InputError, match=r"the test split of mine is empty: DATASET\.TEST_FRACTION 0\.1 .*raise it"):
        folder(options=("DATASET.TEST_FRACTION", "0.1"))
    caplog.clear()
    with caplog.at_level(logging.INFO):  # what is asked for is no surprise
        assert folder(options=("DATASET.TEST_FRACTION", "0", "DATASET.VAL_FRACTION", "0")).test == []
    assert "empty" not in caplog.text


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
