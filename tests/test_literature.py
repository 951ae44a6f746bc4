"""Published figures stand beside runs of the same weights, data, split and protocol, and the report says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_results import write_run
from utils.config import load_config
from utils.report.html import markdown_report
from utils.report.tables import accuracy_table, distribution_note, distribution_table, find_runs, published_note


def write_published(root: Path, name: str, *settings: str, dataset: str = "cifar10", **changes) -> None:
    """A run as the published ones were, but for `settings` (KEY, value, …) and `changes` of its final.json."""
    write_run(root, name, {"last": 0.9}, **({"dataset": dataset, "official": "ViT-B/32",
                                             "data": {"test": 10_000, "origin": ""}} | changes))
    (root / name / "config.yaml").write_text(load_config(dataset, options=settings).dump(), encoding="utf-8")


PUBLISHED = "CLIP 88.8, LaFTer 95.8"
PROTOCOLS = {
    "as published": ((), {}, ""),
    "LaFTer": ((), {"trainer": "LaFTer"}, ""),
    "its own size": (("INPUT.SIZE", "224"), {}, ""),
    "another model": ((), {"backbone": "ViT-B/16", "official": "ViT-B/16"}, "not OpenAI's official ViT-B/32"),
    "a file of that name": ((), {"backbone": "weights/ViT-B-32.pt", "official": ""}, "not OpenAI's official ViT-B/32"),
    "labels": ((), {"supervision": "labels"}, "it learns from labels"),
    "few shots": (("DATASET.NUM_SHOTS", "4"), {}, "DATASET.NUM_SHOTS is 4"),
    "half": (("DATASET.SUBSAMPLE_CLASSES", "base"), {}, "DATASET.SUBSAMPLE_CLASSES is 'base'"),
    "another size": (("INPUT.SIZE", "112"), {}, "INPUT.SIZE is 112"),
    "texts": (("TEXT.MODE", "templates_only"), {}, "TEXT.MODE is 'templates_only'"),
    "a split of one's own": (("DATASET.SPLIT_FILE", "mine.json"), {}, "DATASET.SPLIT_FILE is 'mine.json'"),
    "fewer images": ((), {"data": {"test": 9_000, "origin": ""}}, "9000 test images, the published split 10000"),
    "an old record": ((), {"data": {}}, "an unknown number of test images"),
}


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_published_figures_stand_beside_runs_of_their_protocol_alone(tmp_path, kind):
    settings, changes, reason = PROTOCOLS[kind]
    write_published(tmp_path, "trial", *settings, **changes)
    groups = find_runs(tmp_path)
    assert accuracy_table(groups)[1][-1] == ("" if reason else PUBLISHED)
    note = published_note(groups)
    if reason:
        trainer = changes.get("trainer", "MultiLayerLaFTer")
        assert note.startswith(f"No published figures beside cifar10, {trainer} (trial) (") and reason in note
    else:
        assert note.startswith("LaFTer's published accuracy is the best over its test epochs") and "beside" not in note
    assert note in markdown_report(groups)


def test_a_carved_split_is_not_the_published_one(tmp_path):
    """As many images as the published split, but drawn."""
    for name, origin in (("drawn", ""), ("given", "split_zhou_EuroSAT.json")):
        write_published(tmp_path, name, dataset="eurosat", data={"test": 8_100, "origin": origin})
    groups = find_runs(tmp_path)
    assert {row[3]: row[-1] for row in accuracy_table(groups)[1:]} == {
        "MultiLayerLaFTer (drawn)": "", "MultiLayerLaFTer (given)": "CLIP 45.1, LaFTer 73.9"}
    assert published_note(groups).endswith("beside eurosat, MultiLayerLaFTer (drawn) (its split is not that of "
                                           "split_zhou_EuroSAT.json).")


def test_a_random_fifth_may_differ_by_a_few_images(tmp_path):
    for name, test in (("fifth", 1_497), ("all", 7_500)):
        write_published(tmp_path, name, "TEXT.MODE", "lafter", dataset="imagenet_a", data={"test": test, "origin": ""})
    assert [row[-1] for row in accuracy_table(find_runs(tmp_path))[1:]] == ["", "CLIP 29.6, LaFTer 31.5"]


def test_one_note_for_all_runs_without_published_figures(tmp_path):
    for name in "abcd":
        write_run(tmp_path, name, {"last": 0.5})
        write_published(tmp_path, f"few-{name}", "DATASET.NUM_SHOTS", "4")
    assert published_note(find_runs(tmp_path)) == (
        "No published figures beside cifar10, MultiLayerLaFTer (few-a); cifar10, MultiLayerLaFTer (few-b); cifar10, "
        "MultiLayerLaFTer (few-c) and 1 more (DATASET.NUM_SHOTS is 4); demo (none are known).")


@pytest.mark.parametrize("settings, classes, told", [
    ((), 6, ""), (("DATASET.NEUTRAL", "keep"), 6, "DATASET.NEUTRAL is 'keep'"),
    (("DATASET.NUM_SHOTS", "4"), 6, "DATASET.NUM_SHOTS is 4"),
    (("DATASET.SUBSAMPLE_CLASSES", "new"), 6, "DATASET.SUBSAMPLE_CLASSES is 'new'"),
    ((), 7, "it has 7 classes, not 6")])
def test_distributions_stand_above_published_ones_of_the_same_classes(tmp_path, settings, classes, told):
    write_published(tmp_path, "one", *settings, dataset="emotion6", classnames=list("abcdefg"[:classes]),
                    splits={"test": {"last": {"top1": 0.5, "kl": 0.25}}})
    write_run(tmp_path, "two", {"last": 0.5}, dataset="emotion6")
    groups = find_runs(tmp_path)
    head, run, *published = distribution_table(groups)
    assert head[5] == "KL ↓" and run[3:6] == ["MultiLayerLaFTer (one)", "1", "0.250"] and len(head) == len(run)
    if told:
        assert published == []
        assert distribution_note(groups) == f"No published figures beside emotion6, MultiLayerLaFTer (one) ({told})."
    else:
        (row,) = published
        assert row[3:6] == ["StyleEDL (published)", "", "0.36"] and len(row) == len(run)
        assert distribution_note(groups).startswith("Published rows are from the literature and of other splits")
    assert distribution_note(groups) in markdown_report(groups)
