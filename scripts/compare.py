"""Run an experiment: all runs of a grid that have no final.json yet, several at a time, then their report.

    python scripts/compare.py configs/experiments/demo.yaml --jobs 2

The YAML names the runs (configs/experiments/README.md). What follows the file and is no flag of this program goes to
every LaFTer.py: `--root data --device cpu DATALOADER.NUM_WORKERS 0`. An unfinished run goes on from its last
checkpoint; a failed one does not stop the others, and the program ends with status 1. Each run's output lies beside
its folder, as NAME.log. Ctrl-C stops all; the same command goes on. With --slurm the runs are a cluster's jobs, which
Ctrl-C leaves in its queue.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import utils.results
from clip import ClipError, weights_hash
from scripts import slurm
from trainers.build import load_clip
from trainers.calibration import settle_calibration
from trainers.program import exit_with_message
from utils.config import PROJECT
from utils.datasets.table import load_dataset
from utils.errors import InputError
from utils.runs.experiment import Cell, read_experiment
from utils.runs.identity import Identity, identify
from utils.runs.record import Run
from utils.values import with_value

USER_ERRORS = (InputError, ClipError, FileNotFoundError)
POLL_SECONDS = 0.2
GRACE_SECONDS = 10  # between asking a run to stop and ending it


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run an experiment's runs and report them. What follows the file and "
                                                 "is no flag listed here goes to every LaFTer.py.", allow_abbrev=False)
    parser.add_argument("experiment", type=Path, help="YAML of the experiment, such as configs/experiments/demo.yaml")
    parser.add_argument("--output", default="", help="folder for the runs instead of the YAML's")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the runs whose name, as --dry-run lists it, "
                                                                    "holds this")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one, or one per GPU)")
    parser.add_argument("--gpus", default="", help="GPUs that the jobs take turns on, such as 0,1")
    parser.add_argument("--baseline", default="", metavar="NAME", help="the trainer or experiment that the report "
                        "compares others with (default: the experiment 'base', else the first of LaFTer)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands, run nothing")
    slurm.add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args, extra = build_parser().parse_known_args(argv)
    settings = slurm.read_flags(args)
    cells = select(read_experiment(find_experiment(args.experiment), args.output, extra), args.only)
    processes = settings.get("gpus", 1)
    if args.dry_run:
        for cell in cells:
            state = "finished" if cell.finished else "unfinished" if cell.begun else "to run"
            print(f"{cell.name} ({state}): {shlex.join(command(cell, processes))}")
        return
    gpus = [gpu.strip() for gpu in args.gpus.split(",") if gpu.strip()]
    if args.jobs < 0:
        raise InputError(f"--jobs {args.jobs}: give the number of runs at a time")
    output = Path(args.output or cells[0].folder.parents[3])
    interrupt_at_signals()
    try:
        if args.slurm:
            failures = run_in_slurm(cells, settings, output / "slurm", args.experiment.stem, args.jobs)
        else:
            failures = run_cells(cells, args.jobs or max(1, len(gpus)), gpus)
    except KeyboardInterrupt:
        sys.exit("the jobs stay in the queue; the same command waits for them" if args.slurm else
                 "stopped; the same command goes on where this one was")
    for cell, reason in failures.items():
        print(f"failed: {cell}: {reason}", file=sys.stderr)
    if any(cell.finished for cell in cells):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        utils.results.main([str(output), "--baseline", args.baseline])
    if failures:
        sys.exit(f"{len(failures)} of {len(cells)} runs failed; the same command tries them again")


def find_experiment(path: Path) -> Path:
    """The file, from here or from the project's folder, or by the bare name of one in configs/experiments."""
    folder = PROJECT / "configs" / "experiments"
    for candidate in (path, PROJECT / path, folder / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise FileNotFoundError(f"no experiment {path}; known by name: {known}")


def select(cells: list[Cell], pattern: str) -> list[Cell]:
    """The cells whose name matches --only."""
    try:
        chosen = [cell for cell in cells if re.search(pattern, cell.name)]
    except re.error as error:
        raise InputError(f"--only {pattern!r} is no regular expression: {error}") from error
    if not chosen:
        raise InputError(f"--only {pattern!r} matches none of the {len(cells)} runs, such as {cells[0].name}")
    return chosen


def interrupt_at_signals() -> None:
    """Let what ends this program do as Ctrl-C does, since the runs must not outlive it; what nohup has told to be
    ignored stays so."""
    for name in ("SIGTERM", "SIGHUP"):
        if name in signal.Signals.__members__ and signal.getsignal(signal.Signals[name]) != signal.SIG_IGN:
            signal.signal(signal.Signals[name], signal.default_int_handler)


def command(cell: Cell, processes: int = 1) -> list[str]:
    """What starts a run; several processes share it, as scripts/LaFTer_MultiGPU has it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else ()), str(PROJECT / "LaFTer.py"), *cell.arguments]


def run_in_slurm(cells: Sequence[Cell], settings: Mapping[str, object], folder: Path, name: str,
                 jobs: int) -> dict[str, str]:
    """As run_cells, but on a cluster: see `slurm.run_cells`."""
    failures = prepare(cells)
    waiting = [cell for cell in cells if not cell.finished and cell.name not in failures]
    commands = [command(cell, settings["gpus"]) for cell in waiting]
    return failures | (slurm.run_cells(waiting, commands, settings, folder, name, jobs) if waiting else {})


def run_cells(cells: Sequence[Cell], jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Run what is not finished, `jobs` at a time; returns why each failed run failed, by name."""
    failures = prepare(cells)
    waiting = deque(cell for cell in cells if not cell.finished and cell.name not in failures)
    running: dict[int, tuple[Cell, subprocess.Popen]] = {}
    shown = ""
    with tqdm(total=len(cells), initial=sum(cell.finished for cell in cells), unit="run", smoothing=0,
              disable=None) as bar:
        try:
            while waiting or running:
                for slot in range(jobs):
                    if waiting and slot not in running:
                        cell = waiting.popleft()
                        running[slot] = cell, start(cell, environment(slot, jobs, gpus))
                for slot, (cell, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        bar.update()
                        if process.returncode or not cell.finished:
                            failures[cell.name] = reason(cell, process.returncode)
                            bar.write(f"failed: {cell.name}", file=sys.stderr)
                names = ", ".join(cell.folder.name for cell, _ in running.values())
                if names != shown:
                    shown = names
                    bar.set_postfix_str(names)
                elif sys.stderr.isatty():  # the clock goes on; in a file every line would stay
                    bar.refresh()
                time.sleep(POLL_SECONDS)
        finally:
            stop([process for _, process in running.values()])
    return failures


def prepare(cells: Sequence[Cell]) -> dict[str, str]:
    """Read each data set and backbone once, so that what has to be drawn or downloaded is there before several runs
    want it at the same time. Returns why cells cannot run, or, finished ones, are not the runs that are asked for."""
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    backbones: dict[str, Identity] = {}
    for cell in cells:
        needs = with_value(cell.cfg, "DEVICE", "cpu")
        key = "\n".join([needs.DATASET.dump(), needs.MODEL.dump(), str(needs.INPUT.SIZE),
                         str(needs.MULTI_LAYER_PROMPT.STAGES)])
        if key not in reasons:
            try:
                load_dataset(needs)
                clip_model = load_clip(needs)
                backbones[key] = Identity(weights=weights_hash(clip_model), quick_gelu=clip_model.quick_gelu)
                reasons[key] = ""
            except USER_ERRORS as error:
                reasons[key] = str(error)
        if reasons[key]:
            outcomes[cell.name] = reasons[key]
        elif cell.finished:  # an unfinished one compares by itself
            try:
                check_finished(cell, backbones[key])
            except USER_ERRORS as error:
                outcomes[cell.name] = str(error)
    return outcomes


def check_finished(cell: Cell, backbone: Identity) -> None:
    """InputError, with what differs, where the result in a cell's folder is of other inputs than the cell's."""
    run = Run(cell.folder)
    run.check(backbone)
    splits = load_dataset(cell.cfg)
    run.check(identify(settle_calibration(cell.cfg, splits), splits))


def environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """For the run in a slot: its GPU, its share of the cores, no progress bars in its log."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    env = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONIOENCODING": "utf-8"}
    return env | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def start(cell: Cell, env: dict[str, str]) -> subprocess.Popen:
    """Start a run; it and the processes that it starts are a group of their own, which Ctrl-C does not reach."""
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command(cell))}\n")
        log.flush()
        return subprocess.Popen(command(cell), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env,
                                start_new_session=os.name == "posix",
                                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """End runs and, where the system has process groups, their loaders' processes; a checkpoint is whole or absent."""
    for process in processes:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def reason(cell: Cell, status: int) -> str:
    """Why a run failed: its last words, or the signal that killed it in the midst of others, such as 9 of a system
    that is short of memory."""
    killed = f"killed by signal {-status} after: " if status < 0 else ""
    return killed + cell.last_words()


if __name__ == "__main__":
    exit_with_message(main)
