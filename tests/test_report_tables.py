"""The report's tables of distributions, classes, runs and settings, from records written by hand."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

import LaFTer
from tests.conftest import CLASSNAMES
from tests.test_literature import write_settings
from tests.test_results import write_run
from tests.tiny_run import arguments, make_inputs
from utils.config import load_config
from utils.emotion_circle import class_distances, strategy1
from utils.metrics import TEMPERATURES, kl
from utils.report.facts import class_table, duration, runs_table, settings_table
from utils.report.groups import choose_baseline, find_runs, panels, scaled_kl, shared_scores
from utils.report.html import html_report, markdown_report
from utils.report.tables import distribution_note, distribution_table

EMOTIONS = ["anger", "disgust", "fear", "joy", "sadness", "surprise"]


def kls(best: float, at: float) -> list[float]:
    """KL by temperature: `best` at the temperature `at`, 1 elsewhere."""
    return [best if temperature == at else 1.0 for temperature in TEMPERATURES]


def write_distributions(root: Path, name: str, text: float, last: float, **changes) -> None:
    """A run whose text classifier and tuned model have these KL; the tuned one's is half of it at T = 2."""
    methods = {"zero_shot": {"top1": 0.5, "kl": 0.9}, "text_classifier": {"top1": 0.6, "kl": text},
               "untrained": {"top1": 0.4, "kl": 0.8},
               "last": {"top1": 0.7, "kl": last, "kl_by_temperature": kls(last / 2, 2.0)}}
    val = {"last": {"kl_by_temperature": kls(0.3, 2.0)}}
    write_run(root, name, {}, splits={"test": methods, "val": val}, classnames=EMOTIONS, **changes)


def test_all_models_stand_in_the_table_of_distributions(tmp_path):
    write_distributions(tmp_path, "a/seed1", 0.6, 0.7, seed=1)
    write_distributions(tmp_path, "b/seed1", 0.6, 0.5, seed=1, trainer="LaFTer")
    table = distribution_table(find_runs(tmp_path))
    place = {name: number for number, name in enumerate(table[0])}
    assert [[row[3], row[place["KL ↓"]], row[place["KL at T ↓"]], row[place["T"]]] for row in table[1:]] == [
        ["zero-shot", "0.900", "", ""], ["text classifier", "0.600", "", ""],  # both methods have these in common
        ["LaFTer, before the first step", "0.800", "", ""], ["LaFTer", "0.500", "0.250", "2.00"],
        ["MultiLayerLaFTer, before the first step", "0.800", "", ""], ["MultiLayerLaFTer", "0.700", "0.350", "2.00"]]
    note = distribution_note(find_runs(tmp_path))
    assert "the T whose KL on the validation split is least" in note and "dual task" not in note


def test_an_old_record_has_no_scaled_logits(tmp_path):
    write_run(tmp_path, "x", {}, splits={"test": {"last": {"top1": 0.5, "kl": 0.25}}})
    groups = find_runs(tmp_path)
    assert "T" not in distribution_table(groups)[0] and scaled_kl(next(iter(groups.values())), "last") == {}
    assert "0.250" in html_report(groups, "old") and "0.250" in markdown_report(groups)


def test_the_temperature_is_chosen_on_validation(tmp_path):
    for seed, at in ((1, 0.5), (2, 4.0)):
        splits = {"val": {"last": {"kl_by_temperature": kls(0.1, at)}},
                  "test": {"last": {"kl": 1.0, "kl_by_temperature": [0.01 * number for number in range(11)]}}}
        write_run(tmp_path, f"x/seed{seed}", {}, seed=seed, splits=splits)
    (runs,) = find_runs(tmp_path).values()
    assert scaled_kl(runs, "last") == {1: (pytest.approx(0.02), 0.5), 2: (pytest.approx(0.08), 4.0)}


def test_methods_with_other_texts_have_text_classifiers_of_their_own(tmp_path):
    write_distributions(tmp_path, "a/x-seed1", 0.6, 0.7, seed=1)
    write_distributions(tmp_path, "a/y-seed1", 0.8, 0.7, seed=1)
    write_distributions(tmp_path, "a/z-seed2", 0.5, 0.7, seed=2)  # another seed has another split: no contradiction
    groups = find_runs(tmp_path)
    assert [([key.experiment for key in keys], len(runs)) for keys, runs in
            shared_scores(groups, "text_classifier", "kl")] == [(["x", "z"], 2), (["y"], 1)]
    names = [row[3] for row in distribution_table(groups)[1:]]
    assert "text classifier of MultiLayerLaFTer (y)" in names and "zero-shot" in names


