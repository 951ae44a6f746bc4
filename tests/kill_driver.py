"""Kills real runs of LaFTer.py and resumes them, each a process of its own, for test_kill.py."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import LaFTer
import trainers.evaluation
import trainers.text_classifier
import trainers.training
from tests import tiny_run
from tests.warm_start import started
from trainers.program import exit_with_message
from utils.runs.checkpoint import find_latest, load_checkpoint
from utils.runs.record import Run

SURVIVES = 10 ** 9


class Events:
    """Counts what a run does, by name, and sends the process `signals` at the event number `last`."""

    def __init__(self, last: int, signals: Sequence[int]):
        self.last, self.signals, self.names = last, signals, []

    def happen(self, name: str, at_death: Callable[[], object] | None = None) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self.last:
            if at_death and signal.SIGKILL in self.signals:
                at_death()
            for number in self.signals:
                os.kill(os.getpid(), number)

    def watch(self) -> None:
        """Hook the places where a run stands between two states."""
        self.wrap(trainers.text_classifier, "text_features", "text phase")
        self.wrap(trainers.text_classifier, "train_text_classifier", "text classifier")
        self.wrap(trainers.training, "choose_labels", "step")
        self.wrap(trainers.training, "update", "update")
        self.wrap(trainers.evaluation, "predict", "evaluation")
        self.wrap(Path, "unlink", "deletion")
        replace, fsync, append = os.replace, os.fsync, Run.append

        def watched_replace(source, target):
            name = "images" if Path(target).suffix == ".npy" else Path(target).name
            self.happen(f"before renaming {name}")
            replace(source, target)
            self.happen(f"after renaming {name}")

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


def watched_run(folder: Path, trainer: str, name: str, last: int, signals: Sequence[int]) -> None:
    """The program, told to go on where it stopped, in a process that gets `signals` at event `last`; leaves the events
    in events.json if it comes to its end."""
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    events = Events(last, signals)
    events.watch()
    arguments = [*tiny_run.arguments(folder, name, trainer=trainer), "--resume", "auto"]
    exit_with_message(lambda: LaFTer.main(arguments))
    (folder / "events.json").write_text(json.dumps(events.names))


def start(folder: Path, trainer: str, name: str, last: int = SURVIVES,
          signals: Sequence[int] = (signal.SIGKILL,)) -> tuple[int, list[str]]:
    """(The run's exit status, negative for a signal that ended it; its events if it came to its end)."""
    with started(watched_run, folder, trainer, name, last, signals) as process:
        process.join(120)
        status = process.exitcode
    return status, json.loads((folder / "events.json").read_text()) if status == 0 else []


def choose(names: list[str], part: int) -> list[int]:
    """The first (`part` 0) or last (1) event of every kind that is no file's, and those before (0) or after (1) a file
    is renamed, one epoch's file for all. Both parts together hold every kind."""
    kinds = {name for name in names if "epoch" not in name or "epoch0002" in name}
    kinds -= {name for name in kinds if name.startswith(("after renaming", "before renaming")[part])}
    return sorted([index for index, name in enumerate(names) if name == kind][-part] for kind in kinds)


def kill(folder: Path, trainer: str, names: list[str], points: list[int], whole: tuple) -> None:
    """One run per point, killed there, some a second time while they resume; nothing that was saved is lost."""
    for turn, point in enumerate(points):
        name, where = f"killed at {point}", (point, names[point])
        run = tiny_run.run_folder(folder, name, trainer)
        for last in [point, min(point // 3, 8)] if turn % 4 == 0 else [point]:
            status, _ = start(folder, trainer, name, last)
            assert status == -signal.SIGKILL, (where, status)
        finished = sum("after renaming epoch" in name for name in names[:point])
        latest = find_latest(run)
        assert (load_checkpoint(latest, {})["epoch"] if latest else 0) >= finished, where
        finish(folder, trainer, name, whole, where)


def interrupt(folder: Path, trainer: str, names: list[str], number: int, kinds: Sequence[str], whole: tuple) -> None:
    """SIGTERM or Ctrl-C at events of these kinds, within the second epoch's steps or at what follows them, if it does;
    and Ctrl-C twice, which does not wait."""
    step = [index for index, name in enumerate(names) if name == "step"][4]
    for kind in kinds:
        point = names.index(kind, step) if kind in names[step:] else names.index(kind)
        name, where = f"stopped at {point}", (point, kind)
        run = tiny_run.run_folder(folder, name, trainer)
        status, _ = start(folder, trainer, name, point, (number,))
        assert status == 128 + number, (where, status)
        assert f"stopped by {signal.Signals(number).name}; the same command" in (folder / "output.txt").read_text()
        expected = {"step": (1, 2), "evaluation": (1, 3), "writing": (2, 0)}.get(kind)
        if expected:  # (epochs done, batches done in the next): the step under way is finished
            state = load_checkpoint(find_latest(run), {})
            assert (state["epoch"], state["progress"]["step"]) == expected, where
        finish(folder, trainer, name, whole, where)
        assert not (run / "checkpoints" / "interrupted.pt").exists()
    status, _ = start(folder, trainer, "at once", step, (signal.SIGINT, signal.SIGINT))
    assert status == -signal.SIGINT, status


def finish(folder: Path, trainer: str, name: str, whole: tuple, where: tuple) -> None:
    """Resume a run to its end; it must equal the uninterrupted one."""
    run = tiny_run.run_folder(folder, name, trainer)
    status, _ = start(folder, trainer, name)
    assert status == 0, (where, (folder / "output.txt").read_text()[-3000:])
    tiny_run.assert_same(tiny_run.record(run), whole, str(where))
    assert not list(run.rglob("*.part")), where
