"""Published figures: beside which runs they stand, and what the report says where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_results import write_run
from utils.config import load_config
from utils.report.groups import find_runs
from utils.report.html import markdown_report
from utils.report.tables import accuracy_table, distribution_note, distribution_table, published_note

COMPARABLE = {"official": "ViT-B/32", "data": {"train": 50_000, "val": 0, "test": 10_000, "origin": ""}}


def write_settings(root: Path, name: str, dataset: str, *options: object) -> None:
    cfg = load_config(dataset, options=list(map(str, options)))
    (root / name / "config.yaml").write_text(cfg.dump(), encoding="utf-8")


def published_beside(root: Path, dataset: str, *options: object, **changes) -> tuple[str, str]:
    """(the published figures beside a run, the report's note)."""
    write_run(root, "x/seed1", {"last": 0.9}, **({"dataset": dataset} | COMPARABLE | changes))
    write_settings(root, "x/seed1", dataset, *options)
    groups = find_runs(root)
    return accuracy_table(groups)[1][-1], published_note(groups)


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
@pytest.mark.parametrize("options", [(), ("INPUT.SIZE", 224), ("MODEL.PRECISION", "bf16")])
def test_published_figures_stand_beside_runs_that_they_compare_with(tmp_path, trainer, options):
    told, note = published_beside(tmp_path, "cifar10", *options, trainer=trainer)
    assert told == "CLIP 88.8, LaFTer 95.8"
    assert "published accuracy is the best over its test epochs; ours is the last epoch's" in note
    assert "No published figures" not in note and note in markdown_report(find_runs(tmp_path))


@pytest.mark.parametrize("options, changes, reason", [
    ((), {"official": ""}, "its backbone is not OpenAI's official ViT-B/32"),
    ((), {"official": "ViT-B/16"}, "its backbone is not OpenAI's official ViT-B/32"),
    (("TRAIN.SUPERVISION", "labels"), {"supervision": "labels"}, "it learns from labels"),
    (("DATASET.NUM_SHOTS", 16), {}, "DATASET.NUM_SHOTS is [16]"),
    (("DATASET.SUBSAMPLE_CLASSES", "base"), {}, "DATASET.SUBSAMPLE_CLASSES is 'base'"),
    (("DATASET.SPLIT_FILE", "mine.json"), {}, "DATASET.SPLIT_FILE is 'mine.json'"),
    (("INPUT.SIZE", 112), {}, "INPUT.SIZE is 112"),
    (("MODEL.BACKBONE.QUICK_GELU", "False"), {}, "MODEL.BACKBONE.QUICK_GELU is False"),
    (("TEXT.MODE", "cls_only"), {}, "TEXT.MODE is 'cls_only'"),
    ((), {"data": {"test": 9_000, "origin": ""}}, "it has 9000 test images, the published split 10000"),
    ((), {"data": {}}, "it has an unknown number of test images, the published split 10000"),
])
def test_published_figures_stand_beside_no_other_runs(tmp_path, options, changes, reason):
    told, note = published_beside(tmp_path, "cifar10", *options, **changes)
    assert told == "" and note == f"No published figures beside cifar10, MultiLayerLaFTer ({reason})."


def test_published_figures_are_of_the_published_split(tmp_path):
    """Three tenths of EuroSAT's 27,000 images, drawn here, are as many as those of the published file."""
    for name, origin, expected in (("a", "", ""), ("b", "split_zhou_EuroSAT.json", "CLIP 45.1, LaFTer 73.9")):
        (tmp_path / name).mkdir()
        data = {"train": 13_500, "val": 5_400, "test": 8_100, "origin": origin}
        told, note = published_beside(tmp_path / name, "eurosat", data=data)
        assert told == expected and ("its split is not that of split_zhou_EuroSAT.json" in note) == (not origin)


def test_a_run_without_a_record_of_its_protocol_has_no_figures_beside_it(tmp_path):
    write_run(tmp_path, "x", {"last": 0.9}, dataset="cifar10", **COMPARABLE)
    write_run(tmp_path, "y", {"last": 0.9}, dataset="mine")
    note = published_note(find_runs(tmp_path))
    assert "its config.yaml is not there" in note and "mine (none are known)" in note


def test_distributions_stand_beside_published_ones(tmp_path):
    scored = {"test": {"last": {"top1": 0.5, "kl": 0.25}}}
    write_run(tmp_path, "one", {}, dataset="emotion6", splits=scored, classnames=list("abcdef"))
    write_settings(tmp_path, "one", "emotion6")
    write_run(tmp_path, "two", {"last": 0.5}, dataset="emotion6")
    groups = find_runs(tmp_path)
    head, run, published = distribution_table(groups)
    note = "Published rows are from the literature and of other splits"
    assert distribution_note(groups).startswith(note) and distribution_note(groups) in markdown_report(groups)
    assert head[5] == "KL ↓" and run[3:6] == ["MultiLayerLaFTer (one)", "1", "0.250"]
    assert published[3:6] == ["StyleEDL (published)", "", "0.36"] and len(head) == len(run) == len(published)


@pytest.mark.parametrize("options, classes, reason", [
    (("DATASET.NEUTRAL", "keep"), 7, "it has 7 classes, not 6"), (("DATASET.NUM_SHOTS", 5), 6, "NUM_SHOTS is [5]"),
    (("DATASET.SUBSAMPLE_CLASSES", "new"), 3, "it has 3 classes, not 6"),
    (("DATASET.DISTRIBUTION_STRATEGY", "strategy1"), 6, "DISTRIBUTION_STRATEGY is 'strategy1'"),
])
def test_published_distributions_stand_below_no_others(tmp_path, options, classes, reason):
    scored = {"test": {"last": {"top1": 0.5, "kl": 0.25}}}
    write_run(tmp_path, "one", {}, dataset="emotion6", splits=scored, classnames=list("abcdefg"[:classes]))
    write_settings(tmp_path, "one", "emotion6", *options)
    groups = find_runs(tmp_path)
    assert len(distribution_table(groups)) == 2 and reason in distribution_note(groups)
