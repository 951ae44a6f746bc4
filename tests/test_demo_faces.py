"""The demo's drawn faces, their captions and the written descriptions."""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.pretrain_demo.captions import NOUNS, PHRASES, caption
from tests.warm_start import started
from utils.config import load_config
from utils.datasets import demo
from utils.datasets.table import load_dataset
from utils.demo.faces import EMOTIONS, PROTOTYPES, draw_dataset, draw_face, face_actions, sample_distribution
from utils.demo.styles import COLOURS, DEMO, FAMILIES, PRETRAIN, sample_style
from utils.errors import InputError

DESCRIPTIONS = Path(__file__).resolve().parent.parent / "configs" / "descriptions" / "Demo.json"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    draw_dataset(root, seed=3, train_per_class=4, test_per_class=3)
    return root


def annotations(root):
    return json.loads((root / "annotations.json").read_text(encoding="utf-8"))


def test_annotations_describe_the_files(dataset):
    data = annotations(dataset)
    assert (data["seed"], data["emotions"]) == (3, ["anger", "disgust", "fear", "joy", "sadness", "surprise"])
    on_disk = sorted(p.relative_to(dataset).as_posix() for p in dataset.rglob("*.png"))
    assert sorted(item["file"] for item in data["items"]) == on_disk and len(on_disk) == 6 * (4 + 3)
    for item in data["items"]:
        assert item["file"].startswith(f"images/{item['split']}/")
        assert sum(item["distribution"]) == pytest.approx(1, abs=1e-5) and min(item["distribution"]) >= 0
        assert item["label"] == EMOTIONS[int(np.argmax(item["distribution"]))]
        with Image.open(dataset / item["file"]) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_labels_are_balanced_and_not_sorted(dataset):
    for split, count in (("train", 4), ("test", 3)):
        labels = [item["label"] for item in annotations(dataset)["items"] if item["split"] == split]
        assert {emotion: labels.count(emotion) for emotion in EMOTIONS} == dict.fromkeys(EMOTIONS, count)
        assert labels != sorted(labels)


def test_a_seed_gives_the_same_files_and_another_seed_others(dataset, tmp_path):
    for seed in (3, 4):
        draw_dataset(tmp_path / str(seed), seed=seed, train_per_class=4, test_per_class=3)
    files = [p.relative_to(dataset) for p in sorted(dataset.rglob("*.*"))]
    assert len(files) == 43
    assert all((dataset / f).read_bytes() == (tmp_path / "3" / f).read_bytes() for f in files)
    assert not any((dataset / f).read_bytes() == (tmp_path / "4" / f).read_bytes() for f in files)


