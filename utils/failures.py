"""Failures of the machine, not of the program or its input, in the words of a user: what failed and what to change."""

from __future__ import annotations

import contextlib
import errno
import re
import textwrap
from collections.abc import Iterator

from .errors import SystemFailure

# What torch, Python and the systems say, in the order in which it is looked for; the others leave no errno behind when
# they arrive from a loader's process
OPEN_FILES = re.compile(r"Too many open files|items of ancdata")
SHARED_MEMORY = re.compile(r"shared memory\(shm\)|out of shared memory|signal: Bus error")
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|ALLOC_FAILED")
TIMED_OUT = re.compile(r"DataLoader timed out after (\S+) seconds")
ENDED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise SystemFailure, with the mend, for failures of the machine within; other errors pass as they are."""
    try:
        yield
    except SystemFailure:
        raise
    except (OSError, RuntimeError, MemoryError) as error:  # most of torch's errors are RuntimeErrors
        message = explain(error)
        if message is None:
            raise
        raise SystemFailure(f"{message}; a run goes on with --resume auto") from error


def explain(error: Exception) -> str | None:
    """What failed and what to change, in one line; None for what is no known failure of the machine."""
    lines = str(error).strip().splitlines() or [""]  # from a loader's process the last line is the error's own
    said = " ".join(dict.fromkeys((lines[0], lines[-1])))
    if OPEN_FILES.search(said) or isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (`ulimit -n 65536`) or lower DATALOADER.NUM_WORKERS (--workers 0)"
    if SHARED_MEMORY.search(said):
        return ("the loader processes ran out of shared memory: give more (docker run --shm-size 2g), or lower "
                "DATALOADER.NUM_WORKERS (--workers 0) or the batch sizes")
    if isinstance(error, MemoryError) or MEMORY.search(said):
        return (f"out of memory on {_device(said)} ({textwrap.shorten(said or 'no details', 160)}): set "
                "DATALOADER.TRAIN_X.MICRO_BATCH to fewer images at a time, MODEL.CHECKPOINT_GRADIENTS True or "
                "MODEL.PRECISION bf16, or lower DATALOADER.TEST.BATCH_SIZE")
    if found := TIMED_OUT.search(said):
        return (f"the loader processes gave no batch within {found[1]} seconds: the images' disk may hang, or one "
                "has said above what it lacks; set DATALOADER.TIMEOUT to more seconds (0: none), or --workers 0")
    if ENDED.search(said):
        return (f"a loader process has ended ({textwrap.shorten(said, 160)}): systems kill where memory runs out; "
                "lower DATALOADER.NUM_WORKERS (--workers 0) or the batch sizes")
    return None


def _device(said: str) -> str:
    kind = re.search("CUDA|CUBLAS|CUDNN|MPS", said)
    return f"the GPU ({kind[0]})" if kind else "the CPU"
