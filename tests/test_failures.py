"""Failures of the machine: each ends the program with one line that names the mend, and loses nothing done before."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import LaFTer
from tests import tiny_run
from tests.test_engine import fit_in, timeless
from tests.test_processes import count_rows, ends, environment, start_two, wait_for
from tests.warm_start import PROJECT, Program
from trainers.objective import Objective
from trainers.program import exit_with_message
from trainers.state import tuned_state
from trainers.teacher import Teacher
from utils.data import shared_memory
from utils.data.images import read_image
from utils.data.loader import EpochSampler, ImageDataset, ViewLoader
from utils.data.shared_memory import affordable_workers, batch_bytes
from utils.data.views import build_views
from utils.errors import InputError, SystemFailure
from utils.failures import plain_errors
from utils.runs.checkpoint import find_latest, load_checkpoint
from utils.runs.signals import Interrupted

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, or files that stand for shared memory")
ENOUGH = 1 << 60  # bytes that no machine has


# --- what is said -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, mend", [  # as torch 2.4 to 2.14 and the systems word it
    ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB", r"on the GPU \(CUDA\)"),
    ("MPS backend out of memory (MPS allocated: 8.9 GB, other allocations: 1 GB, max allowed: 9 GB)", r"GPU \(MPS\)"),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", r"GPU \(CUDA\)"),
    ("[enforce fail at alloc_cpu.cpp:73] data. DefaultCPUAllocator: not enough memory: you tried", "on the CPU"),
    ("received 0 items of ancdata", "ulimit -n"),
    ("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)", "ulimit -n"),
    ("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)", "--shm-size"),
    ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
     "shared memory. Please try to raise your shared memory limit.", "--shm-size"),
    ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "--workers 0"),
    ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File \"x\"\n"
     "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)\n",
     "--shm-size"),
])
def test_what_torch_says_is_said_in_one_line_with_the_mend(said, mend):
    with pytest.raises(SystemFailure, match=mend) as caught, plain_errors():
        raise RuntimeError(said)
    assert "\n" not in str(caught.value) and str(caught.value.__cause__) == said
    assert all(name in str(caught.value) for name in ("MICRO_BATCH", "CHECKPOINT_GRADIENTS", "PRECISION")) == (
        "out of memory on" in str(caught.value))


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), RuntimeError(), OSError("x"),
    FileNotFoundError(2, "No such file or directory", "x"), InputError("out of memory"), KeyboardInterrupt(),
    RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n  raise out of memory\nRuntimeError: another"),
], ids=repr)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught, plain_errors():
        raise error
    assert caught.value is error and error.__cause__ is None


def test_memory_that_is_not_there():
    for allocate in (lambda: torch.empty(ENOUGH, dtype=torch.uint8), lambda: np.empty(ENOUGH >> 4, dtype=np.uint8)):
        with pytest.raises(SystemFailure, match="out of memory on the CPU .*MICRO_BATCH"), plain_errors():
            allocate()


# --- loader processes -------------------------------------------------------------------------------------------------

class Failing(ImageDataset):
    """Sixteen samples; one of them does what `act` does."""

    def __init__(self, act):
        super().__init__([], {})
        self.items, self.act = range(16), act

    def __getitem__(self, key):
        if key[1] == 9:
            self.act()
        return {"index": key[1]}


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lack_files() -> None:
    raise SystemFailure("too many open files")


def read_failing(act, timeout: float = 0) -> None:
    with plain_errors():
        for _ in ViewLoader(Failing(act), workers=1, timeout=timeout, batch_sampler=EpochSampler(16, 0, False, 2)):
            pass


@POSIX
def test_a_loader_process_that_is_killed():
    with pytest.raises(SystemFailure, match=r"a loader process has ended \(DataLoader worker .*NUM_WORKERS"):
        read_failing(kill_itself)


def test_a_loader_process_that_hangs():
    with pytest.raises(SystemFailure, match=r"no batch within 0.5 seconds.*DATALOADER\.TIMEOUT.*--workers 0"):
        read_failing(functools.partial(time.sleep, 1.5), timeout=0.5)
    read_failing(functools.partial(time.sleep, 0.1), timeout=60)


def test_what_a_loader_process_says_ends_the_program_without_its_traceback():
    with pytest.raises(SystemExit) as caught:
        exit_with_message(lambda: read_failing(lack_files))
    assert caught.value.code == "error: too many open files"


def test_without_processes_nothing_is_timed():
    assert len(list(ViewLoader(Failing(int), timeout=5, batch_sampler=EpochSampler(16, 0, False, 2)))) == 8


@POSIX
def test_too_many_open_files_are_no_damaged_image(tmp_path):
    import resource

    tiny_run.make_inputs(tmp_path, train=1, test=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SystemFailure, match="too many open files: .*ulimit -n.*NUM_WORKERS"):
            read_image(tmp_path / "data" / "train" / "red" / "0.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allow_few_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))


@LINUX
def test_a_run_with_too_few_open_files(tmp_path, launch):
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--workers", "2", "--batch_size", "2")
    ((status, said),) = ends([launch(*arguments, before=allow_few_files)])
    assert status == 1 and said.strip().splitlines()[-1].startswith("error: too many open files"), said[-3000:]
    assert "Traceback" not in said


@LINUX
def test_too_many_batches_in_hand():
    """Each holds an open file, as do those that are on their way."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loader = ViewLoader(Failing(int), workers=1, batch_sampler=EpochSampler(16, 0, False, 1))
    batches = iter(loader)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 6, hard))
    try:
        with pytest.raises(SystemFailure, match="too many open files: .*ulimit -n.*NUM_WORKERS"), plain_errors():
            list(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- runs -------------------------------------------------------------------------------------------------------------

class Hungry(Objective):
    """Asks for more memory than there is in the third epoch's second step."""

    calls = 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 4 * 2 + 2:
            torch.empty(ENOUGH, dtype=torch.uint8)
        return super().__call__(*args)


@pytest.mark.parametrize("trainer", tiny_run.TRAINERS)
def test_what_was_trained_before_the_memory_ran_out_is_kept(prepare, tmp_path, trainer):
    whole = prepare(trainer)
    whole_run, _ = fit_in(tmp_path / "whole", whole)
    with pytest.raises(SystemFailure, match="out of memory on the CPU"):
        fit_in(tmp_path / "cut", prepare(trainer, objective=Hungry))
    state = load_checkpoint(find_latest(tmp_path / "cut"), {"trainer": trainer})
    assert (state["epoch"], state["progress"]["step"]) == (2, 1)
    rest = prepare(trainer)
    rest.training.load(find_latest(tmp_path / "cut"))
    run, _ = fit_in(tmp_path / "rest", rest)
    tiny_run.assert_same(tuned_state(rest.model), tuned_state(whole.model))
    assert [timeless(row) for row in run.rows()] == [timeless(row) for row in whole_run.rows()][3:]


def test_a_resumed_run_tells_the_time_of_all_its_starts(tmp_path, monkeypatch):
    tiny_run.make_inputs(tmp_path)
    fit, step = LaFTer.fit, Teacher.step

    def long_ago(training, *args):
        training.begin -= 1000
        return fit(training, *args)

    def stopped(self, *args):
        step(self, *args)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LaFTer, "fit", long_ago)
        patch.setattr(Teacher, "step", stopped)
        LaFTer.main(tiny_run.arguments(tmp_path, "x"))
    result = LaFTer.main(tiny_run.arguments(tmp_path, "x", "--resume", "auto"))
    assert 1000 < result["seconds"] < 1100
    assert json.loads((tiny_run.run_folder(tmp_path, "x") / "final.json").read_text())["seconds"] == result["seconds"]


