"""Bad data and texts, as a user meets them: the program ends with one clear line that names the thing and the mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from layouts import images

import LaFTer
from trainers.program import exit_with_message


@pytest.fixture
def message(tmp_path):
    """message(arguments…) → the line that the program ends with, for images in tmp_path/photos."""
    images(tmp_path / "photos", *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))

    def run(*arguments: str) -> str:
        places = ["--root", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "out"), "--workers", "0",
                  "--backbone", "configs/demo/demo_clip.pt", "TEXT.CACHE_DIR", str(tmp_path / "cache")]
        with pytest.raises(SystemExit) as caught:
            exit_with_message(lambda: LaFTer.main([*places, *arguments]))
        assert str(caught.value.code).startswith("error: ") and "\n" not in caught.value.code
        return caught.value.code

    return run


def describe(folder: Path, **texts: list[str]) -> list[str]:
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return ["--dataset-config-file", "folder", "--txt_cls", "lafter",
            "DATASET.DESCRIPTIONS", str(folder / "texts.json")]


def test_an_absent_data_set(message):
    said = message("--dataset-config-file", "oxford_pets", "DATASET.DOWNLOAD", "False")
    assert "oxford_pets" in said and "does not exist; get it from" in said and "vgg/data/pets" in said
    assert "--root" in said


def test_an_empty_class(message, tmp_path):
    (tmp_path / "photos" / "train" / "emu").mkdir()
    assert "emu holds no image; fill or remove it" in message("--dataset-config-file", "folder")


def test_a_duplicated_class_name(message):
    said = message("--dataset-config-file", "folder", "DATASET.CLASSNAMES", "[cat, dog, cat]")
    assert "duplicated class name 'cat'" in said


def test_a_class_without_texts(message, tmp_path):
    said = message(*describe(tmp_path, cat=["A cat has whiskers."]))
    assert "class 'dog' has no description" in said and "texts.json" in said and "templates_only" in said


def test_a_text_that_is_too_long(message, tmp_path):
    said = message(*describe(tmp_path, cat=["A cat has whiskers."], dog=["A dog is very " + "good " * 90 + "indeed."]),
                   "TEXT.TRUNCATE", "False")
    assert "have more than 77 tokens (class dog: 1; from" in said and "texts.json" in said
    assert "TEXT.TRUNCATE True" in said


def test_a_file_that_is_no_image(message, tmp_path):
    (tmp_path / "photos" / "train" / "cat" / "9.png").write_text("no image", encoding="utf-8")
    said = message("--dataset-config-file", "folder", "--epochs", "1", "--txt_epochs", "1", "DATASET.VAL_FRACTION", "0")
    assert "1 image cannot be read: " in said and "9.png" in said and "replace or remove what is damaged" in said


# --- before any data are read: these folders do not even exist ------------------------------------------------------

@pytest.mark.parametrize("arguments, words", [
    (["--backbone", "ViT-B/17"], "unknown backbone 'ViT-B/17': it is none of ViT-B/32"),
    (["--backbone", "ViT-B32"], "there is no checkpoint ViT-B32; did you mean ViT-B/32?"),
    (["--root", ""], "data set folder: say where the images are, --root FOLDER"),
    (["--backbone", "my_clip.pt"], "there is no checkpoint my_clip.pt"),
    (["--transforms", "gaussian_blurr"], "INPUT.TRANSFORMS: unknown gaussian_blurr; valid: random_resized_crop"),
    (["--resume", "nowhere"], "nowhere"),
    (["DATASET.SPLIT_FILE", "nowhere.json"], "split file nowhere.json does not exist; correct DATASET.SPLIT_FILE"),
    (["--txt_cls", "lafter", "DATASET.DESCRIPTIONS", "nowhere.json"], "nowhere.json does not exist"),
    (["DATASET.TEXT_FEATURES", "nowhere.npz"], "DATASET.TEXT_FEATURES nowhere.npz does not exist; give"),
])
def test_what_cannot_be_had_is_refused_first(message, tmp_path, arguments, words):
    root = [] if "--root" in arguments else ["--root", str(tmp_path / "no_data")]
    assert words in message("--dataset-config-file", "folder", *root, *arguments)
    assert not (tmp_path / "out").exists()


def test_an_experiment_with_other_settings_is_refused_first(message, tmp_path):
    folder = tmp_path / "out" / "no_data" / "LaFTer" / "demo_clip" / "trial"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n", encoding="utf-8")
    said = message("--dataset-config-file", "folder", "--root", str(tmp_path / "no_data"), "--exp-name", "trial",
                   "--txt_cls", "cls_only")
    assert "trial holds an unfinished run" in said


def test_labels_that_are_missing_are_told_before_the_backbone_is_read(message, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "plain" / "train").mkdir(parents=True)
    for number, image in enumerate((tmp_path / "photos" / "train").rglob("*.png")):
        image.rename(tmp_path / "plain" / "train" / f"{number}.png")
    said = message("--dataset-config-file", "folder", "--root", str(tmp_path / "plain"), "--direct_dualtask",
                   "DATASET.CLASSNAMES", "cat, dog", "DATASET.CIRCLE", "cat, dog")
    assert f"but {number + 1} of the {number + 1} training images have none: put each in a folder named" in said
    assert "precision" not in caplog.text and "backbone" not in caplog.text


def test_an_image_tower_without_texts_is_told_before_images_are_read(message, tmp_path):
    tower = {name: tensor for name, tensor in torch.load("configs/demo/demo_clip.pt", weights_only=True).items()
             if name.startswith("visual.")}
    torch.save(tower, tmp_path / "tower.pt")
    (tmp_path / "photos" / "train" / "cat" / "9.png").write_text("no image", encoding="utf-8")
    said = message("--dataset-config-file", "folder", "--txt_cls", "cls_only", "--backbone", str(tmp_path / "tower.pt"))
    assert "has no text tower: set DATASET.TEXT_FEATURES" in said and "--direct_dualtask" in said


def test_a_missing_circle_is_told_before_the_text_phase(message, caplog):
    caplog.set_level("INFO")
    said = message("--dataset-config-file", "folder", "--txt_cls", "cls_only", "--dual_task")
    assert 'set DATASET.CIRCLE to the emotions in their order around it, such as "[anger, disgust' in said
    assert "text features" not in caplog.text
    said = message("--dataset-config-file", "folder", "--txt_cls", "cls_only", "--dual_task", "DATASET.CIRCLE",
                   "cat, cow")
    assert "class 'dog' is not on the circle cat, cow" in said and "text features" not in caplog.text
