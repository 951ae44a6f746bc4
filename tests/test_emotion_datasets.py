"""The data sets in Mikels' eight emotions, each on a small copy of its layout; distributions computed by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from utils.config import load_config
from utils.data.items import Item, Splits
from utils.data.loader import build_loader
from utils.data.views import WeakView
from utils.datasets.emotions import MIKELS
from utils.datasets.table import load_dataset
from utils.emotion_circle import circular_distances, class_distances
from utils.errors import InputError

WHEEL = ["fear", "excitement", "awe", "contentment", "amusement", "anger", "disgust", "sadness"]
ALPHABET = sorted(WHEEL)
PUBLISHED = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"]  # of Flickr_LDL
ALL = ("DATASET.TEST_FRACTION", "0", "DATASET.VAL_FRACTION", "0")  # everything into the training split


def image(path: Path, red: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 2, 3)).save(path)


@pytest.fixture
def write(tmp_path):
    """Writes files under the root: text as it stands, anything else as JSON."""

    def into(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (bytes, str)) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return into


@pytest.fixture
def load(tmp_path):
    return lambda name, *options: load_dataset(load_config(name, options=["DATASET.ROOT", str(tmp_path), *options]))


def labels(items: list[Item]) -> dict[str, str]:
    assert all(item.label == WHEEL.index(item.classname) for item in items)
    return {item.path.name: item.classname for item in items}


@pytest.mark.parametrize("name", ["abstract", "artphoto", "emoset", "flickr_ldl", "twitter_ldl"])
def test_each_yaml_holds_the_wheel(name):
    cfg = load_config(name)
    assert name == cfg.DATASET.NAME
    assert list(MIKELS) == cfg.DATASET.CIRCLE == WHEEL
    assert torch.equal(class_distances(MIKELS, cfg.DATASET.CIRCLE), circular_distances(8))
    assert cfg.DATASET.TEMPLATES and all(template.count("{}") == 1 for template in cfg.DATASET.TEMPLATES)
    assert (cfg.DATASET.DISTRIBUTION_STRATEGY == "strategy1") == (name in ("artphoto", "emoset"))


# --- EmoSet ---------------------------------------------------------------------------------------------------------

SPLITS = {"train": ["sadness", "awe", "amusement"], "val": ["fear"], "test": ["anger", "sadness"]}
FLAT = {"label2idx": {name: i for i, name in enumerate(ALPHABET)}, "idx2label": dict(enumerate(ALPHABET))}
NESTED = {"emotion": {"label2idx": {name: i for i, name in enumerate(PUBLISHED)}}, "scene": {"label2idx": {"sky": 0}}}


def emoset_row(split: str, number: int, emotion: str, fields: int = 3) -> list:
    name = f"{emotion}/{split}_{number:05d}"
    return [emotion, f"image/{name}.jpg", f"annotation/{name}.json", number][:fields]


@pytest.fixture
def emoset(write, load, tmp_path):
    def read(info: object = FLAT, fields: int = 3, folder: str = "EmoSet", **changed: object) -> Splits:
        write(f"{folder}/info.json", info)
        for split, emotions in SPLITS.items():
            rows = [emoset_row(split, i, emotion, fields) for i, emotion in enumerate(emotions)]
            for row in rows:
                image(tmp_path / folder / row[1])
                write(f"{folder}/{row[2]}", {"emotion": row[0], "brightness": 0.5})
            write(f"{folder}/{split}.json", changed.get(split, rows))
        return load("emoset")

    return read


@pytest.mark.parametrize("folder", ["EmoSet", "EmoSet-118K"])
@pytest.mark.parametrize("fields", [3, 4])
@pytest.mark.parametrize("info", [FLAT, NESTED, json.dumps(FLAT).encode("utf-8-sig")], ids=["flat", "nested", "mark"])
def test_emoset_in_its_official_splits(emoset, info, fields, folder, caplog):
    with caplog.at_level(logging.INFO):
        splits = emoset(info, fields, folder)
    assert (splits.name, splits.classnames) == ("emoset", WHEEL)
    for split, emotions in SPLITS.items():
        items = getattr(splits, split)
        assert [item.classname for item in items] == emotions
        assert [item.path.name for item in items] == [f"{split}_{i:05d}.jpg" for i in range(len(emotions))]
        assert list(labels(items).values()) == emotions and all(item.distribution is None for item in items)
        assert all(item.path.parent.name == item.classname and item.path.is_file() for item in items)
    assert "8 classes, 3 train, 1 val, 2 test" in caplog.text


def test_a_part_of_emoset_has_the_classes_that_its_info_names(emoset):
    part = ["sadness", "anger", "fear", "awe", "amusement"]
    splits = emoset({"label2idx": {name: i for i, name in enumerate(part)}})
    assert splits.classnames == ["fear", "awe", "amusement", "anger", "sadness"]  # the wheel's order
    assert [item.label for item in splits.train] == [4, 1, 2]


@pytest.mark.parametrize("info, match", [
    ({"label2idx": {**FLAT["label2idx"], "boredom": 8}}, "info.json.*'boredom' is none of the emotions fear, "),
    ({"label2idx": {name: i for i, name in enumerate(ALPHABET[:4])}}, "train.json, row 1: 'sadness' is none of"),
    ({"emotion": ["awe"]}, "info.json has no 'label2idx'"),
    ({"label2idx": {}}, "info.json has no 'label2idx'"),
    ([], "info.json has no 'label2idx'"),
    ('{"label2idx"', "info.json is no valid JSON"),
    (b"\xff\xfe{}", "info.json is no UTF-8 text"),
])
def test_a_bad_info_is_refused(write, emoset, info, match):
    with pytest.raises(InputError, match=match) as caught:
        emoset(info)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row, match", [
    (emoset_row("train", 0, "sadness")[:2], "row 2 must be"),
    ([*emoset_row("train", 0, "sadness", 4), "more"], "row 2 must be"),
    ("sadness", "row 2 must be"),
    (["sadness", 3, "annotation/3.json"], "row 2 must be"),
    (["boredom", "image/sadness/train_00000.jpg", ""], "row 2: 'boredom' is none of the emotions fear"),
    ([3, "image/sadness/train_00000.jpg", ""], "row 2: 3 is none of the emotions"),
    (["sadness", "/image/sadness/train_00000.jpg", ""], "row 2: image '/image.*inside"),
    (["sadness", "image/sadness/nowhere.jpg", ""], "nowhere.jpg is missing"),
    (["sadness", "image/awe/train_00001.jpg", ""], "train_00001.jpg is annotated more than once"),
    (["sadness", "image/anger/test_00000.jpg", ""], "test_00000.jpg is annotated more than once"),  # in test as well
])
def test_a_bad_emoset_row_is_named(emoset, row, match):
    with pytest.raises(InputError, match=match) as caught:
        emoset(train=[emoset_row("train", 1, "awe"), row])
    assert "\n" not in str(caught.value)
    assert "train.json" in str(caught.value) or "image" in str(caught.value)


def test_what_emoset_lacks_is_named(emoset, load, tmp_path):
    with pytest.raises(InputError, match="val.json must hold a list of rows, not a dict"):
        emoset(val={})
    for name in ("val.json", "info.json"):
        (tmp_path / "EmoSet" / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load("emoset")
    (tmp_path / "EmoSet").rename(tmp_path / "Emoset118")
    with pytest.raises(FileNotFoundError, match="EmoSet.*EmoSet-118K.*--root"):
        load("emoset")


# --- ArtPhoto -------------------------------------------------------------------------------------------------------

def test_artphoto_by_its_file_names(load, tmp_path):
    names = {"amusement_0170.jpg": "amusement", "anger_0001.jpg": "anger", "awe_1.JPG": "awe", "fear_2.jpg": "fear",
             "content_0003.jpg": "contentment", "sad_0045.jpg": "sadness", "sadness_01.jpg": "sadness"}
    for name in names:
        image(tmp_path / "ArtPhoto" / name)
    splits = load("artphoto", *ALL, "DATASET.PARTIAL", "True")  # six of the eight emotions
    assert splits.classnames == WHEEL and labels(splits.train) == names
    assert all(item.distribution is None for item in splits.train)
    image(tmp_path / "ArtPhoto" / "boredom_01.jpg")
    with pytest.raises(InputError, match="boredom_01.jpg: 'boredom' is none of the emotions fear, "):
        load("artphoto")


# --- votes in a table: Abstract, Flickr_LDL, Twitter_LDL ------------------------------------------------------------

ABSTRACT = [
    "'',Amusement,Anger,Awe,Content,Disgust,Excitement,Fear,Sad",
    "'abstract_0001.jpg',1,0,2,4,0,0,0,1",
    "'abstract_0002.jpg',0,0,3,0,0,3,1,3",  # awe, excitement and sadness tie: excitement is the wheel's first
    "'abstract_0003.jpg',0,0,0,0,0,0,0,14",
]
HAND = {  # fear, excitement, awe, contentment, amusement, anger, disgust, sadness
    "abstract_0001.jpg": ("contentment", (0, 0, 0.25, 0.5, 0.125, 0, 0, 0.125)),
    "abstract_0002.jpg": ("excitement", (0.1, 0.3, 0.3, 0, 0, 0, 0, 0.3)),
    "abstract_0003.jpg": ("sadness", (0, 0, 0, 0, 0, 0, 0, 1)),
}
LAYOUTS = {  # data set: where its table and its images lie
    "abstract": ("Abstract/ABSTRACT_groundTruth.csv", "Abstract"),
    "flickr_ldl": ("Flickr_LDL/ground_truth.txt", "Flickr_LDL/images"),
    "twitter_ldl": ("Twitter_LDL/ground_truth.txt", "Twitter_LDL/images"),
}


@pytest.fixture
def voted(write, load, tmp_path):
    def read(lines: list[str] | bytes, name: str = "abstract", options: tuple[str, ...] = ALL) -> Splits:
        table, images = LAYOUTS[name]
        for image_name in HAND:
            image(tmp_path / images / image_name)
        write(table, lines if isinstance(lines, bytes) else "\n".join(lines) + "\n")
        return load(name, *options)

    return read


def check_by_hand(splits: Splits, name: str) -> None:
    assert (splits.name, splits.classnames) == (name, WHEEL)
    assert labels(splits.train) == {image_name: label for image_name, (label, _) in HAND.items()}
    for item in splits.train:
        assert item.distribution == pytest.approx(HAND[item.path.name][1], abs=1e-12)


def test_abstract_by_hand(voted, caplog):
    with caplog.at_level(logging.INFO):
        check_by_hand(voted(ABSTRACT), "abstract")
    assert "3 images; for 1 the most votes are tied" in caplog.text and "3 train, 0 val, 0 test" in caplog.text
    check_by_hand(voted(("\ufeff" + "\r\n".join([*ABSTRACT, "", ""])).encode()), "abstract")  # as Windows saves it


@pytest.mark.parametrize("name", ["flickr_ldl", "twitter_ldl"])
@pytest.mark.parametrize("mark", ["\t", " ", ","], ids=["tabs", "spaces", "commas"])
@pytest.mark.parametrize("order", [PUBLISHED, WHEEL], ids=["published", "wheel"])
@pytest.mark.parametrize("suffix", [".jpg", ""], ids=["names", "numbers"])
def test_the_ldl_sets_by_hand(voted, name, mark, order, suffix):
    lines = [mark.join(["id", *order])]
    for image_name, (_, shares) in HAND.items():
        votes = [f"{40 * shares[WHEEL.index(emotion)]:.0f}" for emotion in order]
        lines.append(mark.join([image_name.removesuffix(".jpg") + suffix, *votes]))
    check_by_hand(voted(lines, name), name)


@pytest.mark.parametrize("row, words", [
    ("'abstract_0001.jpg',1,0,2,4,0,0,0", ("8 columns where 9 belong",)),
    ("'abstract_0001.jpg',1,0,2,4,0,0,0,1,1", ("10 columns",)),
    ("'abstract_0001.jpg',1,0,2,many,0,0,0,1", ("no number", "many")),
    ("'abstract_0001.jpg',1,0,2,,0,0,0,1", ("no number",)),
    ("'abstract_0001.jpg',1,0,2,-4,0,0,0,1", ("negative", "-4")),
    ("'abstract_0001.jpg',1,0,2,nan,0,0,0,1", ("finite", "nan")),
    ("'abstract_0001.jpg',1,0,2,inf,0,0,0,1", ("finite", "inf")),
    ("'abstract_0001.jpg',0,0,0,0,0,0,0,0", ("not all 0",)),
    ("'',1,0,2,4,0,0,0,1", ("image '' must be a path",)),
    ("'../abstract_0001.jpg',1,0,2,4,0,0,0,1", ("'../abstract_0001.jpg' must be a path",)),
])
def test_a_bad_row_of_votes_is_named_by_file_and_line(voted, row, words):
    with pytest.raises(InputError) as caught:
        voted([*ABSTRACT[:1], *ABSTRACT[2:], row])
    message = str(caught.value)
    assert "ABSTRACT_groundTruth.csv, line 4" in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("lines, match", [
    (ABSTRACT[1:], r"line 1 \(the header\): '1' is none of the emotions"),
    ([ABSTRACT[0].replace("Awe", "Boredom"), *ABSTRACT[1:]], "line 1.*'Boredom' is none of the emotions fear, "),
    ([ABSTRACT[0].replace(",Awe", ""), *ABSTRACT[1:]], "line 1.*'awe' is there 0 times"),
    ([ABSTRACT[0].replace("Awe", "Fear"), *ABSTRACT[1:]], "line 1.*'fear' is there 2 times"),
    (b"", "ABSTRACT_groundTruth.csv is empty"),
    (b"'',Amusement\xe9", "ABSTRACT_groundTruth.csv is no UTF-8 text"),
    ([*ABSTRACT, ABSTRACT[1].replace("0001", "9999")], "abstract_9999.jpg is missing"),
    ([*ABSTRACT, ABSTRACT[1]], "abstract_0001.jpg is annotated more than once"),
    (ABSTRACT[:1], "no training images"),
])
def test_a_bad_table_of_votes_is_refused(voted, lines, match):
    with pytest.raises(InputError, match=match) as caught:
        voted(lines)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_an_absent_table_is_named(voted, load, name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{Path(LAYOUTS[name][0]).parent}.*--root"):
        load(name)
    voted([line.replace("''", "id") for line in ABSTRACT], name)
    (tmp_path / LAYOUTS[name][0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{Path(LAYOUTS[name][0]).name}.*--root"):
        load(name)


@pytest.mark.parametrize("option", [("DATASET.LABEL_SOURCE", "keyword"), ("DATASET.NEUTRAL", "keep")])
def test_settings_of_emotion6_are_refused(voted, option):
    with pytest.raises(InputError, match=f"{option[0]} {option[1]} is for emotion6"):
        voted(ABSTRACT, options=option)


# --- through the loader ---------------------------------------------------------------------------------------------

class Red(WeakView):
    """The red of a picture's middle."""

    def finish(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        return images[:, 4, 4, 0].int()


def test_every_image_keeps_its_own_distribution_in_a_shuffled_loader(write, load, tmp_path):
    """The red of image i is 10 i, and so many of its 250 votes are for awe, all others for anger."""
    lines = [" ".join(["id", *PUBLISHED])]
    for i in range(24):
        image(tmp_path / "Twitter_LDL" / "images" / f"{i}.jpg", red=10 * i)
        lines.append(" ".join([f"{i}.jpg", "0", f"{10 * i}", "0", "0", f"{250 - 10 * i}", "0", "0", "0"]))
    write("Twitter_LDL/ground_truth.txt", "\n".join(lines))
    splits = load("twitter_ldl", "DATASET.TEST_FRACTION", "0.25", "DATASET.VAL_FRACTION", "0")
    loader = build_loader(splits.train, {"red": Red(8, (0, 0, 0), (1, 1, 1))}, batch_size=4, workers=2, shuffle=True)
    orders = []
    for epoch in range(2):
        loader.batch_sampler.epoch = epoch
        batches = list(loader)
        order, shares = (torch.cat([batch[key] for batch in batches]) for key in ("index", "distribution"))
        number = torch.cat([batch["red"] for batch in batches]).add(5) // 10  # JPEG moves colours a little
        expected = torch.zeros(len(splits.train), 8)
        expected[:, WHEEL.index("awe")] = number / 25
        expected[:, WHEEL.index("anger")] = 1 - number / 25
        torch.testing.assert_close(shares, expected)
        assert len(set(number.tolist())) == len(splits.train) == 18
        orders.append(order.tolist())
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(18))
