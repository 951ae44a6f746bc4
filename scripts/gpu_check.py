"""Checks this machine's GPU in one go, in at most six minutes on an H100, and measures it.

    python scripts/gpu_check.py --json           the GPU, or, where there is none, the CPU with less work
    python scripts/gpu_check.py --only parity waiting

What is looked at: five steps in fp32 on the GPU and on the CPU agree, for both trainers and all teachers; a pass makes
Python wait for the GPU only to read its numbers; the demo runs to its end in fp32, bf16 and fp16; a run that was killed
resumes; two processes share one GPU; how fast a step of ViT-B/32, B/16 and L/14 is. A table is printed row by row, and
`--json` writes a record to configs/benchmarks. The exit status is 1 where something is not as it should be.

It needs no data and no weights but the demo's, which come with the project, and no network. A machine that has none but
has PyTorch, torchvision, NumPy and Pillow needs the small rest of the requirements as wheels. Fetch them on another
machine, with the GPU machine's Python version and platform:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels \\
        yacs ftfy wcwidth regex tqdm pyyaml filelock safetensors matplotlib contourpy cycler fonttools kiwisolver \\
        pyparsing python-dateutil six packaging

and install them there, without a network and without touching PyTorch:

    pip install --no-index --no-deps --find-links wheels wheels/*.whl
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import benchmark
from gpu_checks.checks import SIZES, Check, Size
from gpu_checks.parity import parity_checks, waiting_checks
from gpu_checks.runs import demo_checks, process_checks, resume_checks
from gpu_checks.speed import measure_speed

from trainers.build import choose_device
from trainers.distributed import USER_ERRORS
from trainers.program import exit_with_message

LIMIT = 360.0  # seconds for all together
KINDS = ("parity", "waiting", "demo", "resume", "processes", "speed")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=SIZES, help="full on a GPU and small on a CPU, if not given")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--limit", type=float, default=LIMIT,
                        help="seconds; measurements of the speed that would not end within them are left out")
    parser.add_argument("--json", nargs="?", const="", help="write a record: a file, or configs/benchmarks/...")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Check, print the tables, write the record; returns it."""
    args, start = parse(argv), time.perf_counter()
    device = choose_device(args.device)
    size = SIZES[args.size or ("full" if device.type == "cuda" else "small")]
    record = benchmark.describe_machine(device)
    print(f"{record['device']}, {record['threads']} threads, torch {record['torch']}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checks = benchmark.show("What was checked", rows(size, device, Path(folder), args.only))
    record["checks"] = checks
    if "speed" in args.only:
        record |= measure_speed(size, device, args.limit - (time.perf_counter() - start))
    record["seconds"] = time.perf_counter() - start
    failed = failures(record)
    print(f"\n{sum(row['passed'] == 'yes' for row in checks)} of {len(checks)} checks passed, in "
          f"{record['seconds']:.0f} s" + "".join(f"\nNOT as it should be: {name}" for name in failed))
    if args.json is not None:
        path = benchmark.record_path(record)
        benchmark.write_record(record, Path(args.json) if args.json else path.with_name(f"gpu-check-{path.name}"))
    return record


def rows(size: Size, device: torch.device, folder: Path, kinds: list[str]) -> Iterator[dict[str, object]]:
    """The table's rows, each as its check ends."""
    checks: dict[str, Callable[[], Iterator[Check]]] = {
        "parity": lambda: parity_checks(size, device), "waiting": lambda: waiting_checks(size, device),
        "demo": lambda: demo_checks(size, device, folder), "resume": lambda: resume_checks(size, device, folder),
        "processes": lambda: process_checks(size, device, folder)}
    for kind, function in checks.items():
        start = time.perf_counter()
        for check in told(kind, function()) if kind in kinds else ():
            yield {"check": check.kind, "case": check.case, "passed": "yes" if check.passed else "NO",
                   "what": check.meaning, "value": check.value, "seconds": time.perf_counter() - start}
            start = time.perf_counter()


def told(kind: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks; an error, told in full on the terminal, is one that failed, and ends those of its kind alone."""
    try:
        yield from checks
    except (RuntimeError, OSError, subprocess.SubprocessError, *USER_ERRORS) as error:
        traceback.print_exc()
        yield Check(kind, f"an error: {' '.join(str(error).split())[:300]}", False)


def failures(record: dict[str, object]) -> list[str]:
    """What is not as it should be."""
    return [f"{row['check']}: {row['case']}" for row in record["checks"] if row["passed"] != "yes"] + [
        f"speed: {name}" for name in record.get("failed", ())]


def check_or_fail() -> None:
    if failures(main()):
        sys.exit(1)


if __name__ == "__main__":
    exit_with_message(check_or_fail)
