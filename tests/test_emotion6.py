"""Emotion6 by hand, from its own table of votes and from a JSON of them; and the real one, where it is."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from utils.config import PROJECT, load_config
from utils.data.items import Splits
from utils.datasets.emotions import votes_label
from utils.datasets.table import load_dataset
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



# --- the votes as JSON ----------------------------------------------------------------------------------------------

def entry(keyword: str, **votes: float) -> dict:
    """A row of Emotion6.json; `dominant_emotion` is wrong on purpose: the votes decide."""
    return {"true_emotion": keyword, "dominant_emotion": "sadness", "emotions": {**dict.fromkeys(SIX, 0), **votes}}


ENTRIES = {  # ROWS as JSON: percentages, other orders of emotions, paths with and without images/
    "anger/1.jpg": entry("anger", neutral=25, disgust=25, anger=50),
    "images/joy/2.jpg": entry("joy", joy=20, sadness=20, surprise=10, neutral=50),
    "fear\\3.jpg": entry("fear", neutral=20, sadness=10, joy=30, fear=10, anger=30),
    "images\\surprise\\4.jpg": entry("surprise", neutral=100),
    "sadness/5.jpg": entry("sadness", disgust=10, joy=60, sadness=30, neutral=0),
}


@pytest.fixture
def as_json(emotion6, tmp_path):
    """Puts Emotion6.json in the place of ground_truth.txt and reads it."""

    def read(*options: str, entries: object = ENTRIES) -> Splits:
        emotion6()
        (tmp_path / "Emotion6" / "ground_truth.txt").unlink()
        text = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / "Emotion6" / "Emotion6.json").write_text(text, encoding="utf-8")
        whole = ("DATASET.ROOT", str(tmp_path), "DATASET.TEST_FRACTION", "0", "DATASET.VAL_FRACTION", "0")
        return load_dataset(load_config("emotion6", options=[*whole, *options]))

    return read


@pytest.mark.parametrize("options", [(), ("DATASET.LABEL_SOURCE", "keyword"), ("DATASET.NEUTRAL", "keep")],
                         ids=["votes", "keyword", "neutral"])
def test_the_json_gives_what_the_table_gives(emotion6, as_json, options, caplog):
    table = emotion6(*options)
    with caplog.at_level(logging.INFO):
        splits = as_json(*options)
    assert splits.classnames == table.classnames and len(splits.train) == len(table.train)
    for item, expected in zip(splits.train, table.train):
        assert (item.path, item.label, item.classname) == (expected.path, expected.label, expected.classname)
        assert item.distribution == pytest.approx(expected.distribution, abs=1e-12)
    assert "Emotion6 (Emotion6.json)" in caplog.text


def test_the_table_goes_before_the_json(emotion6, tmp_path, caplog):
    (tmp_path / "Emotion6").mkdir()
    (tmp_path / "Emotion6" / "Emotion6.json").write_text("damaged", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert len(emotion6().train) == 4
    assert "Emotion6 (ground_truth.txt)" in caplog.text


def test_neutral_may_be_absent_from_the_json_only_where_it_is_dropped(as_json):
    entries = {"anger/1.jpg": entry("anger", anger=3, disgust=1)}
    assert as_json(entries=entries).train[0].distribution == (0.75, 0.25, 0, 0, 0, 0)
    with pytest.raises(InputError, match=r"Emotion6.json, 'anger/1.jpg': emotion 'neutral' is there 0 times"):
        as_json("DATASET.NEUTRAL", "keep", entries=entries)


@pytest.mark.parametrize("row, words", [
    (entry("rage", anger=1), ("rage", "anger, disgust")),
    (entry("anger", rage=1), ("rage", "anger, disgust")),
    ({"true_emotion": "anger", "emotions": {"anger": 1, "joy": 1}}, ("'disgust' is there 0 times",)),
    (entry("anger", sad=1), ("'sadness' is there 2 times",)),
    (entry("anger"), ("all 0",)),
    (entry("anger", anger="much"), ("much",)),
    (entry("anger", anger=None), ("no number",)),
    (entry("anger", anger=-1), ("negative",)),
    (entry("anger", anger=float("nan")), ("finite",)),
    (entry("anger", anger=float("inf")), ("finite",)),
    ({"emotions": {"anger": 1}}, ("true_emotion",)),
    ({"true_emotion": "anger", "emotions": [1, 0, 0, 0, 0, 0]}, ("'emotions'",)),
    ("anger", ("true_emotion",)),
])
def test_a_bad_entry_is_named_by_file_and_image(as_json, row, words):
    with pytest.raises(InputError) as caught:
        as_json(entries={**ENTRIES, "anger/1.jpg": row})
    message = str(caught.value)
    assert "Emotion6.json, 'anger/1.jpg'" in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("entries, match", [
    ('{"anger/1.jpg": ', "Emotion6.json is no valid JSON.*line 1"),
    ([], "Emotion6.json must hold an object"),
    ({"anger/99.jpg": entry("anger", anger=1)}, r"anger.99\.jpg is missing"),
    ({name: entry("anger", anger=1) for name in ("anger/1.jpg", "images/anger/1.jpg")}, r"1\.jpg.*more than once"),
    ({"../secret.jpg": entry("anger", anger=1)}, r"'\.\./secret.jpg' must be a path inside"),
    ({"C:\\1.jpg": entry("anger", anger=1)}, "must be a path inside"),
    ({}, "no training images"),
])
def test_a_bad_json_is_refused(as_json, entries, match):
    with pytest.raises(InputError, match=match) as caught:
        as_json(entries=entries)
    assert "\n" not in str(caught.value)
