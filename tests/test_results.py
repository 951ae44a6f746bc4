"""The summary of one run, and the tables of many, from records written by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

import utils.results
from utils.errors import InputError
from utils.report.groups import choose_baseline, find_confusion, find_runs
from utils.report.html import markdown_report
from utils.report.tables import accuracy_table, difference_table, further_table, markdown, spread
from utils.results import format_summary

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
    assert lines[0].split() == ["split", "model", "top-1", "↑", "KL", "↓"]
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


def test_the_summary_of_a_run_that_scored_nothing_says_so():
    for splits in ({}, {"test": {}}):
        assert "labelled" not in (text := format_summary({"splits": splits})) and "nothing was scored" in text


# --- many -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, text", [
    ([50], "50.0"), ([70, 72, 77], "73.0 ± 3.6"), ([50, 50], "50.0 ± 0.0"), ([], ""),
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
    assert sorted((key.experiment, len(runs)) for key, runs in groups.items()) == [("", 3), ("trial", 1), ("wide", 3)]
    rows = cells(markdown(accuracy_table(groups)))
    assert rows[0] == ["data", "supervision", "backbone", "trainer", "seeds", "zero-shot", "tuned, last epoch",
                       "published"]
    assert set("".join(rows[1])) == {"-"}
    assert rows[2:] == [
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer", "3", "60.0 ± 0.0", "73.0 ± 3.6", ""],
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer (trial)", "1", "", "90.0", ""],
        ["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer (wide)", "3", "60.0 ± 0.0", "83.0 ± 3.6", ""]]


def test_a_folder_without_runs_is_named(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no finished run"):
            find_runs(root)


def test_a_damaged_record_is_named(tmp_path):
    write_run(tmp_path, "x", {"last": 0.5})
    for text in ('{"dataset": "de', "{}", "[]"):
        (tmp_path / "x" / "final.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"x.final\.json"):
            find_runs(tmp_path)


def test_runs_of_different_output_folders_are_not_one_method(tmp_path):
    """`append` may mean other epochs in another experiment: neither seeds nor differences go across."""
    for where, last in (("demo", 0.5), ("experiments/a/demo", 0.7), ("experiments/b/demo", 0.9)):
        for seed in (1, 2):
            write_run(tmp_path, f"{where}/M/B/append-seed{seed}", {"last": last}, seed=seed)
            write_run(tmp_path, f"{where}/L/B/seed{seed}", {"last": last - 0.01 * seed}, seed=seed, trainer="LaFTer")
    groups = find_runs(tmp_path)
    rows = {tuple(row[:5:4]) + (row[3], row[5]) for row in accuracy_table(groups)[1:]}
    assert {row for row in rows if "append" in row[2]} == {
        ("demo", "2", "MultiLayerLaFTer (append)", "50.0 ± 0.0"),
        ("experiments/a/demo", "2", "MultiLayerLaFTer (append)", "70.0 ± 0.0"),
        ("experiments/b/demo", "2", "MultiLayerLaFTer (append)", "90.0 ± 0.0")}
    assert [row[-2:] for row in difference_table(groups)[1:]] == [["+1.5 [−4.9, +7.9]", ""]] * 3  # t = 12.706
    assert sorted(key.panel[0] for key in find_runs(tmp_path / "experiments" / "a")) == ["demo", "demo"]


def test_two_runs_of_one_method_and_seed_are_refused(tmp_path):
    for name in ("demo/M/B/wide-seed1", "demo/M/B/wide-seed2"):
        write_run(tmp_path, name, {"last": 0.5}, seed=1)
    with pytest.raises(InputError, match="wide-seed1 and .*wide-seed2 are one method with one seed, 1"):
        find_runs(tmp_path)


# --- methods against each other -------------------------------------------------------------------------------------

def test_differences_are_paired_by_seed(tmp_path):
    """Differences of 1, 2 and 6 points on the seeds that both have: mean 3, s = √7, t = 4.303, so ± 6.6."""
    for seed, (base, last) in enumerate([(0.70, 0.71), (0.80, 0.82), (0.60, 0.66)], start=1):
        write_run(tmp_path, f"demo/one/base-seed{seed}", {"last": base, "best": base}, seed=seed)
        write_run(tmp_path, f"demo/other/wide-seed{seed}", {"last": last, "best": base}, seed=seed)
    write_run(tmp_path, "demo/other/wide-seed9", {"last": 0.1, "best": 0.1}, seed=9)  # the baseline lacks it
    write_run(tmp_path, "demo/single/alone-seed1", {"last": 0.9, "best": 0.9}, seed=1)  # no interval from one seed
    head, *rows = difference_table(find_runs(tmp_path))
    assert head[4:] == ["against", "seeds", "last epoch ↑", "best on validation ↑"]
    assert rows == [["demo", "pseudo", "ViT-B-32", "MultiLayerLaFTer (wide)", "MultiLayerLaFTer (base)", "3",
                     "+3.0 [−3.6, +9.6]", "+0.0 [+0.0, +0.0]"]]


def test_the_baseline_is_the_one_named_or_the_base_or_lafter(tmp_path):
    for name, changes in {"x-seed1": dict(trainer="LaFTer"), "base-seed1": {}, "y-seed1": {}, "seed1": {}}.items():
        write_run(tmp_path, f"runs/{name}", {"last": 0.5}, **changes)
    groups = find_runs(tmp_path)
    assert choose_baseline(groups).experiment == "base"
    assert choose_baseline(groups, "y").experiment == choose_baseline(groups, "MultiLayerLaFTer (y)").experiment == "y"
    without = {key: runs for key, runs in groups.items() if key.experiment != "base"}
    assert choose_baseline(without).trainer == "LaFTer"
    with pytest.raises(InputError, match=r"--baseline z: no such method.*LaFTer \(x\), MultiLayerLaFTer, "):
        utils.results.main([str(tmp_path), "--baseline", "z"])


def test_a_probe_is_compared_as_the_trainers_are(tmp_path):
    """Top-1 and KL differ by 10 and 20 points, .1 and .3: mean .2, s = .1414, t = 12.706, so ± 1.271."""
    for seed, (top1, kl) in enumerate([(0.1, 0.1), (0.2, 0.3)], start=1):
        for name, method, gain in (("LinearProbe", "tuned", 0), ("MultiLayerLaFTer", "last", 1)):
            write_run(tmp_path, f"{name}/seed{seed}", {}, seed=seed, trainer=name,
                      splits={"test": {method: {"top1": 0.5 + gain * top1, "kl": 0.5 + gain * kl}}})
    write_run(tmp_path, "LaFTer/zero_shot-seed1", {"zero_shot": 0.4}, trainer="LaFTer")  # tuned nothing: no baseline
    head, row = difference_table(find_runs(tmp_path))
    assert head[-1] == "KL, last epoch ↓"
    assert row[3:] == ["MultiLayerLaFTer", "LinearProbe", "2", "+15.0 [−48.5, +78.5]", "", "+0.200 [−1.071, +1.471]"]


def test_confusions_are_added_over_the_seeds(tmp_path):
    for seed, counts in ((1, [[3, 1], [0, 4]]), (2, [[2, 2], [1, 3]])):
        write_run(tmp_path, f"a/seed{seed}", {}, seed=seed, splits={"test": {"last": {"confusion_matrix": counts}}})
    write_run(tmp_path, "b/seed1", {"last": 0.5}, trainer="LaFTer")
    plain, staged = find_runs(tmp_path).values()
    assert find_confusion(staged) == [[5, 3], [1, 7]] and find_confusion(plain) == []


def test_what_else_tells_of_the_classes(tmp_path):
    write_run(tmp_path, "x/probe-seed1", {}, seed=1, trainer="LinearProbe",
              splits={"test": {"tuned": {"top1": 0.5, "macro_f1": 0.4, "ece": 0.125}}})
    write_run(tmp_path, "x/plain-seed1", {"last": 0.5}, seed=1)
    labelled = find_runs(tmp_path)
    assert further_table(labelled) == [["data", "supervision", "backbone", "trainer", "seeds", "macro-F1 ↑", "ECE ↓"],
                                       ["demo", "pseudo", "ViT-B-32", "LinearProbe (probe)", "1", "40.0", "12.5"]]
    for seed, agreement in ((1, 0.7), (2, 0.8)):
        write_run(tmp_path, f"y/mine-seed{seed}", {}, seed=seed, dataset="mine",
                  splits={"test": {"last": {"agreement": agreement, "confidence": 0.5}}})
    (*_, mine) = further_table(find_runs(tmp_path / "y"))
    assert mine[-2:] == ["75.0 ± 7.1", "50.0 ± 0.0"]
    assert "75.0 ± 7.1" in markdown_report(find_runs(tmp_path))


def test_runs_that_differ_in_more_than_the_seed_share_no_row(tmp_path):
    for seed, epochs, root in ((1, 3, "here"), (2, 3, "there"), (3, 50, "there")):
        write_run(tmp_path, f"x/seed{seed}", {"last": 0.5}, seed=seed)
        (tmp_path / f"x/seed{seed}/config.yaml").write_text(
            f"SEED: {seed}\nOPTIM: {{MAX_EPOCH: {epochs}}}\nDATASET: {{ROOT: {root}}}\n", encoding="utf-8")
    with pytest.raises(InputError, match="seed3 would share a row with .*seed1, but OPTIM.MAX_EPOCH is 3 there and 50"):
        find_runs(tmp_path)
    (tmp_path / "x/seed3").rename(tmp_path / "x/long-seed3")
    assert [len(runs) for runs in find_runs(tmp_path).values()] == [2, 1]


def test_runs_of_other_weights_or_texts_share_no_row(tmp_path):
    told = {"weights": "a" * 64, "quick_gelu": True, "texts": {}, "sizes": {"train": [], "val": [], "test": []}}
    for seed, changes in ((1, {}), (2, {"texts": {"DATASET.DESCRIPTIONS": "b"}}), (3, {"weights": "c" * 64})):
        write_run(tmp_path, f"x/seed{seed}", {"last": 0.5}, seed=seed)
        (tmp_path / f"x/seed{seed}/identity.json").write_text(json.dumps(told | changes), encoding="utf-8")
    with pytest.raises(InputError, match="seed1, but the file of DATASET.DESCRIPTIONS has another content"):
        find_runs(tmp_path)
    (tmp_path / "x/seed2").rename(tmp_path / "x/other-seed2")
    with pytest.raises(InputError, match="seed1, but the backbone's weights have SHA-256 aaaaaaaaaaaa… there and cccc"):
        find_runs(tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------

def test_the_command_writes_tables_pictures_and_report(tmp_path, caplog):
    for seed in (1, 2):
        write_run(tmp_path, f"one/seed{seed}", {"zero_shot": 0.6, "last": 0.8}, [0.6, 0.8], seed=seed)
        write_run(tmp_path, f"two/seed{seed}", {"last": 0.7}, [0.6, 0.7], seed=seed, trainer="LaFTer")
    with caplog.at_level(logging.INFO):
        utils.results.main([str(tmp_path), "--html", str(tmp_path / "page.html"), "--markdown", str(tmp_path / "t.md")])
    groups = find_runs(tmp_path)
    written = (tmp_path / "t.md").read_text(encoding="utf-8")
    for table in (accuracy_table(groups), difference_table(groups)):
        assert markdown(table) in written and markdown(table) in caplog.text
    for name in ("results.png", "comparison.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "report.html").exists()


# --- what the predictions are ---------------------------------------------------------------------------------------

def test_the_summary_counts_the_predictions_and_says_where_they_mean_nothing():
    names = ["beach", "city", "forest"]
    methods = {"zero_shot": {"confidence": 0.4, "predicted": [20, 20, 18]},
               "last": {"confidence": 0.4, "agreement": 0.9, "predicted": [1, 57, 0]},
               "best": {"confidence": 0.4, "agreement": 0.9, "predicted": [0, 0, 58]}}
    lines = format_summary({"classnames": names, "splits": {"test": methods}, "test_in_train": 58}).splitlines()
    assert "predicted, test, tuned, last epoch: city 57, beach 1, forest 0" in lines
    (told,) = [line for line in lines if line.startswith("nearly all images are predicted as one class")]
    assert "test, tuned, last epoch: city" in told and "best on validation: forest" in told and "zero-shot" not in told
    assert "58 of the test images are training images: their figures tell nothing of new images" in lines


def test_the_predictions_of_many_classes_are_told_shortly():
    counts = [0] * 30 + list(range(1, 21))
    methods = {"last": {"top1": 0.5, "predicted": counts}}
    result = {"classnames": [f"c{i}" for i in range(50)], "splits": {"test": methods}}
    (told,) = [line for line in format_summary(result).splitlines() if line.startswith("predicted")]
    assert told.endswith(": c49 20, c48 19, c47 18, c46 17, c45 16, c44 15, c43 14, c42 13; 42 others 78, 30 classes "
                         "never")
