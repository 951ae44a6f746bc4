"""The descriptions that are shipped: enough of them for every class, all different, short enough for CLIP."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import clip

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EKMAN = {"anger", "disgust", "fear", "joy", "sadness", "surprise"}
MIKELS = {"amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"}
CLASSES = {"Demo": EKMAN, "Emotion6": EKMAN | {"neutral"}, "EmoSet": MIKELS}
EMOTIONS = sorted(EKMAN | MIKELS | {"neutral"})
WRITTEN = {"Emotion6", "EmoSet"}  # these describe photos of anything; the demo's describe drawn faces


def read(name: str) -> dict[str, list[str]]:
    return json.loads((CONFIGS / "descriptions" / f"{name}.json").read_text(encoding="utf-8"))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_at_least_thirty(name):
    described = read(name)
    assert set(described) == CLASSES[name]
    assert min(len(texts) for texts in described.values()) >= 30


@pytest.mark.parametrize("name", CLASSES)
def test_no_sentence_stands_twice(name):
    texts = [" ".join(words(text)) for texts in read(name).values() for text in texts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", CLASSES)
def test_clip_reads_them_whole(name):
    """Fewer than 77 tokens, start and end among them; the tokenizer refuses what it would have to cut."""
    texts = [text for texts in read(name).values() for text in texts]
    tokens = clip.tokenize(texts)
    assert len(tokens) == len(texts) and (tokens != 0).sum(1).max() < 77


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_each_is_one_short_sentence_about_its_own_class(name):
    described = read(name)
    for emotion, texts in described.items():
        for text in texts:
            assert re.fullmatch(r"[A-Z][^.!?]*\.", text) and text.isascii() and text == text.strip(), text
            assert 4 <= len(words(text)) <= 25, text
            assert not (set(EMOTIONS) - {emotion}) & set(words(text)), f"{emotion} names another emotion: {text}"


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_they_are_varied(name):
    """No two sentences share half of their words, and each class draws on a wide vocabulary."""
    described = read(name)
    everything = [set(words(text)) for texts in described.values() for text in texts]
    for place, first in enumerate(everything):
        for second in everything[place + 1:]:
            assert len(first & second) < 0.5 * len(first | second), (first, second)
    for emotion, texts in described.items():
        vocabulary = {word for text in texts for word in words(text)}
        assert len(vocabulary) >= 150, f"{emotion}: {len(vocabulary)} different words"


def test_the_two_files_share_no_sentence():
    first, second = ({text for texts in read(name).values() for text in texts} for name in sorted(WRITTEN))
    assert not first & second


def test_every_data_set_finds_its_classes():
    """Every emotion on a data set's circle is described in the file that its YAML names."""
    served = set()
    for path in sorted((CONFIGS / "datasets").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))["DATASET"]
        file = Path(settings.get("DESCRIPTIONS", ""))
        if file.stem in CLASSES:
            assert (CONFIGS.parent / file).is_file(), f"{path.name} names {file}"
            assert settings["CIRCLE"] and set(settings["CIRCLE"]) <= set(read(file.stem)), path.name
            served.add(file.stem)
    assert served == set(CLASSES)
