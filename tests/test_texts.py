"""Phase 1: texts of the classes, their features and a cache that cannot be stale."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clip
from clip.model import CLIP
from trainers.texts import (
    TextFeatures,
    cache_key,
    check_text_tower,
    class_texts,
    encode_texts,
    read_descriptions,
    read_text_features,
    tell_same_classes,
    text_features,
)
from utils.config import PROJECT, load_config
from utils.errors import InputError, TrainingError

DATA = Path(os.environ.get("LAFTER_DATA", PROJECT.parent / "shared" / "data"))
NAMES = ["red_fox", "owl"]
DESCRIBED = {"red_fox": ["A fox has red fur.", "It has a bushy tail."], "owl": ["An owl sees in the dark."],
             "unused": ["x"]}


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(embed_dim=32, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
                context_length=77, vocab_size=49_408, transformer_width=64, transformer_heads=1,
                transformer_layers=2).eval()


@pytest.fixture
def configure(tmp_path):
    """configure(KEY, value, …) with a file of descriptions and a cache folder of the test's own."""
    (tmp_path / "described.json").write_text(json.dumps(DESCRIBED), encoding="utf-8")

    def make(*options: str):
        return load_config("folder", options=[
            "TEXT.CACHE_DIR", str(tmp_path / "cache"), "DATASET.DESCRIPTIONS", str(tmp_path / "described.json"),
            "DATASET.TEMPLATES", "['a photo of a {}.', 'one {}']", *options])

    return make


# --- texts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode, expected", [
    ("lafter", [[*DESCRIBED["red_fox"], "a photo of a red fox.", "one red fox"],
                [*DESCRIBED["owl"], "a photo of a owl.", "one owl"]]),
    ("templates_only", [["a photo of a red fox.", "one red fox"], ["a photo of a owl.", "one owl"]]),
    ("cls_only", [["red fox"], ["owl"]]),
    ("zero_shot", [["a photo of a red fox"], ["a photo of a owl"]]),
])
def test_the_texts_of_each_mode(configure, mode, expected):
    assert class_texts(NAMES, mode, configure()) == expected


def test_a_class_without_descriptions_is_named(configure, tmp_path):
    for cfg in (configure(), configure("DATASET.TEMPLATES", "[]")):
        with pytest.raises(InputError, match=r"'badger'.*described\.json.*1 of 2.*templates_only"):
            class_texts(["owl", "badger"], "lafter", cfg)
    assert class_texts(["owl", "badger"], "templates_only", configure())[1][0] == "a photo of a badger."
    (tmp_path / "described.json").write_text(json.dumps(DESCRIBED | {"owl": []}), encoding="utf-8")
    with pytest.raises(InputError, match="'owl'"):
        class_texts(NAMES, "lafter", configure())


@pytest.mark.parametrize("content", ["{", "[]", '{"owl": "one text"}', '{"owl": [1]}', "\x00"])
def test_a_bad_file_of_descriptions_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.json"):
        read_descriptions(str(tmp_path / "bad.json"))


def test_no_file_of_descriptions(configure):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json.*templates_only"):
        class_texts(NAMES, "lafter", configure("DATASET.DESCRIPTIONS", "nowhere.json"))
    with pytest.raises(InputError, match="DATASET.DESCRIPTIONS.*templates_only"):
        read_descriptions("")


@pytest.mark.parametrize("key, mode", [("DATASET.TEMPLATES", "templates_only"), ("TEXT.TEMPLATES", "templates_only"),
                                       ("TEXT.ZERO_SHOT_TEMPLATE", "zero_shot")])
@pytest.mark.parametrize("template", ["a photo of a {name}", "a photo of a {", "{} or {}", "a photo"])
def test_a_template_without_its_one_place_is_refused(configure, key, mode, template):
    """`a photo` would give all classes the same text."""
    with pytest.raises(InputError, match="TEMPLATE"):
        class_texts(NAMES, mode, configure(key, f'"{template}"'))