@pytest.mark.parametrize("options, learnt", [
    ((), "circle"),
    (("TRAIN.SUPERVISION", "labels", "DATASET.DISTRIBUTION_STRATEGY", "annotated"), "annotated"),
    (("TRAIN.SUPERVISION", "labels", "DATASET.DISTRIBUTION_STRATEGY", "strategy1"), "circle"),
])
def test_what_a_dual_task_learns_is_scored(tmp_path, options, learnt):
    """t = (1 − λ)·onehot(y) + λ·l against the annotated distribution, of every labelled test image."""
    annotated = [0.7, 0.1, 0.0, 0.1, 0.1, 0.0]
    rows = [["a.png", 0, "anger", annotated], ["b.png", -1, "", annotated], ["c.png", 1, "disgust", None]]
    write_distributions(tmp_path, "a/seed1", 0.6, 0.7, seed=1, dataset="emotion6")
    write_settings(tmp_path, "a/seed1", "emotion6", "DUAL_TASK.ENABLED", "True", "DUAL_TASK.LAMBDA", 0.6, *options)
    (tmp_path / "a/seed1/split.json").write_text(json.dumps(
        {"name": "emotion6", "classnames": EMOTIONS, "train": [], "val": [], "test": rows}), encoding="utf-8")
    circle = strategy1(torch.tensor([0]), class_distances(EMOTIONS, load_config("emotion6").DATASET.CIRCLE))
    target = 0.6 * (circle if learnt == "circle" else torch.tensor([annotated])) + 0.4 * torch.eye(6)[:1]
    groups = find_runs(tmp_path)
    row = next(row for row in distribution_table(groups) if row[3] == "target of MultiLayerLaFTer")
    assert row[4:6] == ["1", f"{kl(target, [annotated]):.3f}"]
    assert "A dual task's target is made with the true labels" in distribution_note(groups)


def test_what_runs_were(tmp_path):
    machine = {"date": "2026-11-28T01:02:03+00:00", "device": "cpu", "processor": "Some CPU", "torch": "2"}
    write_run(tmp_path, "a/seed1", {"last": 0.5}, seed=1, environment=machine, seconds=3725.4,
              data={"train": 70, "val": 10, "test": 20, "origin": ""})
    lines = [{"epoch": 0}, {"epoch": 1, "train_seconds": 40.4}, {"epoch": 2, "train_seconds": 30}]
    (tmp_path / "a/seed1/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    write_run(tmp_path, "b/seed2", {"last": 0.5}, seed=2, environment={"device": "NVIDIA H100"}, trainer="LaFTer")
    head, old, new = runs_table(find_runs(tmp_path))
    told = dict(zip(head, new))
    assert (told["test images"], told["date"], told["device"], told["training"], told["whole run"]) == (
        "20", "2026-11-28 01:02:03 UTC", "Some CPU", "0:01:10", "1:02:05")
    assert told["trained parameters"] == "49,160"
    assert dict(zip(head, old))["device"] == "NVIDIA H100" and dict(zip(head, old))["training"] == ""
    assert duration(0) == "" and duration(59.6) == "0:01:00"


def test_a_real_run_tells_what_the_report_asks_for(tmp_path):
    """Nine test images: three of each class."""
    make_inputs(tmp_path)
    LaFTer.main(arguments(tmp_path, "a", "--epochs", "1"))
    groups = find_runs(tmp_path / "runs")
    ((run,),) = groups.values()
    told = dict(zip(*runs_table(groups)))
    assert told["test images"] == "9" and told["training"] and told["device"] == run["environment"]["processor"]
    date = datetime.fromisoformat(run["environment"]["date"])
    assert timedelta() <= datetime.now(timezone.utc) - date < timedelta(hours=1)
    for metrics in run["splits"]["test"].values():
        images, right, confidence = map(sum, zip(*metrics["reliability"]))
        assert (images, right / images) == (9, pytest.approx(metrics["top1"])) and 3 < confidence <= 9
        gaps = sum(abs(right - confidence) for _, right, confidence in metrics["reliability"])
        assert gaps / 9 == pytest.approx(metrics["ece"])
    assert [row[:2] for row in class_table(groups)[1:]] == [[name, "3"] for name in CLASSNAMES]


def test_settings_that_differ(tmp_path):
    for name, *options in (("base",), ("short", "OPTIM.MAX_EPOCH", 3, "DATALOADER.NUM_WORKERS", 7, "SEED", 5)):
        write_run(tmp_path, f"x/{name}-seed1", {"last": 0.5}, seed=1)
        write_settings(tmp_path, f"x/{name}-seed1", "demo", *options)
    write_run(tmp_path, "x/old-seed1", {"last": 0.5}, seed=1)  # recorded no settings
    groups = find_runs(tmp_path)
    reference = {panel: choose_baseline(members) for panel, members in panels(groups).items()}
    assert [(row[0], *row[4:]) for row in settings_table(groups, reference)[1:]] == [
        ("MultiLayerLaFTer (old)", "MultiLayerLaFTer (base)", "not recorded"),
        ("MultiLayerLaFTer (short)", "MultiLayerLaFTer (base)", "OPTIM.MAX_EPOCH 3 (8)")]


def test_the_accuracy_of_each_class(tmp_path):
    for seed, (cat, dog), count in ((1, (0.5, 1.0), 4), (2, (0.7, None), 6)):
        last = {"top1": 0.5, "per_class_accuracy": [cat, dog], "confusion_matrix": [[count - 1, 1], [0, count]]}
        write_run(tmp_path, f"x/seed{seed}", {}, seed=seed, classnames=["cat", "狗"], splits={"test": {
            "zero_shot": {"top1": 0.5, "per_class_accuracy": [0.25, 0.5]}, "last": last}})
    groups = find_runs(tmp_path)
    assert class_table(groups) == [["class", "images", "zero-shot ↑", "MultiLayerLaFTer ↑"],
                                   ["cat", "5", "25.0 ± 0.0", "60.0 ± 14.1"], ["狗", "5", "50.0 ± 0.0", "100.0"]]
    assert "狗" in html_report(groups, "x")
    write_run(tmp_path / "old", "x", {"last": 0.5}, classnames=["cat", "dog"])
    assert len(class_table(find_runs(tmp_path / "old"))) == 1
