"""Whole runs with calibrated pseudo-labels, and predictions that are calibrated."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import torch

import LaFTer
from tests import tiny_run
from tests.browser import PageSource
from tests.test_processes import ends, nearly, start_two
from trainers.predict import check_calibrated
from trainers.teacher import Teacher, calibrate
from utils.errors import InputError
from utils.files import read_yaml
from utils.runs.checkpoint import load_checkpoint
from utils.runs.signals import Interrupted


def test_too_few_images_are_told_before_any_phase(tmp_path):
    tiny_run.make_inputs(tmp_path)
    with pytest.raises(InputError, match="calibration std .* and 18 of 3 classes are too few"):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", "PSEUDO_LABEL.CALIBRATION", "std"))


def test_a_run_that_was_not_calibrated_is_not_taken_for_the_default(tmp_path):
    """Nor one that was for one without; `auto` with too few images is none."""
    tiny_run.make_inputs(tmp_path, train=40)
    ask = ["--epochs", "1", "--batch_size", "60", "--resume", "auto"]
    LaFTer.main(tiny_run.arguments(tmp_path, "x", *ask, "PSEUDO_LABEL.CALIBRATION", "none"))
    with pytest.raises(InputError, match="PSEUDO_LABEL.CALIBRATION is 'none' there and 'std' here"):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", *ask))
    few = ["DATASET.NUM_SHOTS", "20", *ask]
    LaFTer.main(tiny_run.arguments(tmp_path, "few", *few))
    first = tiny_run.record(tiny_run.run_folder(tmp_path, "few"))
    assert "pseudo_label_accuracy_uncalibrated" not in first[1][1]
    LaFTer.main(tiny_run.arguments(tmp_path, "few", *few, "PSEUDO_LABEL.CALIBRATION", "none"))  # is finished
    assert tiny_run.record(tiny_run.run_folder(tmp_path, "few"))[1] == first[1]


def damage(folder: Path) -> None:
    for victim in ("red/9.png", "green/3.png", "green/4.png", "blue/1.png"):  # most of them are not held out
        (folder / "data" / "train" / victim).write_bytes(b"no image")


SETTINGS = {  # of whole runs
    "std": ["--batch_size", "34", "--epochs", "2"],  # as by default
    "balance": ["PSEUDO_LABEL.CALIBRATION", "balance", "PSEUDO_LABEL.PRIOR", "[1, 1, 2]", "--batch_size", "34",
                "--epochs", "2", "PSEUDO_LABEL.TEACHER", "ema", "PSEUDO_LABEL.EMA_DECAY", "0.5",
                "PSEUDO_LABEL.WEIGHT", "neighbours", "PSEUDO_LABEL.SHARE", "0.6", "PSEUDO_LABEL.FAIRNESS", "0.5"],
}


@pytest.mark.parametrize("mode", SETTINGS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, mode, monkeypatch):
    """Stopped by Ctrl-C within its second epoch. An image that cannot be read takes no part."""
    tiny_run.make_inputs(tmp_path, train=42)
    damage(tmp_path)
    options = [*SETTINGS[mode], "DATALOADER.ON_ERROR", "skip"]
    LaFTer.main(tiny_run.arguments(tmp_path, "whole", *options))
    _, rows, state = whole = tiny_run.record(tiny_run.run_folder(tmp_path, "whole"))
    teacher = state["teacher"]
    assert 100 < teacher["history"][1, :-1].ge(0).sum() == teacher["logits"]["sums"][0, 0] < 108
    for number, row in enumerate(rows[1:]):
        assert sum(row["pseudo_label_shares"]) == pytest.approx(1)
        assert {"pseudo_label_accuracy", "pseudo_label_accuracy_uncalibrated"} <= row.keys()
        assert 0 <= row["pseudo_labels_changed"] <= 108 and ("fairness" in row) == (mode == "balance")
        assert mode == "std" or 0.1 < row["pseudo_label_weight"] < 0.7 + 0.3 * number

    steps, step = [], Teacher.step

    def interrupted(self, *args):
        steps.append(step(self, *args))
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Teacher, "step", interrupted)
        LaFTer.main(tiny_run.arguments(tmp_path, "cut", *options))
    cut = tiny_run.run_folder(tmp_path, "cut")
    progress = load_checkpoint(cut / "checkpoints" / "interrupted.pt", {})["progress"]
    assert progress["step"] == len(steps) - 4 == 2  # of four: the step after the signal is the last
    LaFTer.main(tiny_run.arguments(tmp_path, "cut", *options, "--resume", "auto"))
    assert read_yaml(cut / "config.yaml")["PSEUDO_LABEL"]["CALIBRATION"] == mode
    tiny_run.assert_same(tiny_run.record(cut), whole)
    log = (cut / "log.txt").read_text(encoding="utf-8")
    assert "% (uncalibrated " in log


def test_two_processes_calibrate_as_one_does(tmp_path, launch):
    """Batches of 25 images do not divide evenly, nor do those that cannot be read."""
    tiny_run.make_inputs(tmp_path, train=41)
    damage(tmp_path)
    options = [*SETTINGS["std"], "--batch_size", "25", "DATALOADER.ON_ERROR", "skip",
               "PSEUDO_LABEL.WEIGHT", "confidence", "PSEUDO_LABEL.FAIRNESS", "0.5"]
    LaFTer.main(tiny_run.arguments(tmp_path, "one", *options))
    for status, said in ends(start_two(launch, *tiny_run.arguments(tmp_path, "two", *options))):
        assert status == 0, said
    one, two = (tiny_run.record(tiny_run.run_folder(tmp_path, name)) for name in ("one", "two"))
    assert "pseudo_label_accuracy_uncalibrated" in one[1][1]
    tables = [state["teacher"]["logits"].pop("rows") for *_, state in (one, two)]
    assert torch.allclose(*(table[:-1].float() for table in tables), rtol=2e-3, atol=1e-4)  # of half precision
    for *_, state in (one, two):
        del state["rng"]
        state["unreadable"].sort()
        state["teacher"]["history"] = state["teacher"]["history"][:, :-1]  # the last place is no image's
    for a, b, part in zip(one, two, ("final", "rows", "checkpoint")):
        tiny_run.assert_same(a, b, part, nearly)


def test_images_without_labels_are_calibrated_too(tmp_path):
    tiny_run.make_inputs(tmp_path, train=42)
    plain = tmp_path / "plain" / "train"
    plain.mkdir(parents=True)
    for place, image in enumerate(sorted((tmp_path / "data" / "train").rglob("*.png"))):
        image.rename(plain / f"{place}.png")
    LaFTer.main(tiny_run.arguments(tmp_path, "x", *SETTINGS["std"], "--root", str(tmp_path / "plain"),
                                   "DATASET.CLASSNAMES", "[blue, green, red]"))
    (run,) = (tmp_path / "runs").glob("*/LaFTer/clip/x")
    _, rows, state = tiny_run.record(run)
    assert all("pseudo_label_accuracy" not in row and len(row["pseudo_label_shares"]) == 3 for row in rows[1:])
    assert state["teacher"]["logits"]["rows"].isfinite().all(1).sum() > 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run `x` of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run.make_inputs(folder, train=40)
    LaFTer.main(tiny_run.arguments(folder, "x", "--epochs", "1", "--batch_size", "60"))
    return folder


def predict(folder: Path, out: str, *more: str) -> tuple[list[dict], list[dict]]:
    """The rows of predictions.csv and of predictions.jsonl."""
    LaFTer.main(["--predict", str(folder / "data"), "--model-dir", str(tiny_run.run_folder(folder, "x")), "--workers",
                 "0", "--predict-out", str(folder / out), *more])
    lines = (folder / out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / out / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file)), [json.loads(line) for line in lines]


def test_predictions_are_calibrated_by_their_own_statistics_and_say_so(trained):
    _, plain = predict(trained, "plain")
    logits = torch.tensor([list(row["probabilities"].values()) for row in plain], dtype=torch.double).log()
    table, lines = predict(trained, "mean", "--calibrate", "mean")
    expected = calibrate(logits, "mean").softmax(1)  # log p is z less a number for each image, which mean does not see
    told = torch.tensor([list(row["probabilities"].values()) for row in lines], dtype=torch.double)
    assert torch.allclose(told, expected, atol=1e-4)
    for row, line, before in zip(table, lines, plain):
        assert row["calibration"] == line["calibration"] == "mean"
        assert row["uncalibrated"] == line["uncalibrated"] == before["prediction"] and "uncalibrated" not in before
        assert row["prediction"] == line["prediction"] == max(line["probabilities"], key=line["probabilities"].get)
    page, before = (PageSource(trained / out / "predictions.html") for out in ("mean", "plain"))
    said = "Calibrated by these images' own statistics (mean)."
    assert said in page.texts and said not in before.texts
    changed = sum(row["prediction"] != row["uncalibrated"] for row in table)
    log = (tiny_run.run_folder(trained, "x") / "log.txt").read_text(encoding="utf-8")
    assert f"calibrated by these images (mean): {changed} of them would be of another class otherwise" in log
    assert changed
    _, lines = predict(trained, "balance", "--calibrate", "balance", "PSEUDO_LABEL.PRIOR", "[2, 1, 1]")
    told = torch.tensor([list(row["probabilities"].values()) for row in lines])
    assert torch.allclose(told.mean(0), torch.tensor([0.5, 0.25, 0.25]), atol=1e-3)


def test_predictions_that_cannot_be_calibrated_are_refused(trained, tmp_path):
    run, train = str(tiny_run.run_folder(trained, "x")), trained / "data" / "train"
    ask = ["--model-dir", run, "--workers", "0", "--predict-out", str(tmp_path), "--calibrate", "std", "--predict"]
    with pytest.raises(InputError, match="40 of 3 classes are too few: it needs at least 100"):
        LaFTer.main([*ask, str(train / "red")])
    files = sorted(train.rglob("*.png"))[:99]
    (tmp_path / "list.txt").write_text("\n".join(map(str, [*files, "absent.png"])), encoding="utf-8")
    with pytest.raises(InputError, match="99 of 3 classes are too few"):
        LaFTer.main([*ask, str(tmp_path / "list.txt")])
    rows = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert rows.count('"confidence"') == 99 and "calibra" not in rows  # what was computed is there, as ever


def test_a_dual_task_models_distributions_are_not_calibrated(make_cfg):
    cfg = make_cfg({"DUAL_TASK.ENABLED": True})
    check_calibrated(cfg, 10, 6, "")
    with pytest.raises(InputError, match="a dual-task model predicts distributions"):
        check_calibrated(cfg, 1000, 6, "std")
