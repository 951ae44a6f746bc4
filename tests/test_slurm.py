"""compare.py --slurm: what is handed in, and how often; through submitit's executor for this machine. A real SLURM is
tried by tests/slurm_check.sh."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import compare, slurm
from utils.config import PROJECT
from utils.errors import InputError
from utils.runs.experiment import read_experiment

submitit = pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")
EXPERIMENT = """
output: runs
options: --dataset-config-file demo
seeds: [1, 2, 3]
"""
# in place of LaFTer.py, whose start takes seconds: notes its starts; asked to stop it saves, and goes on from there
PROGRAM = """
import os, pathlib, signal, sys, time
folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
def save(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "job").write_text(str(os.getppid()))
print("started with", os.environ["OMP_NUM_THREADS"], "threads, goes on:", (folder / "saved").exists(), flush=True)
time.sleep(0 if (folder / "saved").exists() else seconds)
if folder.name == "seed3":
    sys.exit("error: it broke")
(folder / "final.json").write_text("{}")
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Three runs, of which the last fails, for submitit's local executor: a job's number is its process's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("x.yaml").write_text(EXPERIMENT, encoding="utf-8")
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(slurm, "queue", lambda: {file.read_text().strip(): "RUNNING" for file in
                                                 Path("runs").rglob("*.job") if alive(int(file.read_text()))})
    monkeypatch.setattr(compare, "prepare", lambda cells: {})
    return read_experiment(Path("x.yaml"))


def alive(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def settings(*flags: str) -> dict:
    return slurm.read_flags(compare.build_parser().parse_args(["x.yaml", "--slurm", *flags]))


def run_in_slurm(cells, monkeypatch, seconds: float = 0.0) -> dict[str, str]:
    monkeypatch.setattr(compare, "command", lambda cell, processes: [sys.executable, "-c", PROGRAM, str(cell.folder),
                                                                     str(seconds)])
    return compare.run_in_slurm(cells, settings("--slurm-gpus", "0"), Path("runs/slurm"), "x", 0)


def starts(cell) -> list[str]:
    return [line for line in cell.log.read_text(encoding="utf-8").splitlines() if line.startswith("started")]


def test_each_run_is_a_job_and_only_what_failed_is_handed_in_again(cells, monkeypatch):
    failures = run_in_slurm(cells, monkeypatch)
    number = slurm.job_number(cells[2])
    own = Path("runs/slurm") / f"{number}_0_log.err"
    assert own.is_file() and failures == {
        cells[2].name: f"job {number} has ended: error: it broke (see {cells[2].log}); SLURM's own words are in {own}"}
    assert [cell.finished for cell in cells] == [True, True, False]
    assert starts(cells[0]) == ["started with 1 threads, goes on: False"]
    assert run_in_slurm(cells, monkeypatch).keys() == failures.keys()
    assert [len(starts(cell)) for cell in cells] == [1, 1, 2]


def test_what_is_in_the_queue_is_waited_for_and_not_handed_in_twice(cells, monkeypatch, capsys):
    looks = iter([{}])  # then Ctrl-C

    def look() -> dict[str, str]:
        for found in looks:
            return found
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(slurm, "queue", look)
        run_in_slurm(cells[:2], patched, seconds=1.5)
    assert run_in_slurm(cells[:2], monkeypatch) == {}
    assert [starts(cell) for cell in cells[:2]] == [["started with 1 threads, goes on: False"]] * 2
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("runs: ")] == [
        "runs: 2 handed to SLURM, 0 already in its queue", "runs: 0 handed to SLURM, 2 already in its queue"]


def when_started(cell, act) -> threading.Thread:
    """Call `act` with the number of the job's process, once the run has started in it."""
    def wait() -> None:
        while not cell.log.exists() or not starts(cell):
            time.sleep(0.05)
        act(int((cell.folder / "job").read_text()))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_job_that_runs_out_of_time_saves_and_goes_on(cells, monkeypatch):
    """SLURM's warning; the local executor starts again what SLURM would put back into its queue."""
    thread = when_started(cells[0], lambda job: os.kill(job, signal.SIGUSR2))
    assert run_in_slurm(cells[:1], monkeypatch, seconds=60) == {}
    thread.join()
    assert starts(cells[0]) == [f"started with 1 threads, goes on: {saved}" for saved in (False, True)]


