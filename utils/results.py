"""Results of runs: the summary that ends one, and the command that compares many.

    python -m utils.results output

writes into that folder results.md (tables), pictures (results.png by epoch, seconds.png by training time, and
comparison.png), and report.html, which needs no network.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .metrics import one_sided
from .report.groups import METHODS, find_runs, is_called
from .report.tables import accuracy_table, difference_table, markdown
from .runs.record import write_text
from .utils import tell_counts

log = logging.getLogger(__name__)

# ↑: higher is better, ↓: lower is
COLUMNS = {"top1": "top-1 ↑", "macro_f1": "macro-F1 ↑", "ece": "ECE ↓", "kl": "KL ↓", "chebyshev": "Cheb. ↓",
           "cosine": "cosine ↑", "intersection": "inters. ↑", "agreement": "agreement", "confidence": "confidence"}
SHOWN_CLASSES = 8  # whose predictions the summary counts one by one
PER_CENT = ("top1", "macro_f1", "ece", "agreement", "confidence")

def format_summary(result: dict) -> str:
    """final.json as a text table: a row per split and method, then the parameters that were trained."""
    rows = [(split, method, metrics) for split, methods in result["splits"].items()
            for method, metrics in methods.items()]
    columns = [key for key in COLUMNS if any(key in metrics for *_, metrics in rows)]
    lines = [" ".join([f"{'split':<6}", f"{'model':<27}", *(f"{COLUMNS[key]:>10}" for key in columns)])]
    for split, method, metrics in rows:
        cells = [f"{_show(key, metrics[key]):>10}" if key in metrics else " " * 10 for key in columns]
        lines.append(" ".join([f"{split:<6}", f"{METHODS[method]:<27}", *cells]))
    lines += prediction_notes(result)
    if "best_epoch" in result and any("top1" in metrics for metrics in result["splits"].get("val", {}).values()):
        lines.append(f"best epoch on validation: {result['best_epoch']} of {result['epochs']}")
    if "parameters" in result:
        total = result["parameters"]["total"]
        trained = {kind: count for kind, count in result["parameters"].items() if kind != "total"}
        lines.append(f"trained parameters: {sum(trained.values()):,} of {total:,} ({tell_counts(trained)})")
    if not rows:
        lines.append("nothing was scored: there is no validation image and no test image")
    elif not any("top1" in metrics for *_, metrics in rows):
        lines.append("nothing here is labelled, so there is no accuracy: agreement is with the text classifier's "
                     "predictions, confidence the mean of the highest probability")
    return "\n".join(["", *lines])


def prediction_notes(result: dict) -> list[str]:
    """What a reader of the figures must know of the predictions: how many each class gets, where nearly all are one
    class, and whether the test images were trained on."""
    names, notes, one_class = result.get("classnames", []), [], []
    for split, methods in result["splits"].items():
        counted = {method: metrics for method, metrics in methods.items() if "predicted" in metrics}
        if counted:
            method = [name for name in counted if name != "best"][-1]
            notes.append(f"predicted, {split}, {METHODS[method]}: {_count(names, counted[method]['predicted'])}")
        one_class += [f"{split}, {METHODS[method]}: {names[label]}" for method, metrics in counted.items()
                      if (label := one_sided(metrics)) is not None]
    if one_class:
        notes.append(f"nearly all images are predicted as one class ({'; '.join(one_class)}): these figures mean "
                     "nothing, unless the images are so")
    if shared := result.get("test_in_train"):
        notes.append(f"{shared} of the test images are training images: their figures tell nothing of new images")
    return notes


def _count(names: Sequence[str], counts: Sequence[int]) -> str:
    ranked = sorted(zip(names, counts), key=lambda pair: -pair[1])
    rest = ranked[SHOWN_CLASSES:]
    never = f", {counts.count(0)} classes never" if counts.count(0) else ""
    return ", ".join(f"{name} {count}" for name, count in ranked[:SHOWN_CLASSES]) + (
        f"; {len(rest)} others {sum(count for _, count in rest)}{never}" if rest else "")


def format_metrics(metrics: dict) -> str:
    """The figures of one split and method in a line, as far as the summary has a column for them."""
    return ", ".join(f"{name.rstrip(' ↑↓')} {_show(key, metrics[key])}" for key, name in COLUMNS.items()
                     if key in metrics)


def _show(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key in PER_CENT else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    from .report.charts import draw_comparison, draw_curves  # matplotlib takes a second, and a run's end needs none
    from .report.fonts import fonts_for
    from .report.html import html_report, markdown_report

    parser = argparse.ArgumentParser(description="Compare finished runs: tables, pictures and a report in ROOT.")
    parser.add_argument("root", type=Path, help="a folder of runs, such as output")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables (default: ROOT/results.md)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report, one file (default: ROOT/report.html)")
    parser.add_argument("--baseline", default="", metavar="NAME",
                        help="trainer or experiment that others are compared with (default: the experiment 'base', "
                             "else the first of LaFTer)")
    args = parser.parse_args(argv)
    groups = find_runs(args.root)
    if args.baseline and not any(is_called(key, args.baseline) for key in groups):
        raise InputError(f"--baseline {args.baseline}: no such method under {args.root}; there are "
                         + ", ".join(sorted({key.method for key in groups})))
    table, page = args.markdown or args.root / "results.md", args.html or args.root / "report.html"
    write_text(table, markdown_report(groups, args.baseline))
    with fonts_for(name for key in groups for name in (key.method, *key.panel)):
        write_text(page, html_report(groups, args.root.resolve().name or "runs", args.baseline, page.parent))
        draw_curves(groups, args.root / "results.png")
        draw_curves(groups, args.root / "seconds.png", "seconds")
        draw_comparison(groups, args.root / "comparison.png", args.baseline)
    compared = difference_table(groups, args.baseline)
    shown = [accuracy_table(groups), *([compared] if len(compared) > 1 else [])]
    pictures = [path for name in ("results", "seconds", "comparison") if (path := args.root / f"{name}.png").is_file()]
    log.info("\n%s\n\ntables: %s\nreport: %s\npictures: %s", "\n\n".join(map(markdown, shown)), table, page,
             ", ".join(map(str, pictures)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        raise SystemExit(f"results: {error}") from error
