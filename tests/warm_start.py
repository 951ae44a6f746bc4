"""Processes that start in a moment: forks of one that has imported what a run of LaFTer.py imports.

A new interpreter works for seconds until torch, and all that its first optimiser imports, are there. A fork runs the
same files; where the system cannot fork safely, new interpreters are started after all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
CONTEXT.set_forkserver_preload(["torch._dynamo", "torchvision.transforms", "LaFTer"])


@contextlib.contextmanager
def started(function: Callable, *arguments: object) -> Iterator[BaseProcess]:
    """A process that calls the function with one thread; it is killed where it still lives at the end."""
    process = CONTEXT.Process(target=_call, args=(function, *arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _call(function: Callable, *arguments: object) -> None:
    multiprocessing.set_start_method(None, force=True)  # loader processes start as they do from a new interpreter
    torch.set_num_threads(1)
    function(*arguments)


class Program:
    """LaFTer.py with its command line, in a session of its own, on the CPU; what it says goes to files in `folder`.

    `before` is called first, in its process. The methods are those of `subprocess.Popen`.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], variables: dict[str, str],
                 before: Callable[[], object] | None = None):
        self.said = [folder / f"{uuid.uuid4()}.{stream}" for stream in ("out", "err")]
        self.process = CONTEXT.Process(target=_call,
                                       args=(_run_program, self.said, arguments, variables, before))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for its end → (stdout, stderr)."""
        self.process.join(timeout)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self.said)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("LaFTer.py", timeout, out, err)
        return out, err


def _run_program(said: Sequence[Path], arguments: Sequence[str], variables: dict[str, str],
                 before: Callable[[], object] | None) -> None:
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", **variables})
    if os.name != "nt":
        os.setsid()
    for number, path in enumerate(said, 1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [str(PROJECT / "LaFTer.py"), *arguments]
    if before:
        before()
    runpy.run_path(sys.argv[0], run_name="__main__")
