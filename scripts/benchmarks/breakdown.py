"""Where a step's time goes: the shares of its kinds of work, as torch's profiler sees them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# kinds of work by the names of operators and of the autograd functions around them: the first that fits counts
KINDS = {
    "fused by the compiler": r"triton|Compiled|inductor",
    "optimiser, norms": r"Optimizer|_foreach|_fused_adam|vector_norm",
    "LayerNorm": r"layer_?norm",
    "GELU": r"gelu|silu|sigmoid",
    "attention": r"bmm|softmax|scaled_dot_product|flash_attention|efficient_attention",
    "products": r"linear|addmm|\bmm|MmBackward|matmul|convolution",
    "copies, casts": r"copy|clone|contiguous|aten::cat|CatBackward",
    "sums": r"aten::add|AddBackward|aten::sum|SumBackward",
}
PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}
REST = "rest"


def shares_of_time(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """{kind: its share of the time} of a call of `function`: of the GPU's, or of the CPU's, which waits for nobody."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of its start and its end, and of GPUs that are not here
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        function()
    times: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CPU:
            spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            times[kind_of(event)] += spent
    total = times.total()
    return {kind: times[kind] / total for kind in (*KINDS, REST)} if total else {}


def kind_of(event: FunctionEvent) -> str:
    """By the event's own name, else by that of the nearest event around it that tells."""
    while event is not None:
        for kind, pattern in PATTERNS.items():
            if pattern.search(event.name):
                return kind
        event = event.cpu_parent
    return REST
