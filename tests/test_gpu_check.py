"""The GPU check where there is no GPU: every kind of check at its smallest, the record, and what makes one fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import benchmark
import gpu_check
from benchmarks.parts import measure_step
from gpu_checks import parity, runs, speed
from gpu_checks.checks import SIZES
from gpu_checks.speed import measure_speed

CPU = torch.device("cpu")


def test_all_that_is_checked_passes_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.measure_apart", measure_step)  # here: another process would only take longer
    path = tmp_path / "record.json"
    record = gpu_check.main(["--device", "cpu", "--size", "tiny", "--only", "parity", "waiting", "demo", "speed",
                             "--json", str(path)])
    assert json.loads(path.read_text()) == record and record["kind"] == "cpu" and record["date"] and record["device"]
    assert {row["passed"] for row in record["checks"]} == {"yes"}
    kinds = [row["check"] for row in record["checks"]]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "parity": 12, "demo": 2}
    assert len({row["case"] for row in record["checks"]}) == 14
    assert [(row["backbone"], row["way"]) for row in record["steps"]] == [("tiny", "eager")]
    assert [row["compiled"] for row in record["views"]] == [False] and not record["failed"] + record["left_out"]
    printed = capsys.readouterr().out
    assert "| parity | LaFTer, ema teacher, graph | yes |" in printed and "14 of 14 checks passed" in printed


def test_a_killed_run_and_two_processes(tmp_path):
    """Three processes of the program, so that this takes its time."""
    for checks in (runs.resume_checks, runs.process_checks):
        (check,) = checks(SIZES["tiny"], CPU, tmp_path)
        assert check.passed and check.value < 1e-6, check
    assert {path.name for path in runs.run_folder(tmp_path, "").iterdir()} == {"fp32", "killed", "two"}


def test_another_loss_fails_the_check_and_the_exit_status_tells(monkeypatch, capsys):
    monkeypatch.setattr(parity, "take_step", lambda training, objective, cfg, batch: {
        "loss": 1.0 if cfg.DATALOADER.TRAIN_X.MICRO_BATCH else 1.001})
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--device", "cpu", "--size", "tiny", "--only", "parity"])
    with pytest.raises(SystemExit) as end:
        gpu_check.check_or_fail()
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "| NO | largest difference of a loss | 0.001 |" in printed
    assert "0 of 12 checks passed" in printed
    assert "NOT as it should be: parity: LaFTer, shared teacher, eager" in printed


def test_what_there_is_no_time_for_is_left_out_and_named(capsys, monkeypatch):
    assert measure_speed(SIZES["full"], CPU, -1.0)["left_out"][0] == "shared teacher, ViT-B/32, bf16, eager"
    assert "left out, for want of time: shared teacher, ViT-B/32, bf16, eager; " in capsys.readouterr().out
    now = [0.0]
    monkeypatch.setattr("benchmark.time.perf_counter", lambda: now[0])
    clock = benchmark.Clock(10.0)

    def case(seconds: float):
        now[0] += seconds
        return [{"seconds": seconds}]

    cases = [(name, lambda seconds=seconds: case(seconds)) for name, seconds in
             (("a", 1.0), ("b", 5.0), ("c", 3.0), ("d", 0.5))]  # c might take as long as b did: 6 + 5 > 10
    assert [row["seconds"] for row in clock.run(cases)] == [1.0, 5.0] and clock.left_out == ["c", "d"]


def test_an_error_is_a_check_that_failed_and_does_not_end_the_others(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise RuntimeError("CUDA error:\nout of memory")

    monkeypatch.setattr(parity, "make_clip", fail)
    monkeypatch.setattr(runs, "run_here", fail)
    monkeypatch.setattr(speed, "measure_views", fail)
    monkeypatch.setattr("benchmark.measure_apart", fail)
    record = gpu_check.main(["--device", "cpu", "--size", "tiny", "--only", "parity", "demo", "speed"])
    message = "CUDA error: out of memory"
    assert gpu_check.failures(record) == [f"parity: an error: {message}", f"demo: an error: {message}",
                                          f"speed: shared teacher, tiny, fp32, eager: {message}",
                                          f"speed: views: {message}"]
    assert f"| demo | an error: {message} | NO |" in capsys.readouterr().out
