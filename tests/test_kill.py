"""Runs that are killed or told to stop, anywhere, and resumed: the same weights and figures to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import LaFTer
from tests import tiny_run
from utils.runs.checkpoint import find_latest, load_checkpoint, saved_epochs
from utils.runs.record import read_rows

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}


@pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("trainer", tiny_run.TRAINERS)
def test_a_run_killed_anywhere_resumes_to_the_same_last_bit(tmp_path, trainer):
    tiny_run.make_inputs(tmp_path)
    done = subprocess.run([sys.executable, "-m", "tests.kill_driver", str(tmp_path), trainer, "8"], cwd=PROJECT,
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads(done.stdout)
    points = events["killed"]
    assert len(points) >= 20 and events["stopped"] == ["step", "evaluation", "writing", "text classifier"]
    assert {"text phase", "text classifier", "step", "update", "evaluation", "writing", "row", "deletion",
            "before renaming epoch0002.pt", "after renaming epoch0002.pt", "after renaming best.pt",
            "before renaming images", "after renaming images", "before renaming config.yaml",
            "before renaming split.json", "before renaming final.json"} <= set(points)


@pytest.mark.skipif(os.name == "nt", reason="needs a process group's signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_with_loader_processes(tmp_path, number):
    """Ctrl-C reaches every process of the terminal, SIGTERM mostly the main one alone."""
    tiny_run.make_inputs(tmp_path)
    run = tiny_run.run_folder(tmp_path, "x")
    process = subprocess.Popen([sys.executable, "LaFTer.py", *tiny_run.arguments(tmp_path, "x", "--workers", "2",
                                                                                 "--epochs", "2000")],
                               cwd=PROJECT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and f"stopped by {number.name}; the same command" in said
    assert "Traceback" not in said
    state = load_checkpoint(find_latest(run), {})
    assert state["epoch"] >= len(read_rows(run / "metrics.jsonl")) - 2
    assert not (run / "final.json").exists()


def test_going_back_to_an_earlier_checkpoint_writes_the_rest_again(tmp_path):
    """And does not trip over what was saved after it, if it is cut off on the way."""
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--keep", "0")
    LaFTer.main(arguments)
    run = tiny_run.run_folder(tmp_path, "x")
    rows = [{**row, "train_seconds": 0} for row in read_rows(run / "metrics.jsonl")]
    (run / "final.json").unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("trainers.training.choose_labels", lambda *_: 1 / 0)
        LaFTer.main([*arguments, "--resume", str(run / "checkpoints" / "epoch0002.pt")])
    assert saved_epochs(run / "checkpoints") == [1, 2]
    LaFTer.main([*arguments, "--resume", "auto"])
    assert [{**row, "train_seconds": 0} for row in read_rows(run / "metrics.jsonl")] == rows
