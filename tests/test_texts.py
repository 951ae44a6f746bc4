"""Phase 1: texts of the classes, their features, a cache that cannot be stale, and the classifier learnt from them."""

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
from trainers.text_classifier import train_text_classifier
from trainers.texts import (
    TextFeatures,
    cache_key,
    class_texts,
    encode_texts,
    read_descriptions,
    read_text_features,
    text_features,
)
from utils.config import PROJECT, load_config
from utils.errors import InputError

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


@pytest.mark.parametrize("key, mode", [("DATASET.TEMPLATES", "templates_only"),
                                       ("TEXT.ZERO_SHOT_TEMPLATE", "zero_shot")])
@pytest.mark.parametrize("template", ["a photo of a {name}", "a photo of a {", "{} or {}", "a photo"])
def test_a_template_without_its_one_place_is_refused(configure, key, mode, template):
    """`a photo` would give all classes the same text."""
    with pytest.raises(InputError, match="TEMPLATE"):
        class_texts(NAMES, mode, configure(key, f'"{template}"'))


def test_no_template_is_refused(configure):
    with pytest.raises(InputError, match="DATASET.TEMPLATES"):
        class_texts(NAMES, "templates_only", configure("DATASET.TEMPLATES", "[]"))


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
        text_features(tower, NAMES, "cls_only", configure())


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


# --- the classifier -------------------------------------------------------------------------------------------------

def toy_texts(seed: int, per_class: int = 20) -> TextFeatures:
    """Unit features of three classes around three random directions."""
    centres = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 32, generator=torch.Generator().manual_seed(seed))
    return TextFeatures(F.normalize(centres[labels] + 0.8 * noise, dim=-1), labels, 100.0)


def test_the_classifier_learns_what_separates_the_texts(configure):
    cfg = configure("TEXT.EPOCHS", "60", "TEXT.LR", "0.01")
    weight = train_text_classifier(toy_texts(1), 3, cfg, torch.device("cpu"))
    assert weight.shape == (3, 32) and not weight.requires_grad
    for texts in (toy_texts(1), toy_texts(2)):  # the second were never seen
        assert ((texts.features @ weight.t()).argmax(1) == texts.labels).float().mean() > 0.97
    untrained = train_text_classifier(toy_texts(1), 3, configure("TEXT.EPOCHS", "0"), torch.device("cpu"))
    assert ((toy_texts(2).features @ untrained.t()).argmax(1) == toy_texts(2).labels).float().mean() < 0.8


def test_the_classifier_depends_on_the_seed_alone(configure):
    def train(*options):
        return train_text_classifier(toy_texts(1), 3, configure("TEXT.EPOCHS", "5", *options), torch.device("cpu"))

    first = train()
    torch.rand(17)
    assert torch.equal(train(), first)
    assert not torch.allclose(train("SEED", "2"), first)
    assert not torch.allclose(train("TEXT.NOISE_STD", "0"), first)  # the noise is there
    assert not torch.allclose(train("TEXT.LABEL_SMOOTHING", "0"), first)
