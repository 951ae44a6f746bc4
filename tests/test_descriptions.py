"""The descriptions that are shipped: enough of them for every class, all different, short enough for CLIP."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

import clip
from utils.config import load_config
from utils.datasets.classification import DEFINITIONS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EKMAN = {"anger", "disgust", "fear", "joy", "sadness", "surprise"}
MIKELS = {"amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"}
CLASSES = {"Demo": EKMAN, "Emotion6": EKMAN | {"neutral"}, "EmoSet": MIKELS}
EMOTIONS = sorted(EKMAN | MIKELS | {"neutral"})
# of the classification data sets: (file, classes, sentences per class)
CLASSIFICATION = {"cifar10": ("CIFAR10", 10, 30), "eurosat": ("EuroSAT", 10, 30), "cifar100": ("CIFAR100", 100, 10),
                  "dtd": ("DTD", 47, 10), "fgvc_aircraft": ("FGVCAircraft", 100, 10),
                  "caltech101": ("Caltech101", 100, 10),
                  "oxford_flowers": ("Flowers102", 102, 10), "food101": ("Food101", 101, 10),
                  "ucf101": ("UCF101", 101, 10), "oxford_pets": ("OxfordPets", 37, 10)}
FILES = [*CLASSES, *(file for file, *_ in CLASSIFICATION.values())]
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


@pytest.mark.parametrize("name", FILES)
def test_no_sentence_stands_twice(name):
    texts = [" ".join(words(text)) for texts in read(name).values() for text in texts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", FILES)
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


# --- the classification data sets -----------------------------------------------------------------------------------

@pytest.mark.parametrize("dataset", CLASSIFICATION)
def test_every_class_of_a_data_set_has_its_sentences(dataset):
    file, classes, sentences = CLASSIFICATION[dataset]
    described = read(file)
    assert f"configs/descriptions/{file}.json" == load_config(dataset).DATASET.DESCRIPTIONS
    assert len(described) == classes and min(len(texts) for texts in described.values()) >= sentences


def test_a_yaml_names_only_a_file_that_is_there_and_starts_from_templates_without_one():
    for name in DEFINITIONS:
        cfg = load_config(name)
        assert (cfg.TEXT.MODE == "lafter") == bool(cfg.DATASET.DESCRIPTIONS) == (name in CLASSIFICATION), name
        assert all(template.count("{}") == 1 for template in cfg.DATASET.TEMPLATES)


def test_classes_are_called_as_the_readers_call_them():
    assert list(read("Flowers102")) == load_config("oxford_flowers").DATASET.CLASSNAMES
    assert set(read("EuroSAT")) == {*DEFINITIONS["eurosat"].names.values(), "Forest", "River"}
    renamed = DEFINITIONS["caltech101"].names
    assert set(renamed.values()) <= set(read("Caltech101")) and not set(renamed) & set(read("Caltech101"))
    assert {"aquarium_fish", "maple_tree", "streetcar", "sweet_pepper"} <= set(read("CIFAR100"))
    assert {"american_pit_bull_terrier", "wheaten_terrier"} <= set(read("OxfordPets"))
    assert {"Apply_Eye_Makeup", "Clean_And_Jerk", "Handstand_Pushups", "Yo_Yo"} <= set(read("UCF101"))
    assert {"707-320", "F/A-18", "Cessna 172"} <= set(read("FGVCAircraft"))
    assert {"apple_pie", "macaroni_and_cheese", "croque_madame"} <= set(read("Food101"))


@pytest.mark.parametrize("dataset", CLASSIFICATION)
def test_sentences_of_a_class_are_no_boilerplate(dataset):
    """Each is one plain sentence; two of a class share less than half of their words; and without the class's own name
    no sentence stands for two classes."""
    without_name = {}
    for name, texts in read(CLASSIFICATION[dataset][0]).items():
        own = set(words(name.replace("_", " ")))
        for text in texts:
            assert re.fullmatch(r"[A-Z][^.!?]*\.", text) and text.isascii() and 4 <= len(words(text)) <= 25, text
            rest = " ".join(word for word in words(text) if word not in own and word.rstrip("s") not in own)
            assert without_name.setdefault(rest, name) == name, f"{name} and {without_name[rest]}: {text}"
        for first, second in itertools.combinations([set(words(text)) for text in texts], 2):
            assert len(first & second) < 0.5 * len(first | second), (name, first, second)
