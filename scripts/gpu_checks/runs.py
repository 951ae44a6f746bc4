"""Whole runs of LaFTer.py on the demo: to the end in every precision, after a kill, and by two processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import LaFTer
from utils.demo.faces import draw_dataset
from utils.runs.record import read_rows

from .checks import Check, Size

PROJECT = Path(__file__).resolve().parent.parent.parent
SAME_RUN = 1e-3  # relative difference of the last loss: on a GPU sums may come in another order
PATIENCE = 240  # seconds
# the program, its processes talking by gloo alone, as where there is no nccl: that one wants a GPU for each process
GLOO = ("import sys, torch.distributed as d; d.is_nccl_available = lambda: False; sys.path.insert(0, sys.argv.pop(1)); "
        "import LaFTer; from trainers.program import exit_with_message; exit_with_message(LaFTer.main)")


def arguments(folder: Path, name: str, device: torch.device, *more: str) -> list[str]:
    """The command line of a demo's run in `folder`, where `draw_faces` has drawn its data."""
    return ["--dataset-config-file", "demo", "--root", str(folder / "data"), "--trainer", "MultiLayerLaFTer",
            "--output-dir", str(folder / "runs"), "--exp-name", name, "--device", str(device), "--workers", "0",
            "TEXT.CACHE_DIR", str(folder / "texts"), *more]


def draw_faces(size: Size, folder: Path) -> None:
    """The demo's data, or a few of them, where they are not there yet."""
    if not (folder / "data" / "demo").exists():
        draw_dataset(folder / "data" / "demo", train_per_class=size.faces[0], test_per_class=size.faces[1])


def run_folder(folder: Path, name: str) -> Path:
    return folder / "runs" / "demo" / "MultiLayerLaFTer" / "demo_clip" / name


def demo_checks(size: Size, device: torch.device, folder: Path) -> Iterator[Check]:
    """The demo from its drawing to final.json, in each precision."""
    draw_faces(size, folder)
    for precision in size.precisions:
        run_here(arguments(folder, precision, device, *size.demo, "MODEL.PRECISION", precision), folder)
        final = json.loads((run_folder(folder, precision) / "final.json").read_text(encoding="utf-8"))
        yield Check("demo", precision, True, "test top-1 of the last epoch", final["splits"]["test"]["last"]["top1"])


def resume_checks(size: Size, device: torch.device, folder: Path) -> Iterator[Check]:
    """A run killed after its first epoch, and gone on with, ends as one that was left alone."""
    whole = last_loss(size, device, folder)
    command, run = arguments(folder, "killed", device, *size.short, "--resume", "auto"), run_folder(folder, "killed")
    with start(command) as process:
        begun = time.monotonic()
        while not (run / "checkpoints" / "epoch0001.pt").exists() and process.poll() is None:
            if time.monotonic() > begun + PATIENCE:
                process.kill()
            time.sleep(0.005)
        process.kill()
        process.communicate()
    killed = process.returncode != 0 and not (run / "final.json").exists()
    run_here(command, folder)
    difference = abs(read_rows(run / "metrics.jsonl")[-1]["loss"] / whole - 1)
    yield Check("resume", "killed after the first epoch", killed and difference < SAME_RUN,
                "difference of the last loss", difference)


def process_checks(size: Size, device: torch.device, folder: Path) -> Iterator[Check]:
    """Two processes, on one GPU or on the CPU, that talk by gloo, do what one does."""
    whole = last_loss(size, device, folder)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = arguments(folder, "two", device, *size.short)
    command[command.index("--device") + 1] = "cpu" if device.type == "cpu" else "auto"
    shared = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(command, RANK=str(rank), **shared) for rank in range(2)]  # each takes the machine's first GPU
    said = [wait_for(process, processes) for process in processes]
    if any(process.returncode for process in processes):
        yield Check("processes", f"two of them: {' '.join(''.join(said)[-500:].split())}", False)
        return
    difference = abs(read_rows(run_folder(folder, "two") / "metrics.jsonl")[-1]["loss"] / whole - 1)
    yield Check("processes", "two of them, by gloo", difference < SAME_RUN, "difference of the last loss", difference)


def wait_for(process: subprocess.Popen, others: Sequence[subprocess.Popen]) -> str:
    """What a process said, once it has ended; where that takes too long it is killed with the others."""
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        for each in others:
            each.kill()
        return process.communicate()[0] + " (killed, for it did not end)"


def last_loss(size: Size, device: torch.device, folder: Path) -> float:
    """Of the run that is left alone, which is made once; where it is the demo's own, that one."""
    draw_faces(size, folder)
    name = "fp32" if size.short == size.demo else "whole"
    metrics = run_folder(folder, name) / "metrics.jsonl"
    if not metrics.exists():
        run_here(arguments(folder, name, device, *size.short), folder)
    return read_rows(metrics)[-1]["loss"]


def run_here(command: Sequence[str], folder: Path) -> None:
    """Run the program in this process; what it says goes into a file."""
    with open(folder / "said.txt", "a", encoding="utf-8") as said, contextlib.redirect_stderr(said):
        LaFTer.main(list(command))


def start(command: Sequence[str], **variables: str) -> subprocess.Popen:
    """The program as a process of its own."""
    return subprocess.Popen([sys.executable, "-c", GLOO, str(PROJECT), *command], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **variables})
