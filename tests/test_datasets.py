"""The readers of the data sets: Emotion6's votes by hand, one's own folders, the demo that draws itself."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from utils.config import PROJECT, load_config
from utils.data import UNKNOWN, Splits
from utils.datasets import load_dataset, votes_label
from utils.errors import InputError

DATA = Path(os.environ.get("LAFTER_DATA", PROJECT.parent / "shared" / "data"))
SIX = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]
HEADER = "\t".join(["[image_filename]", "[valence]", "[arousal]", *(f"[prob. {name}]" for name in [*SIX, "neutral"])])
ROWS = [
    "anger/1.jpg\t2.5\t3.8\t0.5\t0.25\t0\t0\t0\t0\t0.25",
    "joy/2.jpg\t6\t5\t0\t0\t0\t0.2\t0.2\t0.1\t0.5",  # joy and sadness tie: the keyword is among them
    "fear/3.jpg\t4\t4\t0.3\t0\t0.1\t0.3\t0.1\t0\t0.2",  # anger and joy tie, not the keyword: the first
    "surprise/4.jpg\t5\t5\t0\t0\t0\t0\t0\t0\t1",  # nothing but neutral
    "sadness/5.jpg\t6\t5\t0\t0.1\t0\t0.6\t0.3\t0\t0",  # the votes say joy
]


def image(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


@pytest.fixture
def emotion6(tmp_path):
    """Writes a small copy of Emotion6's layout and reads it, everything into the training split."""

    def read(*options: str, rows: list[str] = ROWS) -> Splits:
        for row in ROWS:
            image(tmp_path / "Emotion6" / "images" / row.split("\t")[0])
        text = "\n".join([HEADER, *rows]) + "\n"
        (tmp_path / "Emotion6" / "ground_truth.txt").write_text(text, encoding="utf-8")
        whole = ("DATASET.ROOT", str(tmp_path), "DATASET.TEST_FRACTION", "0", "DATASET.VAL_FRACTION", "0")
        return load_dataset(load_config("emotion6", options=[*whole, *options]))

    return read


def by_name(splits: Splits) -> dict:
    return {item.path.name: item for item in splits.train}


def test_emotion6_by_hand(emotion6, caplog):
    with caplog.at_level(logging.INFO):
        splits = emotion6()
    assert (splits.name, splits.classnames) == ("emotion6", SIX)
    items = by_name(splits)
    expected = {"1.jpg": ("anger", (2 / 3, 1 / 3, 0, 0, 0, 0)), "2.jpg": ("joy", (0, 0, 0, 0.4, 0.4, 0.2)),
                "3.jpg": ("anger", (0.375, 0, 0.125, 0.375, 0.125, 0)), "5.jpg": ("joy", (0, 0.1, 0, 0.6, 0.3, 0))}
    assert set(items) == set(expected)
    for name, (label, distribution) in expected.items():
        assert (items[name].classname, items[name].label) == (label, SIX.index(label))
        assert items[name].distribution == pytest.approx(distribution, abs=1e-12)
        assert items[name].path.is_file()
    assert "4 images, 1 left out" in caplog.text and "for 2" in caplog.text


def test_emotion6_labels_by_keyword_keep_the_votes_distribution(emotion6):
    items, voted = by_name(emotion6("DATASET.LABEL_SOURCE", "keyword")), by_name(emotion6())
    assert {name: item.classname for name, item in items.items()} == {
        "1.jpg": "anger", "2.jpg": "joy", "3.jpg": "fear", "5.jpg": "sadness"}
    assert all(items[name].distribution == voted[name].distribution for name in items)
    assert all(item.label == SIX.index(item.classname) for item in items.values())


