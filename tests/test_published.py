"""The original program's settings: all in one file, and named wherever a run is recorded or compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import LaFTer
from tests.tiny_run import arguments, make_inputs, run_folder
from trainers.text_classifier import train_text_classifier
from trainers.texts import TextFeatures, class_texts
from utils.config import flatten, load_config
from utils.flags import build_parser
from utils.report.groups import find_runs
from utils.report.tables import accuracy_table
from utils.runs.settings import settings_label

FILE = "configs/trainers/LaFTer/published.yaml"
POINTS = {  # Mirza et al., NeurIPS 2023, section 4 and their program
    "PROMPT_NUM": 50, "PROMPT_INIT": "uniform", "PROMPT_INIT_PATCH": 16, "PSEUDO_LABEL.TEACHER": "shared",
    "PSEUDO_LABEL.CALIBRATION": "none",
    "OPTIM.NAME": "adamw", "OPTIM.LR": 5e-4, "OPTIM.ADAPTER_LR_SCALE": 1.0, "OPTIM.LR_SCHEDULER": "none",
    "OPTIM.WEIGHT_DECAY": 0.01, "OPTIM.DECAY_LAYERNORM": True, "OPTIM.LABEL_SMOOTHING": 0.1, "OPTIM.MAX_EPOCH": 50,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 50, "OPTIM.ACCUMULATE": 1, "DATASET.VAL_FRACTION": 0.0,
    "INPUT.INTERPOLATION": "bicubic", "INPUT.CROP_INTERPOLATION": "bilinear", "INPUT.BLUR_PROB": 1.0,
    "TEXT.MODE": "lafter", "TEXT.LR": 5e-4, "TEXT.NOISE_STD": 0.1, "TEXT.LABEL_SMOOTHING": 0.1,
}


@pytest.mark.parametrize("dataset", ["imagenet", "demo", "cifar100"])
@pytest.mark.parametrize("backbone", ["ViT-B/32", "ViT-L/14"])
@pytest.mark.parametrize("name", [FILE, "published"])
def test_one_file_sets_every_point(dataset, backbone, name):
    """Whatever the data set's file and the backbone's say."""
    cfg = load_config(dataset, name, {"MODEL.BACKBONE.NAME": backbone})
    values = dict(flatten(cfg))
    assert {key: values[key] for key in POINTS} == POINTS
    assert cfg.INPUT.SOURCE_SCALE >= 0.2 ** -0.5 and cfg.INPUT.TRANSFORMS[0] == "random_resized_crop"
    assert len(cfg.INPUT.TRANSFORMS) == 5
    assert class_texts(["red_fox"], "templates_only", cfg) == [["a photo of a red fox"]]
    assert settings_label(cfg) == "published"


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_the_strong_view_is_the_published_one_by_default(trainer):
    view = load_config("imagenet", flags={"TRAINER.NAME": trainer}).INPUT
    assert view == load_config("imagenet", FILE).INPUT


@pytest.mark.parametrize("steps, datasets", [
    (400, ["dtd", "eurosat", "food101", "cifar10", "cifar100", "ucf101"]), (600, ["oxford_flowers"]),
    (500, ["caltech101", "imagenet", "imagenet_a", "imagenet_r", "imagenet_s", "sun397"])])
def test_each_data_set_has_its_number_of_text_steps(steps, datasets):
    for dataset in datasets:
        for file in ("", FILE):
            chosen = load_config(dataset, file), load_config(dataset, file, {"TEXT.EPOCHS": 7})
            assert [cfg.TEXT.EPOCHS for cfg in chosen] == [steps, 7]  # a flag is never overridden


def test_the_label_names_what_was_changed():
    def label(dataset: str, *options: str) -> str:
        return settings_label(load_config(dataset, FILE, options=options))

    assert settings_label(load_config("dtd")) == "tuned"
    assert label("dtd") == label("dtd", "SEED", "7", "DATALOADER.NUM_WORKERS", "0") == "published"
    assert label("dtd", "OPTIM.LR", "5e-4") == label("caltech101", "TEXT.EPOCHS", "500") == "published"  # their own
    assert label("dtd", "TEXT.EPOCHS", "500") == "published, changed: TEXT.EPOCHS"
    assert label("dtd", "OPTIM.DECAY_LAYERNORM", "False", "OPTIM.LR", "1e-3") == (
        "published, changed: OPTIM.LR, OPTIM.DECAY_LAYERNORM")
    # who only calls the tuned settings so is told what differs
    assert "OPTIM.LR_SCHEDULER" in settings_label(load_config("dtd", options=["TRAINER.SETTINGS", "published"]))


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_text_phase_is_the_published_one(steps):
    """Against plain lines with the same random numbers; the head's start and the noise are all it draws."""
    cfg = load_config("dtd", FILE, {"TEXT.EPOCHS": steps, "SEED": 3})
    features = F.normalize(torch.randn(30, 32), dim=-1)
    labels = torch.arange(5).repeat(6)
    weight = train_text_classifier(TextFeatures(features, labels, 100.0), 5, cfg, torch.device("cpu"))

    torch.manual_seed(3)
    head = torch.nn.Linear(32, 5, bias=False)
    first = head.weight.detach().clone()
    optimizer = torch.optim.AdamW([head.weight], lr=5e-4, weight_decay=0.01)  # constant from the first step
    for _ in range(steps):
        logits = (features + 0.1 * torch.randn(30, 32)) @ head.weight.t()
        target = torch.full_like(logits, 0.1 / 5)  # label smoothing
        target[torch.arange(30), labels] += 0.9
        optimizer.zero_grad()
        (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
    losses = [F.cross_entropy(features @ rows.t(), labels, label_smoothing=0.1).item()
              for rows in (weight, head.weight)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(weight, head.weight.detach(), rtol=0, atol=1e-6)
    assert (weight - first).abs().max() > 4e-4 * steps ** 0.5  # a warm-up's first step would be a tenth


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A text phase with the published settings, and a whole run that changes some; beside it a tuned one."""
    folder = tmp_path_factory.mktemp("published")
    make_inputs(folder)
    LaFTer.main([*arguments(folder, "changed-seed1"), "--config-file", FILE, "DATASET.VAL_FRACTION", "0.15"])
    LaFTer.main(arguments(folder, "tuned-seed1"))
    LaFTer.main(["--config-file", FILE, "--skip_finetune", "--dataset-config-file", "folder", "--device", "cpu",
                 "--root", str(folder / "data"), "--backbone", str(folder / "clip.pt"), "--workers", "0",
                 "--output-dir", str(folder / "runs"), "DATASET.TEXT_FEATURES", str(folder / "texts.npz")])
    return folder


def test_the_record_and_the_tables_name_the_settings(runs):
    def recorded(name: str) -> tuple[str, str]:
        config, final = (yaml.safe_load((run_folder(runs, name) / file).read_text(encoding="utf-8"))
                         for file in ("config.yaml", "final.json"))
        return config["TRAINER"]["SETTINGS"], final["settings"]

    assert recorded("published-text-seed1") == ("published", "published")
    assert recorded("tuned-seed1") == ("tuned", "tuned")
    settings, label = recorded("changed-seed1")
    assert settings == "published" and label.startswith("published, changed: DATASET.VAL_FRACTION, TEXT.MODE, TEXT.LR,")
    rows = accuracy_table(find_runs(runs / "runs"))
    assert sorted(row[rows[0].index("trainer")] for row in rows[1:]) == [
        "LaFTer (published, changed: DATASET.VAL_FRACTION, TEXT.MODE, …, changed)",
        "LaFTer (published, published-text)", "LaFTer (tuned)"]


def test_help_says_where_the_file_is():
    text = build_parser().format_help()
    assert FILE in text and "TEXT.LR" in text
