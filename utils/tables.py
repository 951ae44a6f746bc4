"""Finished runs as tables: means over seeds, paired differences between methods, published figures beside them."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from .config import PROJECT
from .errors import InputError
from .intervals import mean_interval
from .record import backbone_label, read_rows

METHODS = {"zero_shot": "zero-shot", "text_classifier": "text classifier", "untrained": "before the first step",
           "last": "tuned, last epoch", "best": "tuned, best on validation", "tuned": "tuned"}
DISTRIBUTION_COLUMNS = {"kl": "KL ↓", "chebyshev": "Chebyshev ↓", "clark": "Clark ↓", "clark_normalized": "Clark/√C ↓",
                        "canberra": "Canberra ↓", "canberra_normalized": "Canberra/C ↓", "cosine": "cosine ↑",
                        "intersection": "intersection ↑"}

Table = list[list[str]]  # the head, then the rows


class Key(NamedTuple):
    """What runs that differ in the seed alone have in common."""

    dataset: str
    supervision: str
    backbone: str
    trainer: str
    experiment: str  # the folder's name without the seed

    @property
    def method(self) -> str:
        return self.trainer + (f" ({self.experiment})" if self.experiment else "")

    @property
    def panel(self) -> tuple[str, str, str]:
        """What must be equal for methods to be compared."""
        return self[:3]


Groups = dict[Key, list[dict]]


def find_runs(root: Path) -> Groups:
    """Finished runs under `root`; seeds share a group. Each is its final.json with its `rows` and its `folder`."""
    groups = defaultdict(list)
    for path in sorted(root.rglob("final.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no valid JSON: {error}") from error
        experiment = re.sub(r"[-_]?seed\d+$", "", path.parent.name)
        result |= {"rows": read_rows(path.parent / "metrics.jsonl"), "folder": path.parent}
        backbone = backbone_label(result["backbone"])
        key = Key(result["dataset"], result["supervision"], backbone, result["trainer"], experiment)
        groups[key].append(result)
    if not groups:
        raise InputError(f"no finished run (final.json) under {root}")
    return dict(sorted(groups.items()))


def panels(groups: Groups) -> dict[tuple[str, str, str], Groups]:
    """The groups by (dataset, supervision, backbone): those within a panel are compared."""
    found: dict[tuple[str, str, str], Groups] = defaultdict(dict)
    for key, runs in groups.items():
        found[key.panel][key] = runs
    return dict(found)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = table
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
                      *("| " + " | ".join(row) + " |" for row in rows)])


def accuracy_table(groups: Groups, metric: str = "top1") -> Table:
    """Test-split means ± standard deviations over seeds, in per cent, beside published figures where there are any."""
    present = {name for runs in groups.values() for run in runs for name in run["splits"].get("test", {})}
    names = [name for name in METHODS if name in present]
    published = read_published()["top1"]
    table = [["data", "supervision", "backbone", "trainer", "seeds", *(METHODS[name] for name in names), "published"]]
    for key, runs in groups.items():
        cells = [spread([100 * value for value in scores(runs, name, metric).values()]) for name in names]
        known = published.get(key.backbone, {}).get(key.dataset) if key.supervision == "pseudo" else None
        cells.append(f"CLIP {known['CLIP']}, LaFTer {known['LaFTer']}" if known else "")
        table.append([*key.panel, key.method, str(len(runs)), *cells])
    return table


def distribution_table(groups: Groups) -> Table:
    """The distribution metrics of the tuned models on the test split, published ones below; only the head where no
    run has any."""
    table = [["data", "supervision", "backbone", "trainer", "seeds", *DISTRIBUTION_COLUMNS.values()]]
    datasets = set()
    for key, runs in groups.items():
        cells = [spread(list(tuned_scores(runs, metric).values()), 3) for metric in DISTRIBUTION_COLUMNS]
        if any(cells):
            table.append([*key.panel, key.method, str(len(runs)), *cells])
            datasets.add(key.dataset)
    for dataset, methods in read_published()["distributions"].items():
        for name, figures in methods.items() if dataset in datasets else ():
            cells = [f"{figures[metric]:.2f}" if metric in figures else "" for metric in DISTRIBUTION_COLUMNS]
            table.append([dataset, "labels", "", f"{name} (published)", "", *cells])
    return table


def difference_table(groups: Groups, baseline: str = "") -> Table:
    """How far each method is from its panel's baseline on the test split, in points, with a 95 % interval over the
    seeds that both have; only the head where no two methods share two seeds."""
    table = [["data", "supervision", "backbone", "trainer", "against", "seeds", "last epoch", "best on validation"]]
    for members in panels(groups).values():
        reference = choose_baseline(members, baseline)
        for key in members:
            last, best = (differences(members[key], members[reference], name) for name in ("last", "best"))
            if key != reference and len(last) > 1:
                table.append([*key.panel, key.method, reference.method, str(len(last)),
                              *(show_interval(values) for values in (last, best))])
    return table


def choose_baseline(members: Groups, wanted: str = "") -> Key:
    """The method of a panel that others are compared with: the one called `wanted`, by its trainer, experiment or both
    as in the table; else the experiment `default`, else LaFTer, else the first."""
    ranked = sorted(members, key=lambda key: (wanted not in (key.method, key.experiment, key.trainer),
                                              key.experiment != "default", key.trainer != "LaFTer", key))
    return ranked[0]


def differences(runs: list[dict], reference: list[dict], method: str, metric: str = "top1") -> list[float]:
    """Differences in points, seed by seed, over the seeds that both have."""
    ours, theirs = scores(runs, method, metric), scores(reference, method, metric)
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def scores(runs: Sequence[dict], method: str, metric: str = "top1") -> dict[int, float]:
    """A test-split metric of one of METHODS by seed, without the runs that lack it."""
    scored = {run["seed"]: run["splits"].get("test", {}).get(method, {}) for run in runs}
    return {seed: metrics[metric] for seed, metrics in scored.items() if metric in metrics}


def tuned_scores(runs: Sequence[dict], metric: str) -> dict[int, float]:
    """A test-split metric of the tuned model: after the last epoch, or of a probe."""
    return scores(runs, "last", metric) or scores(runs, "tuned", metric)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation; without a spread for one value."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def show_interval(values: Sequence[float]) -> str:
    """Mean difference and its 95 % interval, such as `+1.2 [−0.3, +2.7]`."""
    if not values:
        return ""
    mean, low, high = (f"{number:+.1f}".replace("-", "−") for number in mean_interval(values))
    return mean if math.isnan(mean_interval(values)[1]) else f"{mean} [{low}, {high}]"


def read_published() -> dict:
    return yaml.safe_load((PROJECT / "configs" / "published.yaml").read_text(encoding="utf-8"))


def find_confusion(runs: Sequence[dict]) -> list[list[int]]:
    """The confusion matrices of the tuned models on the test split, added over the seeds; [] where none is recorded."""
    found = list((scores(runs, "last", "confusion_matrix") or scores(runs, "tuned", "confusion_matrix")).values())
    return [[sum(cells) for cells in zip(*rows)] for rows in zip(*found)]