def test_no_template_is_refused(configure):
    with pytest.raises(InputError, match="DATASET.TEMPLATES"):
        class_texts(NAMES, "templates_only", configure("DATASET.TEMPLATES", "[]"))


def test_class_names_match_descriptions_whatever_the_case_or_underscores(configure, tmp_path, caplog):
    """As LaFTer's own files need, which also have one class twice."""
    path = tmp_path / "described.json"
    path.write_bytes(b'\xef\xbb\xbf{"Red Fox": ["a"], "OWL": ["b"], "red_fox": ["c", "a"], "OWL": ["d"]}')
    texts = class_texts(NAMES, "lafter", configure("DATASET.TEMPLATES", "['{}']"))
    assert texts == [["a", "c", "red fox"], ["b", "d", "owl"]]
    assert caplog.text.count("WARNING") == 1 and "'Red Fox' and 'red_fox' are one class" in caplog.text


def test_the_shipped_cifar100_file_describes_folders_named_with_spaces(configure):
    cfg = configure("DATASET.DESCRIPTIONS", "configs/descriptions/CIFAR100.json")
    spaced, underscored = (class_texts([name], "lafter", cfg) for name in ("aquarium fish", "aquarium_fish"))
    assert spaced == underscored and len(spaced[0]) >= 12


# --- features and their cache ---------------------------------------------------------------------------------------

def test_sorted_batches_equal_one_by_one(model):
    texts = ["a", "a much longer text about a red fox in the snow, seen from afar", "owl", "an owl at night",
             " ".join(["fox"] * 70), "", "größe 图 🦊"]
    features = encode_texts(model, texts, batch_size=3)
    with torch.no_grad():
        alone = torch.cat([F.normalize(model.encode_text(clip.tokenize([text])), dim=-1) for text in texts])
    torch.testing.assert_close(features, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_the_cache_gives_the_same_without_encoding(model, configure, tmp_path, monkeypatch):
    fresh = text_features(model, NAMES, "lafter", configure())
    assert fresh.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert fresh.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    torch.testing.assert_close(fresh.features.norm(dim=-1), torch.ones(7))
    texts = [text for own in class_texts(NAMES, "lafter", configure()) for text in own]
    torch.testing.assert_close(fresh.features, encode_texts(model, texts), rtol=0, atol=0)

    def encode_again(*_):
        raise AssertionError("encoded although it is in the cache")

    monkeypatch.setattr(model, "encode_text", encode_again)
    cached = text_features(model, NAMES, "lafter", configure())
    assert torch.equal(cached.features, fresh.features) and torch.equal(cached.labels, fresh.labels)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for mode, names in (("templates_only", NAMES), ("lafter", NAMES[::-1])):
        with pytest.raises(AssertionError, match="encoded although"):
            text_features(model, names, mode, configure())
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="cannot write .*make room"):
        text_features(model, NAMES, "lafter", configure("TEXT.CACHE_DIR", str(tmp_path / "described.json")))


def test_another_backbone_is_encoded_anew(model, configure):
    before = text_features(model, NAMES, "cls_only", configure())
    with torch.no_grad():
        model.text_projection[0, 0] += 1
    try:
        after = text_features(model, NAMES, "cls_only", configure())
        assert torch.equal(after.features, encode_texts(model, ["red fox", "owl"]))
        assert not torch.allclose(after.features, before.features, atol=1e-4)
    finally:
        with torch.no_grad():
            model.text_projection[0, 0] -= 1


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_damaged_cache_is_made_anew(model, configure, tmp_path, caplog, place):
    fresh = text_features(model, NAMES, "lafter", configure())
    (path,) = (tmp_path / "cache").iterdir()
    whole = bytearray(path.read_bytes())
    damaged = whole.copy()
    damaged[min(int(place * len(whole)), len(whole) - 22)] ^= 4  # the last 22 bytes are the zip's own end
    path.write_bytes(damaged)
    again = text_features(model, NAMES, "lafter", configure())
    assert torch.equal(again.features, fresh.features) and "is damaged" in caplog.text
    assert path.read_bytes() != damaged


