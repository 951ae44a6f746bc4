"""What a check of scripts/gpu_check.py is, and how large the checks are."""

from __future__ import annotations

from typing import NamedTuple

from clip.model import PRECISIONS


class Check(NamedTuple):
    """One thing that was looked at: whether it is as it should be, and a number with its meaning."""

    kind: str
    case: str
    passed: bool
    meaning: str = ""
    value: float | None = None


class Size(NamedTuple):
    """How much the checks do.

    Fields:
        backbone, batch: of the steps that are compared; see benchmarks.parts.BACKBONES.
        compiles: whether compiled blocks are compared too.
        precisions: that the demo runs in.
        faces: of each class that are drawn for the demo, to train on and to score.
        demo: further arguments of the demo's runs.
        short: further arguments of the runs that are killed and resumed, and of two processes.
        speed: for each measurement of the step its backbone, precisions and ways, and whether it is checkpointed.
    """

    backbone: str
    batch: int
    compiles: bool
    precisions: tuple[str, ...]
    faces: tuple[int, int]
    demo: tuple[str, ...]
    short: tuple[str, ...]
    speed: tuple[tuple[str, tuple[str, ...], tuple[str, ...], bool], ...]


SHORT = ("TEXT.EPOCHS", "50", "PICTURES", "False")
PLAIN, COMPILED = ("eager", "graph"), ("compiled", "compiled graph")
SIZES = {
    "full": Size("ViT-B/32", 10, True, tuple(PRECISIONS), (150, 100), (), ("--epochs", "4"), (
        ("ViT-B/32", ("bf16",), PLAIN, False), ("ViT-B/16", ("bf16",), PLAIN, False),
        ("ViT-L/14", ("bf16",), PLAIN, True), ("ViT-B/32", ("bf16",), COMPILED, False),
        ("ViT-B/32", ("fp32",), PLAIN, False), ("ViT-B/16", ("bf16",), COMPILED, False))),
    "small": Size("tiny", 7, False, tuple(PRECISIONS), (20, 10), (*SHORT, "--epochs", "2"), (*SHORT, "--epochs", "4"), (
        ("ViT-B/32", ("fp32", "bf16"), ("eager",), False),)),
    "tiny": Size("tiny", 4, False, ("fp32", "bf16"), (3, 1), (*SHORT, "--epochs", "2"), (*SHORT, "--epochs", "2"), (
        ("tiny", ("fp32",), ("eager",), False),)),
}
