"""LOG.TENSORBOARD: TensorBoard shows what metrics.jsonl holds, each epoch once, however often a run was resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import LaFTer
from tests import tiny_run
from trainers import training
from utils.config import load_config
from utils.errors import InputError
from utils.runs.identity import Identity
from utils.runs.record import Run
from utils.runs.tensorboard import LONGEST, scalars


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{name: [(step, value), …]} as TensorBoard itself reads the folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_numbers_of_a_row_and_their_names():
    row = {"epoch": 3, "loss": 0.5, "lr": {"prompts": 1e-3}, "sigma": [1.0, 2.0],
           "gradient_norms": {"prompts": [None, 4]}, "many": [0.0] * (LONGEST + 1),
           "val": {"top1": 0.25, "confusion_matrix": [[1, 0], [0, 1]], "unreadable": ["a.png"], "nothing": []}}
    assert dict(scalars(row)) == {"loss": 0.5, "lr/prompts": 1e-3, "sigma/0": 1.0, "sigma/1": 2.0,
                                  "gradient_norms/prompts/1": 4, "val/top1": 0.25}


def test_a_run_that_was_cut_off_has_each_epoch_once(tmp_path, monkeypatch):
    """Cut off where the third epoch's row is written and its checkpoint is not: that epoch is trained again."""
    pytest.importorskip("tensorboard")
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--resume", "auto", "LOG.TENSORBOARD", "True")
    save = training.save_checkpoint

    def cut_off(path: Path, content: dict) -> None:
        if content["epoch"] == 3:
            raise KeyboardInterrupt
        save(path, content)

    monkeypatch.setattr(training, "save_checkpoint", cut_off)
    with pytest.raises(KeyboardInterrupt):
        LaFTer.main(arguments)
    run = tiny_run.run_folder(tmp_path, "x")
    assert [step for step, _ in read_events(run / "tensorboard")["test/top1"]] == [0, 1, 2, 3]
    monkeypatch.setattr(training, "save_checkpoint", save)
    LaFTer.main(arguments)

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    expected: dict[str, list] = {}
    for row in rows:
        for name, value in scalars(row):
            expected.setdefault(name, []).append((row["epoch"], pytest.approx(value, rel=1e-6)))
    assert read_events(run / "tensorboard") == expected
    assert {"loss", "lr/prompts", "val/top1", "test/ece", "prompt_norms/0"} <= expected.keys()


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
    tiny_run.make_inputs(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="LOG.TENSORBOARD True needs the package tensorboard: pip install tensorboard"):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", "LOG.TENSORBOARD", "True"))
    assert not (tmp_path / "runs").exists()


def test_the_first_process_alone_writes(tmp_path):
    run = Run(tmp_path / "run", passive=True)
    run.start(load_config("demo", flags={"LOG.TENSORBOARD": True}), Identity())
    run.append({"epoch": 0, "loss": 1.0})
    assert not (tmp_path / "run").exists()