def test_texts_that_are_too_long_are_cut_counted_and_named(model, configure, tmp_path, caplog):
    """75 words fill CLIP's 77 tokens; the 76th is cut, with the cache as without it."""
    (tmp_path / "described.json").write_text(json.dumps({"red_fox": ["fox " * 75, "fox " * 75 + "owl"],
                                                         "owl": ["fox " * 75 + "red", "owl " * 90]}), encoding="utf-8")
    for source in ("encoded", "from the cache"):
        caplog.clear()
        caplog.set_level("INFO")
        texts = text_features(model, NAMES, "lafter", configure())
        assert source in caplog.text
        assert "3 of 8 texts have more than 77 tokens (class red_fox: 1, owl: 2; from" in caplog.text
        assert "described.json" in caplog.text and caplog.text.count("WARNING") == 1
        torch.testing.assert_close(texts.features[[1, 4]], texts.features[[0, 0]])
        with pytest.raises(InputError, match="3 of 8 texts.*TEXT.TRUNCATE True"):
            text_features(model, NAMES, "lafter", configure("TEXT.TRUNCATE", "False"))


def test_classes_whose_embeddings_coincide_are_named(caplog):
    means = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.02, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]]), dim=-1)
    assert tell_same_classes(means, ["beach", "city", "forest", "sea"]) == [("beach", "city")]  # .9998, .995, .997
    assert caplog.text.count("WARNING") == 1 and "beach and city" in caplog.text
    caplog.clear()
    assert tell_same_classes(means[1:], ["city", "forest", "sea"]) == [] and not caplog.text


def test_the_cache_key_tells_everything_apart():
    base = dict(texts=[["a", "b"], ["c"]], weights_hash="w", precision="fp32", quick_gelu=True)
    variants = [{"weights_hash": "v"}, {"precision": "fp16"}, {"quick_gelu": False}, {"texts": [["a", "B"], ["c"]]},
                {"texts": [["b", "a"], ["c"]]}, {"texts": [["c"], ["a", "b"]]}, {"texts": [["a"], ["b", "c"]]},
                {"texts": [["a", "b"], ["c"], ["d"]]}, {"texts": [["a", "b", "c"]]}]
    keys = [cache_key(**base), *(cache_key(**(base | variant)) for variant in variants)]
    assert len(set(keys)) == len(keys)
    assert cache_key(**base) == cache_key(**(base | {"texts": (("a", "b"), ("c",))}))


def test_class_means_are_the_zero_shot_classifier():
    texts = TextFeatures(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1]), 100.0)
    half = 0.5 ** 0.5
    torch.testing.assert_close(texts.class_means(2), torch.tensor([[half, half], [0.6, 0.8]]))


# --- embeddings made elsewhere --------------------------------------------------------------------------------------

@pytest.fixture
def npz(tmp_path):
    def write(**arrays) -> Path:
        np.savez(tmp_path / "made.npz", **arrays)
        return tmp_path / "made.npz"

    return write


FEATURES = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 5.0, 12.0]])
UNIT = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.0, 5 / 13, 12 / 13]])


def test_embeddings_with_labels_or_class_names(npz):
    texts = read_text_features(npz(features=FEATURES, labels=[1, 0, 1], logit_scale=50.0), ["owl", "fox"], 3)
    torch.testing.assert_close(texts.features, UNIT)
    assert (texts.labels.tolist(), texts.logit_scale) == ([1, 0, 1], 50.0)
    texts = read_text_features(npz(features=FEATURES, classnames=["fox", "badger", "owl"]), ["owl", "fox"], 3)
    torch.testing.assert_close(texts.features, UNIT[[0, 2]])  # the badger is not asked for
    assert (texts.labels.tolist(), texts.logit_scale, texts.features.dtype) == ([1, 0], 100.0, torch.float32)
    texts = read_text_features(npz(features=FEATURES, classnames=["Polar_bear", "x", "OWL"]), ["owl", "polar bear"], 3)
    assert texts.labels.tolist() == [1, 0]


