"""Kills real runs of LaFTer.py and resumes them; a program of test_kill.py, which starts it as a process of its own.

    python -m tests.kill_driver FOLDER TRAINER POINTS

In FOLDER lie the inputs of `tiny_run`. Each run is a fork of this process, which has torch imported but has computed
nothing, so that a start costs little. Prints a JSON list of the events at which runs were killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import LaFTer
import trainers.engine
from tests import tiny_run
from utils.checkpoint import find_latest, load_checkpoint
from utils.record import Run

SURVIVES = 10 ** 9


class Events:
    """Counts what a run does, by name, and kills the process at the event number `last`."""

    def __init__(self, last: int):
        self.last, self.names = last, []

    def happen(self, name: str, at_death: Callable[[], object] | None = None) -> None:
        if len(self.names) == self.last:
            if at_death:
                at_death()
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def watch(self) -> None:
        """Hook the places where a run stands between two states."""
        self.wrap(LaFTer, "text_features", "text phase")
        self.wrap(LaFTer, "train_text_classifier", "text classifier")
        self.wrap(trainers.engine, "forward", "step")
        self.wrap(trainers.engine, "update", "update")
        self.wrap(trainers.engine, "predict", "evaluation")
        self.wrap(Path, "unlink", "deletion")
        replace, fsync, append = os.replace, os.fsync, Run.append

        def watched_replace(source, target):
            self.happen(f"before renaming {Path(target).name}")
            replace(source, target)
            self.happen(f"after renaming {Path(target).name}")

        def watched_fsync(number):  # dies with half of the file written
            self.happen("writing", lambda: os.ftruncate(number, os.fstat(number).st_size // 2))
            fsync(number)

        def watched_append(run, row):
            def half():
                with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row)[:40])
            self.happen("row", half)
            append(run, row)

        os.replace, os.fsync, Run.append = watched_replace, watched_fsync, watched_append

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def watched(*args, **kwargs):
            self.happen(name)
            return original(*args, **kwargs)

        setattr(owner, attribute, watched)


def start(folder: Path, trainer: str, name: str, last: int) -> tuple[int, list[str]]:
    """Run the program in a fork, killed at event `last`; (how it ended, as os.waitpid says, the events if it lived)."""
    report = folder / "events.json"
    child = os.fork()
    if not child:
        with (folder / "output.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        events = Events(last)
        events.watch()
        LaFTer.main([*tiny_run.arguments(folder, name, trainer=trainer), "--resume", "auto"])
        report.write_text(json.dumps(events.names))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status, json.loads(report.read_text()) if status == 0 else []


def choose(names: list[str], count: int) -> list[int]:
    """`count` events spread over the run, and the first and the last one of every name."""
    spread = {round(index * (len(names) - 1) / (count - 1)) for index in range(count)}
    ends = {names.index(name) for name in names} | {len(names) - 1 - names[::-1].index(name) for name in set(names)}
    saved = {index for index in ends if "renaming" not in names[index] or "0002" in names[index]
             or not names[index].endswith(".pt")}
    return sorted(spread | saved)


def main(folder: Path, trainer: str, count: int) -> None:
    torch.set_num_threads(1)
    status, names = start(folder, trainer, "whole", SURVIVES)
    assert status == 0, (folder / "output.txt").read_text()
    whole = tiny_run.record(tiny_run.run_folder(folder, "whole", trainer))
    points = choose(names, count)
    for turn, point in enumerate(points):
        name = f"killed at {point}"
        run = tiny_run.run_folder(folder, name, trainer)
        # every fourth run is killed a second time, while it resumes
        for last in [point, min(point // 3, 8)] if turn % 4 == 0 else [point]:
            status, _ = start(folder, trainer, name, last)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, names[point], status)
        finished = sum("after renaming epoch" in name for name in names[:point])
        latest = find_latest(run)
        assert (load_checkpoint(latest, {})["epoch"] if latest else 0) >= finished, (point, names[point])
        status, _ = start(folder, trainer, name, SURVIVES)
        assert status == 0, (point, names[point], (folder / "output.txt").read_text()[-3000:])
        tiny_run.assert_same(tiny_run.record(run), whole, f"{point} {names[point]}")
        assert not list(run.rglob("*.part")), (point, names[point])
    sys.stdout.write(json.dumps([names[point] for point in points]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