def children(process: Program) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@LINUX
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_process_that_is_killed_ends_the_run(tmp_path, launch, processes):
    """The last one's of several: all end, one says why, and the run can go on."""
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--epochs", "2000", "--workers", "1")
    started = start_two(launch, *arguments) if processes == 2 else [launch(*arguments)]
    run = tiny_run.run_folder(tmp_path, "x")
    wait_for(lambda: count_rows(run) > 2)
    os.kill(children(started[-1])[0], signal.SIGKILL)
    ended = ends(started)
    said = "".join(err for _, err in ended)
    assert [status for status, _ in ended] == [1] * processes, said[-3000:]
    assert "\nerror: a loader process has ended" in said, said[-3000:]
    assert "LaFTer.py" not in said, said[-3000:]  # no traceback of the run's; another loader process may still protest
    assert load_checkpoint(find_latest(run), {})["epoch"] >= 1


# --- shared memory ----------------------------------------------------------------------------------------------------

def views(size: int):
    return build_views(size, ["random_resized_crop", "random_flip", "color_jitter"], (0, 0, 0), (1, 1, 1))


def test_the_room_that_a_batch_takes():
    """100 images of 224 px in 8 bits are 15 MB; two views of 50 as much, and the parameters of the strong one."""
    weak, strong = views(224)
    assert batch_bytes([weak], 100) == pytest.approx(100 * 224 * 224 * 3, rel=1e-3)
    assert batch_bytes([weak, strong], 50) == pytest.approx(100 * 224 * 224 * 3, rel=2e-3)
    assert batch_bytes([weak, strong], 50) > batch_bytes([weak], 100)


@pytest.mark.parametrize("free, workers, taken", [
    (64, 2, 1), (64, 1, 1), (64, 0, 0), (40, 2, 0), (100, 2, 2), (1, 4, 0), (170, 8, 4)])  # MB; a batch has 15
def test_loader_processes_that_shared_memory_has_no_room_for(tmp_path, monkeypatch, caplog, free, workers, taken):
    """Each keeps two batches ready, and one is in the main process's hands."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 2 ** 20))
    assert affordable_workers(workers, batch_bytes([views(224)[0]], 100)) == taken
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (taken < workers)
    assert all(word in line for line in lines for word in ("--shm-size", f"--workers {taken}", "need"))


def test_systems_without_that_folder_have_no_such_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "absent")
    assert affordable_workers(8, 10 ** 12) == 8


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid(), reason="mounts a small /dev/shm, as containers have")
def test_a_run_in_a_container_with_little_shared_memory(tmp_path):
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--epochs", "1", "--workers", "2")
    done = subprocess.run(["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=40k tmpfs /dev/shm && exec "$@"', "sh",
                           sys.executable, str(PROJECT / "LaFTer.py"), *arguments], env=environment(),
                          capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("namespaces are not allowed here")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("--shm-size") == 1 and "2 loader processes need" in done.stderr
