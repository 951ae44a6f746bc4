"""Runs that are killed or told to stop, anywhere, and resumed: the same weights and figures to the last bit."""

from __future__ import annotations

import os
import signal

import pytest

import LaFTer
from tests import kill_driver, tiny_run
from tests.test_processes import count_rows, wait_for
from utils.runs.checkpoint import find_latest, load_checkpoint, saved_epochs
from utils.runs.record import read_rows

KINDS = {"text phase", "text classifier", "step", "update", "evaluation", "writing", "row", "deletion"}
FILES = {"epoch0002.pt", "best.pt", "images", "config.yaml", "split.json", "final.json"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("trainer, part, number, stopped", [
    ("LaFTer", 0, signal.SIGTERM, ["step", "writing"]),
    ("MultiLayerLaFTer", 1, signal.SIGINT, ["step", "evaluation", "text classifier"])])
def test_a_run_killed_anywhere_resumes_to_the_same_last_bit(tmp_path, trainer, part, number, stopped):
    tiny_run.make_inputs(tmp_path)
    status, names = kill_driver.start(tmp_path, trainer, "whole")
    assert status == 0, (tmp_path / "output.txt").read_text()
    whole = tiny_run.record(tiny_run.run_folder(tmp_path, "whole", trainer))
    points = kill_driver.choose(names, part)
    files = {f"{('before', 'after')[part]} renaming {name}" for name in FILES}
    assert KINDS | files <= {names[point] for point in points}
    kill_driver.kill(tmp_path, trainer, names, points, whole)
    kill_driver.interrupt(tmp_path, trainer, names, number, stopped, whole)


@pytest.mark.skipif(os.name == "nt", reason="needs a process group's signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_with_loader_processes(tmp_path, launch, number):
    """Ctrl-C reaches every process of the terminal, SIGTERM mostly the main one alone."""
    tiny_run.make_inputs(tmp_path)
    run = tiny_run.run_folder(tmp_path, "x")
    process = launch(*tiny_run.arguments(tmp_path, "x", "--workers", "2", "--epochs", "2000"))
    wait_for(lambda: process.poll() is not None or count_rows(run) > 2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, said = process.communicate()
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
