"""A published data set is there whole or refused: classes that are missing, images that are."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from layouts import images, write

import LaFTer
from utils.datasets.classification import DEFINITIONS
from utils.errors import InputError

WHOLE = ("DATASET.PARTIAL", "False")
EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
           "Residential", "River", "SeaLake"]


def eurosat(root: Path, classes: list[str]) -> None:
    images(root / "eurosat" / "2750", *(f"{name}/{name}_{i}.jpg" for name in classes for i in range(3)))


def test_missing_classes_are_refused_by_the_program_too(tmp_path, read_dataset):
    eurosat(tmp_path, EUROSAT[:3])
    with pytest.raises(InputError, match=r"eurosat: .*2750 has images of 3 classes \(Annual Crop Land, Forest, "
                                         r"Herbaceous Vegetation Land\) where 10 belong: .*github.com/phelber/EuroSAT.*"
                                         r"DATASET.PARTIAL True") as caught:
        read_dataset("eurosat", *WHOLE)
    assert "\n" not in str(caught.value)
    assert len(read_dataset("eurosat").classnames) == 3
    assert read_dataset("eurosat", "DATASET.SUBSAMPLE_CLASSES", "base").classnames == ["Annual Crop Land", "Forest"]
    with pytest.raises(InputError, match="3 classes"):
        LaFTer.main(["--dataset-config-file", "eurosat", "--root", str(tmp_path), "--output-dir", str(tmp_path / "o"),
                     "--backbone", "configs/demo/demo_clip.pt"])


def test_a_stranger_among_the_class_folders_is_refused(tmp_path, read_dataset):
    eurosat(tmp_path, [*EUROSAT, "Forest (copy)"])
    with pytest.raises(InputError, match="images of 11 classes .* where 10 belong"):
        read_dataset("eurosat", *WHOLE)


def test_another_number_of_images_is_one_warning(tmp_path, read_dataset, caplog):
    eurosat(tmp_path, EUROSAT)
    splits = read_dataset("eurosat", *WHOLE)
    assert len(splits.classnames) == 10
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "30 images where 27,000 belong" in warned[0]
    caplog.clear()
    read_dataset("eurosat", *WHOLE, "DATASET.SUBSAMPLE_CLASSES", "base")  # half of the whole
    assert "27,000" in caplog.text
    caplog.clear()
    read_dataset("eurosat")
    assert "27,000" not in caplog.text


def test_coops_split_file_with_few_classes_is_refused(tmp_path, read_dataset):
    images(tmp_path / "dtd" / "images", "x/1.jpg")
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json",
          json.dumps({"train": [["x/1.jpg", 0, "x"]], "val": [], "test": []}))
    with pytest.raises(InputError, match="dtd.*images of 1 classes.*where 47 belong"):
        read_dataset("dtd", *WHOLE)


def test_emotions_without_images_are_refused(tmp_path, read_dataset):
    images(tmp_path / "ArtPhoto", "awe_1.jpg", "fear_1.jpg", "fear_2.jpg")
    with pytest.raises(InputError, match=r"images of 2 classes \(fear, awe\) where 8 belong.*imageemotion.org"):
        read_dataset("artphoto", *WHOLE)


def test_every_definition_knows_its_classes():
    assert {name: definition.classes for name, definition in DEFINITIONS.items()} == {
        "caltech101": 100, "cifar10": 10, "cifar100": 100, "dtd": 47, "eurosat": 10, "fgvc_aircraft": 100,
        "food101": 101, "imagenet": 1000, "imagenet_a": 200, "imagenet_r": 200, "imagenet_s": 1000,
        "oxford_flowers": 102, "oxford_pets": 37, "stanford_cars": 196, "sun397": 397, "ucf101": 101}
    # CoOp's splits: train + val + test
    for name, sizes in {"caltech101": (4128, 1649, 2465), "dtd": (2820, 1128, 1692), "eurosat": (13500, 5400, 8100),
                        "fgvc_aircraft": (3334, 3333, 3333), "food101": (50500, 20200, 30300),
                        "oxford_flowers": (4093, 1633, 2463), "oxford_pets": (2944, 736, 3669),
                        "stanford_cars": (6509, 1635, 8041), "ucf101": (7639, 1898, 3783)}.items():
        assert DEFINITIONS[name].images == sum(sizes), name
