"""How fast a step and the views of its batch are, by scripts/benchmark.py's measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import benchmark
import torch
from benchmarks.parts import BACKBONES, measure_views

from .checks import Size


def measure_speed(size: Size, device: torch.device, limit: float) -> dict[str, object]:
    """Rows of the step and of the views, what was `left_out` for want of time, and what `failed`."""
    clock, failed = benchmark.Clock(limit), []
    steps = benchmark.show("The step", clock.run(attempts(step_cases(size, device), failed)))
    views = benchmark.show("Both views of a batch, on the device",
                           clock.run(attempts(view_cases(size, device), failed)))
    for what, names in (("left out, for want of time", clock.left_out), ("failed", failed)):
        if names:
            print(f"\n{what}: {'; '.join(names)}")
    return {"steps": steps, "views": views, "left_out": clock.left_out, "failed": failed}


def step_cases(size: Size, device: torch.device) -> Iterator[benchmark.Case]:
    for backbone, precisions, ways, checkpointing in size.speed:
        args = ["--backbones", backbone, "--precision", *precisions, "--ways", *ways, "--modes", "shared teacher"]
        args += ["--checkpointing"] * checkpointing + ["--quick"] * (device.type == "cpu")
        yield from benchmark.step_cases(benchmark.parse(args), device)


def view_cases(size: Size, device: torch.device) -> Iterator[benchmark.Case]:
    pixels, batch = BACKBONES[size.speed[0][0]][0], 10 if device.type == "cpu" else 50
    for compiled in dict.fromkeys((False, size.compiles)):
        yield (f"views{', compiled' * compiled}",
               lambda compiled=compiled: [measure_views(pixels, batch, device, 3, compiled)])


def attempts(cases: Iterable[benchmark.Case], failed: list[str]) -> Iterator[benchmark.Case]:
    """The cases, of which one that fails, for want of memory as a rule, is noted and does not end the others."""
    def attempt(name: str, function) -> Iterator[benchmark.Row]:
        try:
            yield from function()
        except (RuntimeError, OSError) as error:
            failed.append(f"{name}: {' '.join(str(error).split())[:300]}")

    for name, function in cases:
        yield name, lambda name=name, function=function: attempt(name, function)
