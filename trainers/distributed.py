"""Several processes of one run, as torchrun starts them: which one this is, and what they tell one another.

Gradients are summed by hand, in one flat buffer, in place of DistributedDataParallel. That wrapper decides which
parameters it reduces when it is built, whereas the progressive phases change what trains from epoch to epoch; it
needs a backward pass on every process, whereas a small last batch may leave one without images; and it averages the
processes' means, whereas shares of unequal size must weigh by their images. Fewer than 200,000 parameters train, so
there is nothing to gain from overlapping their reduction with the backward pass.

Without torchrun all of this is one process and costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within the context the processes can talk: gloo for what is on the CPU, nccl, if there is one, on GPUs.

    `device` is DEVICE of the configuration. Raises InputError where a machine has fewer GPUs than processes.
    """
    if world_size() == 1:
        yield
        return
    backend = "gloo"
    if device == "auto" and torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise InputError(f"this machine has {torch.cuda.device_count()} GPUs, but more processes were started on "
                             "it: lower --nproc-per-node, or use --device cpu")
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"  # Windows has no nccl
    elif device not in ("auto", "cpu"):
        raise InputError(f"--device {device} is one device for {world_size()} processes: use --device auto or cpu")
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {world_size()} processes did not find one another ({str(error).splitlines()[0]})"
                         ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Every process's value, by rank. Raises SystemFailure where another one has ended."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    with _lost_process():
        dist.all_gather_object(values, value)
    return values


def add_up(shares: Sequence[dict[str, float | Tensor]]) -> Counter:
    """The sums by name over several processes' shares; what a share does not name adds nothing."""
    total = Counter()
    for share in shares:
        total.update(share)
    return total


def exchange(work: Callable[[], tuple[T, object]]) -> tuple[T, list]:
    """Call `work`, which returns (what stays in this process, what all are told).

    Returns (the former, the latter of every process by rank). Where it fails on any with bad input or for the machine
    (`plain_errors`), all raise the error of the first that failed.
    """
    own = told = failure = None
    try:
        with plain_errors():
            own, told = work()
    except USER_ERRORS as error:
        if world_size() == 1:
            raise
        failure = error
    outcomes = gather((told, failure))
    for _, error in outcomes:
        if error is not None:
            raise error
    return own, [told for told, _ in outcomes]


def agree(work: Callable[[], T], in_turn: bool = False) -> T:
    """What `work` returns; where it fails on any process with bad input, all raise that error.

    `in_turn`: one process of each machine goes first, so that it alone downloads or draws what the others then find.
    """
    if in_turn and local_rank():
        exchange(lambda: (None, None))
    result, _ = exchange(lambda: (work(), None))
    if in_turn and not local_rank():
        exchange(lambda: (None, None))
    return result


def broadcast(value: T) -> T:
    """The first process's value, in all."""
    if world_size() == 1:
        return value
    values = [value]
    with _lost_process():
        dist.broadcast_object_list(values)
    return values[0]


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up each parameter's gradient over the processes, in place; one that none has stays None."""
    if world_size() == 1:
        return
    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
    pieces = [(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1).float()
              for parameter in parameters]
    buffer = torch.cat([*pieces, present.to(pieces[0].device)])
    with _lost_process():
        dist.all_reduce(buffer)
    *sums, present = buffer.split([*(piece.numel() for piece in pieces), len(pieces)])
    for parameter, total, count in zip(parameters, sums, present.tolist()):
        parameter.grad = total.reshape(parameter.shape).to(parameter.dtype) if count else None


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    try:
        with plain_errors():  # a loader's process that dies is told of wherever this one is
            yield
    except SystemFailure:
        raise
    except RuntimeError as error:  # torch.distributed's own errors are all of this kind
        raise SystemFailure("another process of this run has ended or answers no more; its message says why. Go on "
                            "with --resume auto") from error
