"""Which precision suits a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .transformer import linear

AMPERE = (8, 0)  # the first compute capability whose tensor cores multiply bf16
WORTHWHILE = 1.5  # times the rate of fp32's products, from which on a CPU's step is faster in bf16 too
ROWS, WIDTH = 512, 768  # of the products that are measured: 0.6 GFLOP, a few ms
REPEATS = 3


def choose_precision(device: torch.device) -> str:
    """`bf16` where the device multiplies it fast, else `fp32`: what MODEL.PRECISION `auto` becomes.

    CUDA does from Ampere on. A CPU is measured, in about a tenth of a second, so that one near the border may be
    told either: keep the answer with whatever was computed by it. Other devices keep fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= AMPERE else "fp32"
    return "bf16" if device.type == "cpu" and bf16_speedup() >= WORTHWHILE else "fp32"


@torch.no_grad()
def bf16_speedup() -> float:
    """How many times as fast as in fp32 this CPU multiplies matrices in bf16, by the fastest of a few products each."""
    x, weight = torch.ones(1, ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    halves = x.bfloat16(), weight.bfloat16()
    functions = {"fp32": lambda: linear(x, weight, None), "bf16": lambda: F.linear(*halves)}
    first = {name: _seconds(function) for name, function in functions.items()}  # sets up the kernels
    if first["bf16"] > 10 * first["fp32"]:  # emulated: not to be waited for again
        return first["fp32"] / first["bf16"]
    times = {name: [] for name in functions}
    for _ in range(REPEATS):
        for name, function in functions.items():
            times[name].append(_seconds(function))
    return min(times["fp32"]) / min(times["bf16"])


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
