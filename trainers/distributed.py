"""Several processes of one run, as torchrun starts them: which one this is, and what they tell one another.

Gradients are summed by hand, in one flat buffer, in place of DistributedDataParallel. That wrapper decides which
parameters it reduces when it is built, whereas the progressive phases change what trains from epoch to epoch; it
needs a backward pass on every process, whereas a small last batch may leave one without images; and it averages the
processes' means, whereas shards of unequal size must weigh by their images. What trains is small (a few hundred
thousand parameters beside CLIP's 150 million), so there is nothing to gain from overlapping their reduction with the
backward pass.

Without torchrun all of this is one process and costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clip import ClipError
from utils.errors import InputError, SystemFailure, TrainingError
from utils.failures import plain_errors

T = TypeVar("T")
USER_ERRORS = (InputError, ClipError, FileNotFoundError, TrainingError)
SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM))
PATIENCE = 10.0  # seconds that the first process waits for the others to learn that one has failed
TIMEOUT = timedelta(minutes=30)  # the first process of a machine may be downloading meanwhile


def _variable(name: str, default: int) -> int:
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ.get(name, default)) if launched else default


def rank() -> int:
    """This process's number among all, from 0."""
    return _variable("RANK", 0)


def world_size() -> int:
    """How many processes share the run."""
    return _variable("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among those of its machine."""
    return _variable("LOCAL_RANK", rank())


def shard() -> tuple[int, int]:
    """(rank, processes), as a loader takes it."""
    return rank(), world_size()


def is_main() -> bool:
    """True in the one process that writes, logs and draws."""
    return rank() == 0


def bar_settings() -> dict[str, bool | None]:
    """For tqdm: the first process shows bars, and None means on a terminal alone: they would fill a log file."""
    return {"disable": None if is_main() else True}


class LostProcess(SystemFailure):
    """Another process of the run has ended or answers no more."""


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within the context the processes can talk: gloo for what is on the CPU, nccl, if there is one, on GPUs. They end
    together: where one fails, the others fail too at their next exchange, and the first that failed alone says why.

    `device` is DEVICE of the configuration. Raises InputError where a machine has fewer GPUs than processes.
    """
    if world_size() == 1:
        yield
        return
    backend = choose_backend(device)
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {world_size()} processes did not find one another ({str(error).splitlines()[0]})"
                         ) from error
    try:
        with plain_errors():
            yield
    except USER_ERRORS as error:
        if _somebody_else_speaks(store, error):
            raise SystemExit(1) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _somebody_else_speaks(store: dist.Store, error: Exception) -> bool:
    """Whether this process fails because another has, or after it; that one then says why.

    Where a process ended without a word, nobody has told the store, and those that miss it speak. The first process,
    which may keep the store, waits until the others have asked it; where it is gone itself, SystemExit says so.
    """
    try:
        first = not isinstance(error, LostProcess) and store.add("failed", 1) == 1
        told = not first and store.check(["failed"])
        dist.destroy_process_group()
        left, deadline = store.add("left", 1), time.monotonic() + PATIENCE
        while told and is_main() and left < world_size() and time.monotonic() < deadline:
            time.sleep(0.05)
            left = store.add("left", 0)
    except RuntimeError as gone:
        if isinstance(error, LostProcess):
            raise SystemExit("the first process of this run has ended: its message says why") from gone
        return False
    return told


@contextlib.contextmanager
def one_speaks() -> Iterator[None]:
    """Within the context all processes meet the same, before they can talk: where it is an error of the user's, the
    first alone says so, and the others end without a word."""
    try:
        yield
    except USER_ERRORS as error:
        if not is_main():
            raise SystemExit(1) from error
        raise


def choose_backend(device: str) -> str:
    """The way of talking for DEVICE, and on GPUs this process's own GPU as the current one."""
    if device == "auto" and torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise InputError(f"this machine has {torch.cuda.device_count()} GPUs, but more processes were started on "
                             "it: lower --nproc-per-node, or use --device cpu")
        torch.cuda.set_device(local_rank())
        return "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"  # Windows has no nccl
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device} is one device for {world_size()} processes: use --device auto or cpu")
    return "gloo"


def gather(value: T) -> list[T]:
    """Every process's value, by rank. Raises LostProcess where another one has ended."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    with _lost_process():
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor, images: int) -> Tensor:
    """The rows [n, k] that each process has for its part of a batch of `images`, of all processes as [m, k]. Where a
    process has fewer rows than images, rows of zeros fill its place: all know m, and none waits for a number."""
    if world_size() == 1:
        return rows
    gathered = rows.new_zeros(world_size(), -(-images // world_size()), rows.shape[1])
    gathered[rank(), :len(rows)] = rows
    with _lost_process():
        dist.all_reduce(gathered)
    return gathered.flatten(0, 1)


def add_up(shards: Sequence[dict[str, float | Tensor]]) -> Counter:
    """The sums by name over several processes' shards; what a shard does not name adds nothing."""
    total = Counter()
    for shard in shards:
        total.update(shard)
    return total


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """Within the context one process of each machine goes first, so that it alone downloads or draws what the others
    then find."""
    if local_rank():
        gather(None)
    yield
    if not local_rank():
        gather(None)


def broadcast(value: T) -> T:
    """The first process's value, in all."""
    if world_size() == 1:
        return value
    values = [value]
    with _lost_process():
        dist.broadcast_object_list(values)
    return values[0]


def reduce_step(parameters: Sequence[Tensor], images: int, received: int) -> tuple[int, int]:
    """All that the processes tell one another in a step of the optimiser, in one exchange: each parameter's gradient is
    added up, in place (one that none has stays None), and so are the `images` that each has worked on.

    `received` is the signal that this process got, 0 for none. Returns (the images of all, the highest signal).
    """
    if world_size() == 1:
        return images, received
    pieces = [(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1).float()
              for parameter in parameters]
    present = [parameter.grad is not None for parameter in parameters]
    numbers = [*present, images, *(received == number for number in SIGNALS)]
    buffer = torch.cat([*pieces, torch.tensor(numbers, dtype=torch.float32, device=pieces[0].device)])
    with _lost_process():
        dist.all_reduce(buffer)
        *sums, tail = buffer.split([*(piece.numel() for piece in pieces), len(numbers)])
        numbers = tail.tolist()
    for parameter, total, present in zip(parameters, sums, numbers):
        parameter.grad = total.reshape(parameter.shape).to(parameter.dtype) if present else None
    images, *signalled = numbers[len(parameters):]
    return int(images), max(number * bool(sent) for number, sent in zip(SIGNALS, signalled))


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    try:
        with plain_errors():  # a loader's process that dies is told of wherever this one is
            yield
    except SystemFailure:
        raise
    except RuntimeError as error:  # torch.distributed's own errors are all of this kind
        raise LostProcess("another process of this run has ended or answers no more; its message says why. Go on "
                          "with --resume auto") from error
