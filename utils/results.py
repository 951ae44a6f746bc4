"""Results of runs: the summary that ends one, and the table and picture that compare many.

    python -m utils.results output
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from .config import PROJECT
from .errors import InputError
from .record import backbone_label, read_rows, write_text

log = logging.getLogger(__name__)

METHODS = {"zero_shot": "zero-shot", "text_classifier": "text classifier", "untrained": "before the first step",
           "last": "tuned, last epoch", "best": "tuned, best on validation", "tuned": "tuned"}
COLUMNS = {"top1": "top-1", "macro_f1": "macro-F1", "ece": "ECE", "kl": "KL", "chebyshev": "Cheb.", "cosine": "cosine",
           "intersection": "inters.", "agreement": "agreement", "confidence": "confidence"}
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
    if "best_epoch" in result and any("top1" in metrics for metrics in result["splits"].get("val", {}).values()):
        lines.append(f"best epoch on validation: {result['best_epoch']} of {result['epochs']}")
    if "parameters" in result:
        total = result["parameters"]["total"]
        trained = {kind: count for kind, count in result["parameters"].items() if kind != "total"}
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in trained.items())
        lines.append(f"trained parameters: {sum(trained.values()):,} of {total:,} ({kinds})")
    if not any("top1" in metrics for *_, metrics in rows):
        lines.append("nothing here is labelled, so there is no accuracy: agreement is with the text classifier's "
                     "predictions, confidence the mean of the highest probability")
    return "\n".join(["", *lines])


def _show(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key in PER_CENT else f"{value:.3f}"


def find_runs(root: Path) -> dict[tuple[str, ...], list[dict]]:
    """Finished runs under `root` by (dataset, supervision, backbone, trainer, experiment); seeds share a group."""
    groups = defaultdict(list)
    for path in sorted(root.rglob("final.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no valid JSON: {error}") from error
        experiment = re.sub(r"[-_]?seed\d+$", "", path.parent.name)
        result["rows"] = read_rows(path.parent / "metrics.jsonl")
        backbone = backbone_label(result["backbone"])
        groups[result["dataset"], result["supervision"], backbone, result["trainer"], experiment].append(result)
    if not groups:
        raise InputError(f"no finished run (final.json) under {root}")
    return dict(groups)


def markdown_table(groups: dict[tuple[str, ...], list[dict]], metric: str = "top1") -> str:
    """Test-split means ± standard deviations over seeds, in per cent, beside published figures where there are any."""
    published = yaml.safe_load((PROJECT / "configs" / "published.yaml").read_text(encoding="utf-8"))["top1"]
    present = {name for runs in groups.values() for run in runs for name in run["splits"].get("test", {})}
    names = [name for name in METHODS if name in present]
    head = ["data", "supervision", "backbone", "trainer", "seeds", *(METHODS[name] for name in names), "published"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for (dataset, supervision, backbone, trainer, experiment), runs in sorted(groups.items()):
        cells = [spread([run["splits"].get("test", {}).get(name, {}).get(metric) for run in runs]) for name in names]
        known = published.get(backbone, {}).get(dataset, {}) if supervision == "pseudo" else {}
        cells.append(f"CLIP {known['CLIP']}, LaFTer {known['LaFTer']}" if known else "")
        label = trainer + (f" ({experiment})" if experiment else "")
        lines.append("| " + " | ".join([dataset, supervision, backbone, label, str(len(runs)), *cells]) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of fractions, in per cent; without a spread for one value."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def draw_curves(groups: dict[tuple[str, ...], list[dict]], path: Path) -> None:
    """A panel per data set and supervision: test accuracy by epoch, each run thin, means thick; baselines dashed."""
    import matplotlib  # only here: a picture is not always wanted, and the import takes a second

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = sorted({key[:3] for key in groups})
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.2), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels):
        members = {key: runs for key, runs in groups.items() if key[:3] == panel}
        for number, (key, runs) in enumerate(sorted(members.items())):
            _draw_method(axis, " ".join(part for part in key[3:] if part), runs, f"C{number}")
        first = next(iter(members.values()))
        for style, name in ((":", "zero_shot"), ("--", "text_classifier")):
            scored = [run["splits"].get("test", {}).get(name, {}) for run in first]
            values = [100 * metrics["top1"] for metrics in scored if "top1" in metrics]
            if values:
                axis.axhline(statistics.mean(values), color="0.4", linestyle=style, label=METHODS[name])
        axis.set(title=", ".join(panel), xlabel="epoch (0: before the first step)", ylabel="test top-1 (%)")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_method(axis, label: str, runs: list[dict], color) -> None:
    curves = [[100 * row["test"]["top1"] for row in run["rows"] if "top1" in row.get("test", {})] for run in runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return
    for curve in curves if len(curves) > 1 else []:
        axis.plot(range(len(curve)), curve, color=color, alpha=0.25, linewidth=1)
    means = [statistics.mean(values) for values in zip(*curves)]
    axis.plot(range(len(means)), means, color=color, linewidth=2, marker="o", markersize=3, label=label)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare finished runs: results.md and results.png in ROOT.")
    parser.add_argument("root", type=Path, help="a folder of runs, such as output")
    root = parser.parse_args(argv).root
    groups = find_runs(root)
    table = markdown_table(groups)
    write_text(root / "results.md", table + "\n")
    draw_curves(groups, root / "results.png")
    log.info("\n%s\n\ntable: %s\npicture: %s", table, root / "results.md", root / "results.png")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except InputError as error:
        raise SystemExit(f"results: {error}") from error
