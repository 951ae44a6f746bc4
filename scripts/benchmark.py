"""Measures this machine: the training step, the texts and the images, each against a plain way in the same run.

    python scripts/benchmark.py --quick          within two minutes on a CPU
    python scripts/benchmark.py                  ViT-B/32 at batch 50
    python scripts/benchmark.py --device cuda --backbones ViT-B/32 ViT-B/16 ViT-L/14 --precision bf16 --json
    python scripts/benchmark.py --scaling        time and memory as images, classes and descriptions grow

Weights and images are random: speed does not depend on them. Pairs are measured in turns and the medians told.
"Of the floor" is the time that a step's floating-point operations take at the rate of the bare matrix products, which
is measured in the same turns, divided by the step's time. What is left is named in the table of shares.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import math
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from benchmarks.parts import BACKBONES, CASES, PRODUCTS, WAYS, Row, measure_apart, measure_pipeline, measure_texts
from benchmarks.scaling import measure_scaling

from clip.model import PRECISIONS
from clip.precision import choose_precision
from trainers.build import choose_device, processor
from trainers.program import exit_with_message

Case = tuple[str, Callable[[], Iterable[Row]]]  # its name, and what measures it
PROJECT = Path(__file__).resolve().parent.parent
QUICK_MODES, QUICK_LIMIT = ("shared teacher", "replace, full"), 110.0
COLUMNS = {"seconds": "s", "images_per_s": "images/s", "floor_fraction": "of the floor", "peak_gb": "peak GB",
           "times_reference": "× plain", "tflop": "TFLOP", "gemm_tflop_per_s": "products TFLOP/s",
           "reference_seconds": "plain s"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within two minutes: batch 10, one repeat, fewer cases")
    parser.add_argument("--scaling", action="store_true", help="only the table of cost as work grows")
    parser.add_argument("--only", nargs="+", choices=("step", "texts", "images"), default=["step", "texts", "images"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch; PyTorch's choice if not given")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["ViT-B/32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[50])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS,
                        help="fp32, and bf16 where the device multiplies it fast, if not given")
    modes = [mode for _, mode, *_ in CASES]
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="of the step")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"], help="of running the step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks instead of keeping them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the image reference, and of ours")
    parser.add_argument("--limit", type=float, default=math.inf,
                        help="seconds; cases that would not end within them are left out")
    parser.add_argument("--json", nargs="?", const="", help="write a record: a file, or configs/benchmarks/...")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.repeats = [10], 1
        args.modes = [mode for mode in QUICK_MODES if mode in args.modes] or args.modes
        args.limit = min(args.limit, QUICK_LIMIT)
    return args


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print the tables, write the record; returns it."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    if not args.precision:
        args.precision = list(dict.fromkeys(["fp32", choose_precision(device)]))
    record = describe_machine(device)
    print(f"{record['device']}, {record['threads']} threads, torch {record['torch']}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if args.scaling:
            record["scaling"] = show("Cost as work grows", measure_scaling(Path(folder), device))
        else:
            measure(args, device, Path(folder), record)
    if args.json is not None:
        write_record(record, Path(args.json) if args.json else record_path(record))
    return record


def measure(args: argparse.Namespace, device: torch.device, folder: Path, record: dict[str, object]) -> None:
    """Fill `record` with the rows that are asked for, table by table, each shown as it ends."""
    clock = Clock(args.limit)
    if "step" in args.only:
        record["steps"] = show("The step, against LaFTer's written plainly", clock.run(step_cases(args, device)))
        show("Where the step's time goes", ({**{key: row[key] for key in ("trainer", "mode", "backbone", "precision",
                                                                          "way")},
                                             **{kind: f"{share:.1%}" for kind, share in row["shares"].items()}}
                                            for row in record["steps"] if row["shares"]))
    if "texts" in args.only:
        count = 100 if args.quick else 500
        record["texts"] = show("Texts, against one at a time at 77 tokens", clock.run(
            (f"texts, {backbone}, {precision}",
             lambda b=backbone, p=precision: [measure_texts(b, p, device, count, args.repeats)])
            for backbone in args.backbones for precision in args.precision))
    if "images" in args.only:
        size = BACKBONES[args.backbones[0]][0]
        record["images"] = show("Both views of images, against PIL in worker processes", clock.run([
            ("images", lambda: measure_pipeline(folder, device, 60 if args.quick else 500, size, args.workers,
                                                args.repeats))]))
    record["left_out"] = clock.left_out
    if clock.left_out:
        print(f"\nleft out, for they would not end within {args.limit:.0f} s: {'; '.join(clock.left_out)}")


def step_cases(args: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Each case of the step; a quick measurement has the plain step once per precision, and fewer bare products."""
    for backbone in args.backbones:
        for batch in args.batch:
            for mode, precision, way in itertools.product(args.modes, args.precision, args.ways):
                case = next(case for case in CASES if case[1] == mode)
                reference = not args.quick or (mode, way) == (args.modes[0], args.ways[0])
                settings = (backbone, precision, batch, case, device, args.repeats, way, args.checkpointing, reference,
                            2 if args.quick else PRODUCTS)
                yield (f"{mode}, {backbone}, {precision}, {way}",
                       lambda settings=settings: [measure_apart(*settings)])


class Clock:
    """Runs cases while there is time: one begins only where the longest so far would still end within the limit."""

    def __init__(self, limit: float):
        self.limit, self.start, self.longest, self.left_out = limit, time.perf_counter(), 0.0, []

    def run(self, cases: Iterable[Case]) -> Iterator[Row]:
        """The rows of all cases that there is time for, as they are measured."""
        for name, function in cases:
            start = time.perf_counter()
            if start - self.start + self.longest > self.limit:
                self.left_out.append(name)
                continue
            yield from function()
            self.longest = max(self.longest, time.perf_counter() - start)


def describe_machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"date": datetime.date.today().isoformat(), "device": name, "kind": device.type,
            "system": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def record_path(record: dict[str, object]) -> Path:
    """configs/benchmarks/<device>-<date>.json."""
    name = re.sub(r"[^a-z0-9]+", "-", str(record["device"]).lower()).strip("-")
    return PROJECT / "configs" / "benchmarks" / f"{name}-{record['date']}.json"


def write_record(record: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def show(title: str, rows: Iterable[Row]) -> list[Row]:
    """Print rows as a Markdown table, each as it comes; returns them."""
    shown: list[Row] = []
    print(f"\n{title}\n", flush=True)
    for row in rows:
        names = [name for name in row if name != "shares"]
        if not shown:
            print("| " + " | ".join(COLUMNS.get(name, name.replace("_", " ")) for name in names) + " |")
            print("| " + " | ".join("---" for _ in names) + " |")
        print("| " + " | ".join(format_cell(row[name]) for name in names) + " |", flush=True)
        shown.append(row)
    return shown


def format_cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}" if isinstance(
        value, float) else str(value)


if __name__ == "__main__":
    exit_with_message(main)
