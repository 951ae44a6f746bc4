"""Runs on a SLURM cluster, for compare.py --slurm: each a job of one array, handed in through submitit.

A job's number stands in NAME.job beside the run's folder: a run whose job is still in SLURM's queue is not handed in
twice. A job that runs out of time or is preempted saves, goes back into the queue and goes on there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError
from utils.runs.experiment import Cell

CLUSTER = "slurm"  # submitit's name of what takes the jobs; its `local` is for tests
LOOK_SECONDS = 15.0  # between two looks at the queue
MAX_TIMEOUTS = 100  # how often a job that ran out of time goes on
SAVE_SECONDS = 60  # SLURM warns 90 seconds before it ends a job; a run that needs longer to save goes on from before
FLAGS = {"partition": "", "time": 240, "gpus": 1, "cpus": 4, "memory": 0.0}


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("SLURM", "Start on a login node of the cluster, with `pip install submitit`.")
    group.add_argument("--slurm", action="store_true", help="hand the runs to SLURM and wait for them; --jobs limits "
                                                            "how many run at a time (default: all)")
    group.add_argument("--slurm-partition", metavar="NAME", help="default: the cluster's own")
    group.add_argument("--slurm-time", type=int, metavar="MINUTES", help="limit of one job; a run that needs longer "
                       f"goes on in the next (default: {FLAGS['time']})")
    group.add_argument("--slurm-gpus", type=int, metavar="N", help="GPUs of each run, 0 for none; with several it is "
                       f"started through torchrun (default: {FLAGS['gpus']})")
    group.add_argument("--slurm-cpus", type=int, metavar="N", help=f"cores of each run (default: {FLAGS['cpus']})")
    group.add_argument("--slurm-memory", type=float, metavar="GB", help="memory of each run (default: the partition's)")
    group.add_argument("--slurm-option", action="append", default=[], metavar="KEY=VALUE",
                       help="any other option of sbatch, such as account=lab; may be repeated")


def read_flags(args: argparse.Namespace) -> dict[str, object]:
    """What each job asks for: the keys of FLAGS, and `options` for sbatch.

    Raises InputError where the flags contradict each other, or what they need is not there.
    """
    given = {name: getattr(args, f"slurm_{name}") for name in (*FLAGS, "option")}
    if not args.slurm:
        if useless := [name for name, value in given.items() if value not in (None, [])]:
            raise InputError(f"--slurm-{useless[0]} does nothing without --slurm")
        return {}
    if args.gpus:
        raise InputError("--gpus is for runs on this machine: with --slurm give --slurm-gpus, the number for each run")
    options = [option.partition("=") for option in given.pop("option")]
    settings = {name: FLAGS[name] if value is None else value for name, value in given.items()}
    for name, least in (("time", 1), ("gpus", 0), ("cpus", 1), ("memory", 0)):
        if not settings[name] >= least:
            raise InputError(f"--slurm-{name} is {settings[name]}; it must be at least {least}")
    if wrong := [key for key, _, value in options if not key or not value]:
        raise InputError(f"--slurm-option {wrong[0]}: give KEY=VALUE, such as account=lab")
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--slurm needs the package submitit: pip install submitit")
    if CLUSTER == "slurm" and not shutil.which("sbatch"):
        raise InputError("--slurm: there is no sbatch here; start this on a login node of the cluster")
    return {**settings, "options": {key.lstrip("-"): value for key, _, value in options}}


@dataclass
class Job:
    """What SLURM runs: the command of one run, its output appended to a file. submitit calls `checkpoint` when the
    job is about to run out of time, or to be preempted, and then puts what that returns back into the queue."""

    command: Sequence[str]
    log: str
    process: subprocess.Popen | None = None

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, self.end)
        env = {"OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"), **os.environ,
               "PYTHONIOENCODING": "utf-8"}
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(self.command)}\n")
            log.flush()
            # some of SLURM's plugins send its warning, which would kill the run, to all processes of the job
            self.process = subprocess.Popen(["sh", "-c", 'trap "" USR2; exec "$@"', "sh", *self.command], env=env,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        while self.process.poll() is None:
            time.sleep(0.2)
        if self.process.returncode:
            sys.exit(max(1, self.process.returncode))

    def end(self, *_: object) -> None:
        """On SIGTERM SLURM will soon end the job, for good or to run it again later: save, then wait for that, since
        a job that ends by itself is not run again."""
        self.stop()
        while True:
            signal.pause()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def checkpoint(self) -> object:
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's, when the job is put back: there is no more to do
        self.stop()
        return DelayedSubmission(Job(self.command, self.log))


def run_cells(cells: Sequence[Cell], commands: Sequence[Sequence[str]], settings: Mapping[str, object],
              folder: Path, name: str, jobs: int) -> dict[str, str]:
    """Hand in the unfinished `cells` that are not in the queue, at most `jobs` at a time (0: all), and wait until
    every one has ended; returns why each failed run failed, by its name. `folder` is for submitit's files, `name` is
    the jobs' in the queue. Raises InputError where SLURM does not answer or refuses the jobs.
    """
    queued = queue()
    new = [(cell, command) for cell, command in zip(cells, commands) if job_number(cell) not in queued]
    if new:
        hand_in(new, settings, folder, name, jobs)
    waiting, failures, gone, trouble = {job_number(cell): cell for cell in cells}, {}, set(), ""
    with tqdm(total=len(cells), unit="run", smoothing=0, disable=None) as bar:
        bar.write(f"runs: {len(new)} handed to SLURM, {len(cells) - len(new)} already in its queue; Ctrl-C leaves them "
                  "there, and the same command waits for them again", file=sys.stderr)
        while waiting:
            time.sleep(LOOK_SECONDS)
            try:
                queued, trouble = queue(), ""
            except InputError as error:  # a busy controller's: the jobs go on
                if str(error) != trouble:
                    bar.write(trouble := str(error), file=sys.stderr)
                continue
            for number, cell in list(waiting.items()):
                # a job's result may be seen after its end: one that is gone is looked at once more
                if cell.finished or number in gone and number not in queued:
                    bar.update()
                    del waiting[number]
                    if not cell.finished:
                        failures[cell.name] = f"job {number} has ended: {last_words(cell, folder, number)}"
                        bar.write(f"failed: {cell.name}", file=sys.stderr)
            gone = waiting.keys() - queued.keys()
            states = Counter(queued[number].lower() for number in waiting.keys() - gone)
            bar.set_postfix_str(", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    return failures


def hand_in(runs: Sequence[tuple[Cell, Sequence[str]]], settings: Mapping[str, object], folder: Path, name: str,
            jobs: int) -> None:
    """Give runs and their commands to SLURM as one array, and note the numbers of their jobs."""
    import cloudpickle  # submitit's own
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node's Python does not find this file
    executor = submitit.AutoExecutor(folder, CLUSTER, slurm_max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(
        name=name, timeout_min=settings["time"], cpus_per_task=settings["cpus"],
        gpus_per_node=settings["gpus"] or None, mem_gb=settings["memory"] or None,
        slurm_partition=settings["partition"] or None, slurm_array_parallelism=jobs or len(runs),
        slurm_srun_args=[f"--cpus-per-task={settings['cpus']}"],  # since SLURM 22.05 a step has one core if not told
        slurm_additional_parameters=settings["options"])
    for cell, _ in runs:
        cell.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        handed = executor.submit_array([Job(list(command), str(cell.log.resolve())) for cell, command in runs])
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(f"SLURM refuses the jobs: {' '.join(str(error).split())}") from error
    for (cell, _), job in zip(runs, handed):
        job_file(cell).write_text(f"{job.job_id}\n", encoding="ascii")


def queue() -> dict[str, str]:
    """The state of each of the user's jobs in SLURM's queue, by its number. Raises InputError where SLURM does not
    answer."""
    asked = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%i %T"], capture_output=True,
                           text=True)
    if asked.returncode:
        raise InputError(f"squeue does not answer: {' '.join(asked.stderr.split())}")
    return dict(line.split() for line in asked.stdout.splitlines() if line.strip())


def job_file(cell: Cell) -> Path:
    return cell.folder.with_name(cell.folder.name + ".job")


def job_number(cell: Cell) -> str:
    """The number of the job that a run was last handed in as; empty where it never was."""
    return job_file(cell).read_text(encoding="ascii").strip() if job_file(cell).is_file() else ""


def last_words(cell: Cell, folder: Path, number: str) -> str:
    """What a run that failed wrote last, and the file in which SLURM says what it did to the job."""
    said = cell.last_words() if cell.log.is_file() else "it wrote nothing"
    return f"{said}; SLURM's own words are in {folder / f'{number}_0_log.err'}"