def test_rows_are_selected_by_template(npz):
    path = npz(features=FEATURES, classnames=["owl", "owl", "owl"], template=["single", "multi", "single"])
    torch.testing.assert_close(read_text_features(path, ["owl"], 3, "single").features, UNIT[[0, 2]])
    torch.testing.assert_close(read_text_features(path, ["owl"], 3, "multi").features, UNIT[[1]])
    assert len(read_text_features(path, ["owl"], 3).features) == 3
    with pytest.raises(InputError, match="'best'.*multi, single"):
        read_text_features(path, ["owl"], 3, "best")
    with pytest.raises(InputError, match="none"):
        read_text_features(npz(features=FEATURES, labels=[0, 0, 0]), ["owl"], 3, "best")


@pytest.mark.parametrize("arrays, words", [
    (dict(features=FEATURES, labels=[0, 0, 1]), ("[3, 3]", "512")),
    (dict(features=FEATURES[0], labels=[0]), ("[3]",)),
    (dict(labels=[0, 1]), ("features",)),
    (dict(features=FEATURES), ("labels", "classnames")),
    (dict(features=FEATURES, labels=[0, 1]), ("3 features", "2 labels")),
    (dict(features=FEATURES, labels=[0, 0, 0]), ("'fox'",)),
    (dict(features=FEATURES, classnames=["fox", "eagle", "fox"]), ("'owl'",)),
    (dict(features=FEATURES, labels=[0, 1, 0], template=["a", "b", "a"]), ("'fox'",)),
    (dict(features=np.array([["a", "b", "c"]]), labels=[0]), ("features",)),
])
def test_embeddings_that_do_not_fit_are_refused(npz, arrays, words):
    width = 512 if "512" in words else 3
    with pytest.raises(InputError) as caught:
        read_text_features(npz(**arrays), ["owl", "fox"], width, "a" if "template" in arrays else "")
    message = str(caught.value)
    assert "made.npz" in message and "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "one row", "npy", "pickle"])
def test_a_file_of_embeddings_that_is_none_is_named(npz, damage):
    path = npz(features=FEATURES, labels=[0, 1, 0])
    whole = path.read_bytes()
    if damage in ("one row", "npy", "pickle"):
        with path.open("wb") as file:
            np.save(file, {"one row": FEATURES[0], "npy": FEATURES, "pickle": np.array([{}])}[damage])
    else:
        path.write_bytes({"text": b"no array", "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(InputError, match=r"made\.npz"):
        read_text_features(path, ["owl", "fox"], 3)


def test_a_missing_file_of_embeddings(model, configure):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        text_features(model, NAMES, "zero_shot", configure("DATASET.TEXT_FEATURES", "nowhere.npz"))


def test_embeddings_take_the_place_of_the_text_tower(npz, configure):
    """Also for a model that has none, in every mode."""
    torch.manual_seed(0)
    tower = CLIP(3, 32, 1, 64, 16, 0, 0, 0, 0, 0).eval()
    path = npz(features=FEATURES, classnames=["owl", "red_fox", "owl"])
    cfg = configure("DATASET.TEXT_FEATURES", str(path))
    for mode in ("zero_shot", "lafter"):
        assert text_features(tower, NAMES, mode, cfg).labels.tolist() == [1, 0, 1]
    with pytest.raises(clip.ClipError, match="DATASET.TEXT_FEATURES"):
        check_text_tower(tower, configure())
    check_text_tower(tower, cfg)


@pytest.mark.skipif(not (DATA / "text_features").is_dir(), reason="the real embeddings are not here (LAFTER_DATA)")
def test_real_embeddings():
    names = sorted(path.name for path in (DATA / "cifar10_coco8" / "train").iterdir())
    path = DATA / "text_features" / "coco_stuff_vitb16.npz"
    single = read_text_features(path, names, 512, "single")
    assert sorted(single.labels.tolist()) == list(range(8)) and 90 < single.logit_scale <= 101
    both = read_text_features(path, names, 512)
    assert len(both.features) == 16
    cosines = both.class_means(8) @ single.class_means(8).t()
    assert cosines.argmax(1).tolist() == list(range(8))  # either template, the same class
