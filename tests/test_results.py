"""The summary of one run, and the table and the picture of many, from records written by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

import utils.results
from utils.errors import InputError
from utils.results import draw_curves, find_runs, format_summary, markdown_table, spread

RESULT = {
    "dataset": "demo", "trainer": "MultiLayerLaFTer", "backbone": "ViT-B/32", "seed": 1, "supervision": "pseudo",
    "epochs": 4, "best_epoch": 3,
    "parameters": {"prompts": 49_152, "nga": 4, "fusion": 4, "total": 151_326_473},
    "splits": {"val": {"zero_shot": {"top1": 0.5}},
               "test": {"zero_shot": {"top1": 0.615, "kl": 1.25}, "text_classifier": {"top1": 0.7, "kl": 0.75},
                        "last": {"top1": 0.8125, "kl": 0.5}, "best": {"top1": 0.825, "kl": 0.45}}},
}


def write_run(root: Path, name: str, top1: dict[str, float], curve: list[float] = (), **changes) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    result = RESULT | {"splits": {"test": {method: {"top1": value} for method, value in top1.items()}}} | changes
    (folder / "final.json").write_text(json.dumps(result), encoding="utf-8")
    rows = [{"epoch": epoch, "test": {"top1": value}} for epoch, value in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


# --- one run --------------------------------------------------------------------------------------------------------

def test_the_summary_of_a_run():
    lines = format_summary(RESULT).strip("\n").splitlines()
    assert lines[0].split() == ["split", "model", "top-1", "KL"]
    assert lines[1].split() == ["val", "zero-shot", "50.0", "%"]  # no KL was measured there
    assert lines[2].split() == ["test", "zero-shot", "61.5", "%", "1.250"]
    assert lines[3].split() == ["test", "text", "classifier", "70.0", "%", "0.750"]
    assert lines[5].split() == ["test", "tuned,", "best", "on", "validation", "82.5", "%", "0.450"]
    assert lines[6] == "best epoch on validation: 3 of 4"
    assert lines[7] == "trained parameters: 49,160 of 151,326,473 (prompts 49,152, nga 4, fusion 4)"
    assert len(lines) == 8 and len({len(line) for line in lines[:1] + lines[2:6]}) == 1  # columns stand in line


def test_the_summary_of_a_run_without_labels_says_so():
    result = {"splits": {"test": {"zero_shot": {"confidence": 0.25}}}}
    lines = format_summary(result).strip("\n").splitlines()
    assert "top-1" not in lines[0] and lines[1].split()[-2:] == ["25.0", "%"]
    assert "no accuracy" in lines[-1]


# --- many -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, text", [
    ([0.5], "50.0"), ([0.7, 0.72, 0.77], "73.0 ± 3.6"), ([0.5, None, 0.5], "50.0 ± 0.0"), ([None], ""), ([], ""),
])
def test_spread_is_the_mean_and_the_sample_deviation(values, text):
    assert spread(values) == text  # 70, 72, 77: deviations -3, -1, 4, so √(26 / 2) = 3.6


def test_seeds_share_a_row(tmp_path):
    for seed, last in ((1, 0.7), (2, 0.72), (3, 0.77)):
        write_run(tmp_path, f"demo/M/B/seed{seed}", {"zero_shot": 0.6, "last": last}, seed=seed)
        write_run(tmp_path, f"demo/M/B/wide-seed{seed}", {"zero_shot": 0.6, "last": last + 0.1}, seed=seed)
    write_run(tmp_path, "demo/M/B/trial", {"last": 0.9})
    (tmp_path / "demo" / "M" / "B" / "unfinished").mkdir()
    groups = find_runs(tmp_path)
    assert sorted((key[-1], len(runs)) for key, runs in groups.items()) == [("", 3), ("trial", 1), ("wide", 3)]
    rows = cells(markdown_table(groups))
    assert rows[0] == ["data", "supervision", "backbone", "trainer", "seeds", "zero-shot", "tuned, last epoch",
                       "published"]
    assert set("".join(rows[1])) == {"-"}
    assert rows[2:] == [
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer", "3", "60.0 ± 0.0", "73.0 ± 3.6", ""],
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer (trial)", "1", "", "90.0", ""],
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer (wide)", "3", "60.0 ± 0.0", "83.0 ± 3.6", ""]]


def test_published_figures_stand_beside_runs_that_they_compare_with(tmp_path):
    published = "CLIP 88.8, LaFTer 95.8"
    runs = {"a": (dict(), published), "b": (dict(trainer="LaFTer"), published), "c": (dict(backbone="ViT-B/16"), ""),
            "d": (dict(supervision="labels"), ""), "e": (dict(dataset="mine"), "")}
    for name, (changes, _) in runs.items():
        write_run(tmp_path, name, {"last": 0.9}, **({"dataset": "cifar10"} | changes))
    by_experiment = {row[3].split("(")[1].strip(")"): row[-1] for row in cells(markdown_table(find_runs(tmp_path)))[2:]}
    assert by_experiment == {name: expected for name, (_, expected) in runs.items()}


def test_a_folder_without_runs_is_named(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no finished run"):
            find_runs(root)


def test_a_damaged_record_is_named(tmp_path):
    write_run(tmp_path, "x", {"last": 0.5})
    (tmp_path / "x" / "final.json").write_text('{"dataset": "de', encoding="utf-8")
    with pytest.raises(InputError, match=r"x.final\.json"):
        find_runs(tmp_path)


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are drawn, kept open for a look."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    plt.close("all")


def test_the_picture_shows_what_was_measured(tmp_path, figures):
    write_run(tmp_path, "one/seed1", {"zero_shot": 0.6, "last": 0.8}, [0.6, 0.7, 0.8])
    write_run(tmp_path, "one/seed2", {"zero_shot": 0.6, "last": 0.9}, [0.6, 0.8, 0.9])
    write_run(tmp_path, "two/seed1", {"last": 0.5}, [0.4, 0.5], supervision="labels")
    draw_curves(find_runs(tmp_path), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 300
    left, right = figures[0].axes  # a panel per data set and supervision
    assert {left.get_title(), right.get_title()} == {"demo, pseudo, ViT-B-32", "demo, labels, ViT-B-32"}
    axis = left if "pseudo" in left.get_title() else right
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert lines["MultiLayerLaFTer"] == pytest.approx([60, 75, 85])  # the mean over the seeds
    assert lines["zero-shot"] == pytest.approx([60, 60])
    assert len(axis.get_lines()) == 4  # two runs, their mean, the baseline


def test_no_method_is_missing_in_the_picture(tmp_path, figures):
    for i in range(12):
        write_run(tmp_path, f"trial{i:02}", {"last": 0.5}, [0.4, 0.5])
    draw_curves(find_runs(tmp_path), tmp_path / "picture.png")
    labels = figures[0].axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == [f"MultiLayerLaFTer trial{i:02}" for i in range(12)]


@pytest.mark.filterwarnings("error")
def test_runs_without_training_make_a_picture_too(tmp_path):
    write_run(tmp_path, "zero", {"zero_shot": 0.6})
    write_run(tmp_path, "unlabelled", {}, dataset="mine")
    draw_curves(find_runs(tmp_path), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()


def test_the_command_writes_table_and_picture(tmp_path, caplog):
    write_run(tmp_path, "one/seed1", {"zero_shot": 0.6, "last": 0.8}, [0.6, 0.8])
    with caplog.at_level(logging.INFO):
        utils.results.main([str(tmp_path)])
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert table == markdown_table(find_runs(tmp_path)) + "\n"
    assert table.strip() in caplog.text
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.format == "PNG"