def test_emotion6_with_neutral_kept(emotion6):
    splits = emotion6("DATASET.NEUTRAL", "keep")
    items = by_name(splits)
    assert splits.classnames == [*SIX, "neutral"] and len(items) == 5
    assert {name: item.classname for name, item in items.items()} == {
        "1.jpg": "anger", "2.jpg": "neutral", "3.jpg": "anger", "4.jpg": "neutral", "5.jpg": "joy"}
    assert items["1.jpg"].distribution == pytest.approx((0.5, 0.25, 0, 0, 0, 0, 0.25))
    assert items["4.jpg"].distribution == (0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("votes, keyword, expected", [
    ([0.1, 0.7, 0.2], 0, 1), ([0.4, 0.4, 0.2], 1, 1), ([0.4, 0.4, 0.2], 0, 0), ([0.2, 0.4, 0.4], 0, 1),
    ([1 / 3, 1 / 3, 1 / 3], 2, 2),
])
def test_ties_go_to_the_keyword_among_them_else_to_the_first(votes, keyword, expected):
    assert votes_label(votes, keyword) == expected


@pytest.mark.parametrize("bad, words", [
    ("anger/1.jpg\t2.5\t3.8\t0.5\t0.25\t0\t0\t0\t0.25", ("9 columns",)),
    ("anger/1.jpg\t2.5\t3.8\t0.5\thalf\t0\t0\t0\t0\t0.25", ("half",)),
    ("anger/1.jpg\t2.5\t3.8\t0\t0\t0\t0\t0\t0\t0", ("all 0",)),
    ("anger/1.jpg\t2.5\t3.8\t0.5\t-0.5\t0\t0\t0\t0\t1", ("-0.5",)),
    ("anger/1.jpg\t2.5\t3.8\t0.5\tnan\t0\t0\t0\t0\t1", ("nan",)),
    ("rage/1.jpg\t2.5\t3.8\t0.5\t0.5\t0\t0\t0\t0\t0", ("rage", "anger")),
])
def test_a_bad_row_is_named_by_file_and_line(emotion6, bad, words):
    with pytest.raises(InputError) as caught:
        emotion6(rows=[*ROWS[1:3], bad, ROWS[4]])
    message = str(caught.value)
    assert "ground_truth.txt, line 4" in message and "\n" not in message
    assert all(word in message for word in words), message


def test_what_is_missing_is_named(emotion6, tmp_path):
    with pytest.raises(InputError, match=r"anger.99\.jpg is missing"):
        emotion6(rows=[*ROWS, ROWS[0].replace("/1.jpg", "/99.jpg")])
    (tmp_path / "Emotion6" / "ground_truth.txt").unlink()
    with pytest.raises(FileNotFoundError, match="ground_truth.txt"):
        load_dataset(load_config("emotion6", options=["DATASET.ROOT", str(tmp_path)]))
    with pytest.raises(FileNotFoundError, match="Emotion6.*--root"):
        load_dataset(load_config("emotion6", options=["DATASET.ROOT", str(tmp_path / "nowhere")]))


@pytest.mark.skipif(not (DATA / "Emotion6").is_dir(), reason="the images of Emotion6 are not here (LAFTER_DATA)")
def test_the_real_emotion6():
    with (DATA / "Emotion6" / "ground_truth.txt").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    neutral = moved = 0  # counted without the reader
    for row in rows:
        votes = dict(zip(SIX, map(float, row[3:9])))
        tied = [name for name in SIX if votes[name] == max(votes.values())]
        neutral += max(votes.values()) == 0
        moved += row[0].split("/")[0] not in tied
    assert (len(rows), neutral, moved) == (1980, 0, 826)

    splits = {source: load_dataset(load_config("emotion6", options=["DATASET.ROOT", str(DATA),
                                                                    "DATASET.LABEL_SOURCE", source]))
              for source in ("votes", "keyword")}
    items = [item for split in ("train", "val", "test") for item in getattr(splits["votes"], split)]
    assert len({item.path for item in items}) == len(items) == 1980
    assert Counter(item.path.parent.name for item in items) == dict.fromkeys(SIX, 330)
    assert sum(item.classname != item.path.parent.name for item in items) == 826
    assert all(sum(item.distribution) == pytest.approx(1, abs=1e-12) and len(item.distribution) == 6 for item in items)
    keyword = splits["keyword"]
    sizes = [Counter(item.classname for item in getattr(keyword, split)) for split in ("train", "val", "test")]
    assert sizes == [dict.fromkeys(SIX, count) for count in (208, 23, 99)]  # 0.3 of 330, then 0.1 of the rest


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