def test_a_folder_in_use_is_left_alone(dataset, tmp_path):
    before = annotations(dataset)
    with pytest.raises(InputError, match="is not empty"):
        draw_dataset(dataset, seed=5, train_per_class=1, test_per_class=1)
    assert annotations(dataset) == before
    assert [p.name for p in dataset.parent.iterdir()] == [dataset.name]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr("utils.demo.faces.draw_face", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "demo", train_per_class=1, test_per_class=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
def test_drawn_folders_are_open_as_the_users_others_are(tmp_path):
    before = os.umask(0o027)
    try:
        draw_dataset(tmp_path / "demo", train_per_class=1, test_per_class=1)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {mode for name, mode in modes.items() if name.endswith((".png", ".json"))} == {0o640}
    assert [modes[name] for name in ("demo", "demo/images", "demo/images/train")] == [0o750] * 3


def first_run(place: Path, number: int) -> None:
    """Draws once both have begun; leaves its numbers of images in a file."""
    def small(root: Path) -> None:
        (place / f"begun{number}").touch()
        while len(list(place.glob("begun*"))) < 2:
            time.sleep(0.01)
        draw_dataset(root, train_per_class=30, test_per_class=2)

    demo.draw_dataset = small
    splits = load_dataset(load_config("demo", options=["DATASET.ROOT", str(place / "data")]))
    (place / f"read{number}").write_text(f"{len(splits.train) + len(splits.val)} {len(splits.test)}")


def test_two_first_runs_at_once(tmp_path):
    """The slower one finds the faster one's faces and takes them."""
    with started(first_run, tmp_path, 1) as one, started(first_run, tmp_path, 2) as two:
        for process in (one, two):
            process.join(120)
    assert (one.exitcode, two.exitcode) == (0, 0)
    assert [(tmp_path / f"read{number}").read_text() for number in (1, 2)] == ["180 12"] * 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["demo"]


def test_distributions_lead_clearly_most_of_the_time():
    rng = np.random.default_rng(0)
    shares = np.stack([sample_distribution(rng) for _ in range(2000)])
    assert shares.shape == (2000, 6) and np.allclose(shares.sum(1), 1) and shares.min() >= 0
    top, second = np.sort(shares, axis=1)[:, -1], np.sort(shares, axis=1)[:, -2]
    assert 0.6 < (top > 0.5).mean() < 0.95  # clear, but not one-hot
    assert 0.02 < (top - second < 0.1).mean() < 0.2
    counts = np.bincount(shares.argmax(1), minlength=6)
    assert counts.min() > 270 and counts.max() < 400
    assert all(sample_distribution(rng, 4).argmax() == 4 for _ in range(200))


def test_actions_are_the_mixture_of_the_prototypes():
    rng = np.random.default_rng(0)
    half = [0.5, 0, 0, 0, 0, 0.5]  # anger and surprise
    mean = np.mean([list(face_actions(rng, half).values()) for _ in range(3000)], axis=0)
    expected = [(values[0] + values[5]) / 2 for values in PROTOTYPES.values()]
    assert np.allclose(mean, expected, atol=0.015)


@pytest.mark.parametrize("wrong", [[1.0], [0.5] * 6, [1.5, -0.5, 0, 0, 0, 0]])
def test_what_is_no_distribution_is_refused(wrong):
    with pytest.raises(ValueError, match="six shares that sum to 1"):
        draw_face(np.random.default_rng(0), wrong, sample_style(np.random.default_rng(0), DEMO))


def test_families_share_no_trait():
    for trait in ("heads", "skins", "hairs", "lines", "eyes", "backgrounds"):
        assert not set(getattr(PRETRAIN, trait)) & set(getattr(DEMO, trait)), trait
    assert {*PRETRAIN.skins, *DEMO.skins} <= set(COLOURS)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_trait_can_be_drawn(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    style = sample_style(rng, family)
    looks = [{"head": v} for v in family.heads] + [{"hair": v} for v in family.hairs]
    looks += [{"line": v} for v in family.lines] + [{"eye": v} for v in family.eyes]
    looks += [{"background": v} for v in family.backgrounds] + [{"skin": v} for v in family.skins]
    base = {trait: value for look in reversed(looks) for trait, value in look.items()}
    pictures = {}
    for look in looks:
        styled = dataclasses.replace(style, **base | look, outline=False)
        image = draw_face(np.random.default_rng(1), np.eye(6)[0], styled)
        pictures[image.tobytes()] = look
    assert len(pictures) == len(looks) - 5  # the six traits' first values are all the same picture


def test_the_picture_shows_the_emotion():
    """In one style, faces differ more between emotions than the jitter makes them differ within one."""
    style = dataclasses.replace(sample_style(np.random.default_rng(0), PRETRAIN), background="plain", eye="pupil")
    faces = np.stack([[np.asarray(draw_face(np.random.default_rng(i), np.eye(6)[k], style), float) for i in range(8)]
                      for k in range(6)])  # the same pose for all emotions of one i
    means = faces.mean(1)
    for k in range(6):
        nearest = [int(np.abs(means - face).mean((1, 2, 3)).argmin()) for face in faces[k]]
        assert nearest.count(k) >= 6, (EMOTIONS[k], nearest)


def test_captions_name_the_emotion_and_vary():
    rng = np.random.default_rng(0)
    for k, emotion in enumerate(EMOTIONS):
        texts = [caption(rng, np.eye(6)[k], sample_style(rng, PRETRAIN)) for _ in range(300)]
        assert len(set(texts)) > 250
        assert sum(emotion in text for text in texts) > 50
        cues = [cue for part in PHRASES[emotion].values() for cue in part]
        assert all(any(cue in text for text in texts) for cue in cues)
        others = {noun for other in EMOTIONS if other != emotion for noun in NOUNS[other]} - {"wonder", "cheer"}
        assert not any(re.search(rf"\b{noun}\b", text) for text in texts for noun in others - {"amazement"})


def test_descriptions_speak_the_captions_language():
    descriptions = json.loads(DESCRIPTIONS.read_text(encoding="utf-8"))
    assert tuple(descriptions) == EMOTIONS
    rng = np.random.default_rng(0)
    known = {word for _ in range(8000)
             for word in words(caption(rng, sample_distribution(rng), sample_style(rng, PRETRAIN)))}
    for emotion, sentences in descriptions.items():
        assert len(sentences) == len(set(sentences)) >= 30, emotion
        unknown = {word for sentence in sentences for word in words(sentence)} - known
        assert not unknown, (emotion, unknown)


def words(text):
    return re.findall(r"[a-z]+", text.lower())
