"""A GPU against the CPU: the same steps, the same losses; and how often a step makes Python wait for the GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from benchmarks.parts import WAYS, make_clip, make_step, take_step

from trainers.build import TRAINERS, allow_tf32, prepare_blocks

from .checks import Check, Size

STEPS, TOLERANCE = 5, 1e-4
TEACHERS = ("shared", "frozen", "ema")
PASS, PRINT_FREQ = 20, 10  # steps of a pass, and between two looks at its numbers
FULL_PHASE = 99  # an epoch in which all stages train


def parity_checks(size: Size, device: torch.device) -> Iterator[Check]:
    """Five steps in fp32, without TF32, on the CPU and on `device`, by both trainers under every teacher, recorded as
    graphs too; under the shared one also compiled."""
    if device.type == "cuda":
        allow_tf32(False)
    for trainer in TRAINERS:
        for teacher in TEACHERS:
            # on a CPU the other side's micro-batches are of another size, so that something is compared there too
            plain = losses(size, trainer, teacher, "eager", torch.device("cpu"), micro_batch=size.batch // 3 + 1)
            compiled = ["compiled graph"] if size.compiles and teacher == "shared" else []
            for way in ["eager", "graph", *compiled]:
                found = losses(size, trainer, teacher, way, device)
                difference = max(abs(a - b) / abs(b) for a, b in zip(found, plain))
                yield Check("parity", f"{trainer}, {teacher} teacher, {way}", difference < TOLERANCE,
                            "largest difference of a loss", difference)


def losses(size: Size, trainer: str, teacher: str, way: str, device: torch.device, micro_batch: int = 0) -> list[float]:
    """Of each of the steps, on a batch that is the same on every device."""
    values = {**WAYS[way], "PSEUDO_LABEL.TEACHER": teacher, "PSEUDO_LABEL.EMA_DECAY": 0.9,
              "DATALOADER.TRAIN_X.MICRO_BATCH": micro_batch}
    clip_model = make_clip(size.backbone, "fp32", device)
    cfg, training, objective, batch = make_step(clip_model, trainer, values, FULL_PHASE, size.batch)
    prepare_blocks(clip_model, cfg, images=1)
    return [take_step(training, objective, cfg, batch)["loss"] for _ in range(STEPS)]


def waiting_checks(size: Size, device: torch.device) -> Iterator[Check]:
    """How often a pass of twenty steps waits for the GPU: to read its numbers, each PRINT_FREQ steps and at its end, a
    few copies each time, and for nothing else. Nothing to see on a CPU."""
    if device.type != "cuda":
        return
    for trainer in TRAINERS:
        values = {**WAYS["eager"], "TRAIN.PRINT_FREQ": PRINT_FREQ}
        clip_model = make_clip(size.backbone, "bf16", device)
        cfg, training, objective, batch = make_step(clip_model, trainer, values, FULL_PHASE, size.batch)
        take_step(training, objective, cfg, batch)  # the first one sets things up
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                take_step(training, objective, cfg, batch, PASS)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchronizing" in str(warning.message) for warning in said)
        yield Check("waiting", f"{trainer}, {PASS} steps", waits <= 4 * (math.ceil(PASS / PRINT_FREQ) + 1),
                    "times that Python waited", waits)
