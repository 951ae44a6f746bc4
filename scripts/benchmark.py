"""Measures this machine: the training step, the texts and the images, each against a plain way in the same run.

    python scripts/benchmark.py --quick          a few minutes on a CPU
    python scripts/benchmark.py                  ViT-B/32 at batch 50
    python scripts/benchmark.py --device cuda --backbones ViT-B/32 ViT-B/16 ViT-L/14 --precision bf16 --json
    python scripts/benchmark.py --scaling        time and memory as images, classes and descriptions grow

Weights and images are random: speed does not depend on them. Pairs are measured in turns and the medians told.
"Of the floor" is the time that a step's floating-point operations take at the rate of the bare matrix products, which
is measured in the same turns, divided by the step's time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import re
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from benchmarks.parts import BACKBONES, CASES, Row, measure_apart, measure_pipeline, measure_texts
from benchmarks.scaling import measure_scaling

from clip.model import PRECISIONS
from trainers.build import choose_device
from trainers.program import exit_with_message

PROJECT = Path(__file__).resolve().parent.parent
COLUMNS = {"seconds": "s", "images_per_s": "images/s", "floor_fraction": "of the floor", "peak_gb": "peak GB",
           "times_reference": "× plain", "tflop": "TFLOP", "gemm_tflop_per_s": "products TFLOP/s",
           "reference_seconds": "plain s"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 10, fewer repeats and images")
    parser.add_argument("--scaling", action="store_true", help="only the table of cost as work grows")
    parser.add_argument("--only", nargs="+", choices=("step", "texts", "images"), default=["step", "texts", "images"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch; PyTorch's choice if not given")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["ViT-B/32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[50])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    modes = [mode for _, mode, *_ in CASES]
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="of the step")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="the image tower's blocks")
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks instead of keeping them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the image reference, and of ours")
    parser.add_argument("--json", nargs="?", const="", help="write a record: a file, or configs/benchmarks/...")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.repeats = [10], 3
    return args


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print the tables, write the record; returns it."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    record = describe_machine(device)
    print(f"{record['device']}, {record['threads']} threads, torch {record['torch']}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if args.scaling:
            record["scaling"] = show("Cost as work grows", measure_scaling(Path(folder), device))
        else:
            measure(args, device, Path(folder), record)
    if args.json is not None:
        path = Path(args.json) if args.json else record_path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return record


def measure(args: argparse.Namespace, device: torch.device, folder: Path, record: dict[str, object]) -> None:
    """Fill `record` with the rows that are asked for, table by table."""
    if "step" in args.only:
        record["steps"] = show("The step, against LaFTer's written plainly", [
            measure_apart(backbone, precision, batch, case, device, args.repeats, args.compile, args.checkpointing)
            for backbone in args.backbones for precision in args.precision for batch in args.batch for case in CASES
            if case[1] in args.modes])
    if "texts" in args.only:
        count = 100 if args.quick else 500
        record["texts"] = show("Texts, against one at a time at 77 tokens", [
            measure_texts(backbone, precision, device, count, args.repeats)
            for backbone in args.backbones for precision in args.precision])
    if "images" in args.only:
        size = BACKBONES[args.backbones[0]][0]
        record["images"] = show("Both views of images, against PIL in worker processes", measure_pipeline(
            folder, device, 100 if args.quick else 500, size, args.workers, args.repeats))


def describe_machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"date": datetime.date.today().isoformat(), "device": name, "kind": device.type,
            "system": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def record_path(record: dict[str, object]) -> Path:
    """configs/benchmarks/<device>-<date>.json."""
    name = re.sub(r"[^a-z0-9]+", "-", str(record["device"]).lower()).strip("-")
    return PROJECT / "configs" / "benchmarks" / f"{name}-{record['date']}.json"


def show(title: str, rows: list[Row]) -> list[Row]:
    """Print rows as a Markdown table."""
    print(f"\n{title}\n")
    names = list(rows[0])
    print("| " + " | ".join(COLUMNS.get(name, name.replace("_", " ")) for name in names) + " |")
    print("| " + " | ".join("---" for _ in names) + " |")
    for row in rows:
        print("| " + " | ".join(format_cell(row[name]) for name in names) + " |", flush=True)
    return rows


def format_cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}" if isinstance(
        value, float) else str(value)


if __name__ == "__main__":
    exit_with_message(main)