def test_a_job_that_is_ended_saves_and_leaves_the_rest_to_slurm(cells, monkeypatch):
    """What ends by itself after SIGTERM would not be run again after a preemption."""
    told = []

    def terminate(job: int) -> None:
        os.kill(job, signal.SIGTERM)
        while not (cells[0].folder / "saved").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        told.append(Path(f"/proc/{job}/stat").read_text().split()[2])
        os.kill(job, signal.SIGKILL)

    thread = when_started(cells[0], terminate)
    assert set(run_in_slurm(cells[:1], monkeypatch, seconds=60)) == {cells[0].name}
    thread.join()
    assert told == ["S"] and len(starts(cells[0])) == 1  # asleep until it was killed


def test_several_gpus_are_shared_by_processes_of_one_run(cells):
    assert compare.command(cells[0], 3)[1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
                                                 str(PROJECT / "LaFTer.py")]
    assert compare.command(cells[0])[1] == str(PROJECT / "LaFTer.py")


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program of SLURM's that does what `body`, in sh, says."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_what_sbatch_is_asked_for(cells, monkeypatch):
    """By the file that submitit hands to it, here to a stand-in, whose refusal is told in one line."""
    tools = Path("tools").resolve()
    tools.mkdir()
    stand_in(tools, "srun", "")
    stand_in(tools, "sbatch", 'cp "$1" asked.sh; echo "sbatch: error: invalid account" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "CLUSTER", "slurm")
    asked = settings("--slurm-partition", "gpu", "--slurm-time", "90", "--slurm-gpus", "2", "--slurm-cpus", "6",
                     "--slurm-memory", "1.5", "--slurm-option", "account=lab", "--slurm-option", "nice=10")
    with pytest.raises(InputError, match="^SLURM refuses the jobs: sbatch: error: invalid account$"):
        slurm.run_cells(cells, [["x"]] * 3, asked, Path("runs/slurm"), "grid", 2)
    lines = Path("asked.sh").read_text(encoding="utf-8").splitlines()
    assert {f"#SBATCH --{line}" for line in (
        "partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=6", "mem=1536MB", "account=lab", "nice=10",
        "job-name=grid", "array=0-2%2", "signal=USR2@90", "open-mode=append")} <= set(lines)
    (started,) = (line for line in lines if line.startswith("srun "))
    assert "--cpus-per-task=6" in started
    assert not list(Path("runs").rglob("*.job"))


def test_a_controller_that_does_not_answer(cells, monkeypatch, capsys):
    """At the start nothing is handed in; later one line says so, and the jobs go on."""
    answers = iter([InputError("squeue does not answer: busy")] * 3)
    whole = slurm.queue

    def look() -> dict[str, str]:
        if list(Path("runs").rglob("*.job")) and (error := next(answers, None)):
            raise error
        return whole()

    monkeypatch.setattr(slurm, "queue", look)
    assert run_in_slurm(cells[:1], monkeypatch) == {}
    assert capsys.readouterr().err.count("squeue does not answer: busy") == 1


def test_the_queue_as_squeue_tells_it(tmp_path, monkeypatch):
    stand_in(tmp_path, "squeue", "echo '12_3 RUNNING'; echo '12_4 PENDING'; echo '13 CONFIGURING'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.queue() == {"12_3": "RUNNING", "12_4": "PENDING", "13": "CONFIGURING"}
    stand_in(tmp_path, "squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
    with pytest.raises(InputError, match="^squeue does not answer: slurm_load_jobs error: Socket timed out$"):
        slurm.queue()


@pytest.mark.parametrize("flags, words", [
    (["--slurm-time", "5"], "--slurm-time does nothing without --slurm"),
    (["--slurm-option", "a=b"], "--slurm-option does nothing without --slurm"),
    (["--slurm", "--gpus", "0,1"], "with --slurm give --slurm-gpus"),
    (["--slurm", "--slurm-time", "0"], "--slurm-time is 0; it must be at least 1"),
    (["--slurm", "--slurm-cpus", "0"], "--slurm-cpus is 0; it must be at least 1"),
    (["--slurm", "--slurm-option", "exclusive"], "--slurm-option exclusive: give KEY=VALUE"),
    (["--slurm"], "there is no sbatch here"),
])
def test_flags_that_cannot_be_meant(flags, words, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=words):
        slurm.read_flags(compare.build_parser().parse_args(["x.yaml", *flags]))


def test_without_submitit_nothing_is_begun(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="--slurm needs the package submitit: pip install submitit"):
        compare.main(["demo", "--slurm"])
