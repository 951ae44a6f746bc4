"""Finished runs as tables: means over seeds, paired differences between methods, published figures beside them."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import read_text
from ..runs.identity import Identity, read_identity
from ..runs.record import backbone_label, read_rows
from .intervals import mean_interval
from .literature import UNKNOWN, published_distributions, published_top1

METHODS = {"zero_shot": "zero-shot", "text_classifier": "text classifier", "untrained": "before the first step",
           "last": "tuned, last epoch", "best": "tuned, best on validation", "tuned": "tuned"}
FURTHER_COLUMNS = {"macro_f1": "macro-F1", "ece": "ECE ↓", "agreement": "agreement", "confidence": "confidence"}
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
    source: str = ""  # the runs' output folder, below the one that is reported
    settings: str = ""  # what stands for the tuned defaults is not shown

    @property
    def method(self) -> str:
        told = [textwrap.shorten(self.settings, 60, placeholder=" …")] if self.settings else []
        if self.experiment and self.experiment != self.settings.partition(",")[0]:  # a folder's name may say it too
            told.append(self.experiment)
        return self.trainer + (f" ({', '.join(told)})" if told else "")

    @property
    def panel(self) -> tuple[str, str, str]:
        """What must be equal for methods to be compared: (dataset, after the source if there is one; supervision;
        backbone). Runs from another output folder may have other settings under the same name."""
        return f"{self.source}/{self.dataset}".lstrip("/"), self.supervision, self.backbone


Groups = dict[Key, list[dict]]


def find_runs(root: Path) -> Groups:
    """Finished runs under `root`; seeds share a group. Each is its final.json with its `rows` and its `folder`.

    Raises InputError for a damaged final.json, for two runs of one method that have the same seed, for two that have
    different settings, and for no run.
    """
    groups = defaultdict(list)
    for path in sorted(root.rglob("final.json"), key=Path.as_posix):
        try:
            result = json.loads(read_text(path))
            experiment = re.sub(r"[-_]?seed\d+$", "", path.parent.name)
            key = Key(result["dataset"], result["supervision"], backbone_label(result["backbone"]), result["trainer"],
                      experiment, "/".join(path.parent.relative_to(root).parts[:-4]),
                      str(result.get("settings", "tuned")).removeprefix("tuned"))
            twin = next((run["folder"] for run in groups[key] if run["seed"] == result["seed"]), None)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no valid JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of a run: {error!r}; delete it, or its folder") from error
        if twin:
            raise InputError(f"{twin} and {path.parent} are one method with one seed, {result['seed']}: rename one of "
                             "the folders, or report them apart")
        groups[key].append(result | {"rows": read_rows(path.parent / "metrics.jsonl"), "folder": path.parent})
    if not groups:
        raise InputError(f"no finished run (final.json) under {root}")
    for runs in groups.values():
        check_settings(runs)
    return dict(sorted(groups.items()))


def check_settings(runs: Sequence[dict]) -> None:
    """InputError where runs that would share a row differ in more than the seed and its splits, as far as both tell."""
    first, *others = ((run["folder"], replace(read_identity(run["folder"]), splits=None)) for run in runs)
    for folder, identity in others:
        for difference in _shared(first[1], identity).differences(_shared(identity, first[1])):
            raise InputError(f"{folder} would share a row with {first[0]}, but {difference}: rename the folder of one "
                             "(what stands before its seed tells methods apart), or report them apart")


def _shared(identity: Identity, other: Identity) -> Identity:
    """An identity with those settings alone, without the seed, that the other tells too."""
    told = {key: value for key, value in (identity.settings or {}).items() if key in (other.settings or {})}
    return replace(identity, settings={**told, "SEED": None})


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
    table = [["data", "supervision", "backbone", "trainer", "seeds", *(METHODS[name] for name in names), "published"]]
    for key, runs in groups.items():
        cells = [spread([100 * value for value in scores(runs, name, metric).values()]) for name in names]
        cells.append(", ".join(f"{name} {value}" for name, value in published_top1(runs)[0].items()))
        table.append([*key.panel, key.method, str(len(runs)), *cells])
    return table


def further_table(groups: Groups) -> Table:
    """What else tells of the tuned models' classes on the test split, in per cent, as far as any run has it."""
    columns = {metric: title for metric, title in FURTHER_COLUMNS.items()
               if any(tuned_scores(runs, metric) for runs in groups.values())}
    table = [["data", "supervision", "backbone", "trainer", "seeds", *columns.values()]]
    for key, runs in groups.items():
        cells = [spread([100 * value for value in tuned_scores(runs, metric).values()]) for metric in columns]
        if any(cells):
            table.append([*key.panel, key.method, str(len(runs)), *cells])
    return table


def distribution_table(groups: Groups) -> Table:
    """The distribution metrics of the tuned models on the test split, below them published ones of a data set of which
    some runs are comparable; only the head where no run has any."""
    table = [["data", "supervision", "backbone", "trainer", "seeds", *DISTRIBUTION_COLUMNS.values()]]
    published = {}
    for key, runs in groups.items():
        cells = [spread(list(tuned_scores(runs, metric).values()), 3) for metric in DISTRIBUTION_COLUMNS]
        if any(cells):
            table.append([*key.panel, key.method, str(len(runs)), *cells])
            published.setdefault(key.dataset, {}).update(published_distributions(runs)[0])
    for dataset, methods in published.items():
        for name, figures in methods.items():
            cells = [f"{figures[metric]:.2f}" if metric in figures else "" for metric in DISTRIBUTION_COLUMNS]
            table.append([dataset, "labels", "", f"{name} (published)", "", *cells])
    return table


def published_note(groups: Groups) -> str:
    """What the published top-1 figures are, where some stand beside runs, and why none stand beside the others."""
    shown, reasons = False, defaultdict(list)
    for key, runs in groups.items():
        figures, reason = published_top1(runs)
        shown |= bool(figures)
        if reason:
            reasons[reason].append(key.dataset if reason == UNKNOWN else f"{key.dataset}, {key.method}")
    said = ["LaFTer's published accuracy is the best over its test epochs; ours is the last epoch's, or that of the "
            "epoch chosen on validation."] * shown
    return " ".join([*said, *_without_figures(reasons)])


def distribution_note(groups: Groups) -> str:
    """What the published distributions are, where some stand below runs, and beside which runs they do not."""
    shown, reasons = False, defaultdict(list)
    for key, runs in groups.items():
        figures, reason = published_distributions(runs)
        if tuned_scores(runs, "kl"):
            shown |= bool(figures)
            if reason and reason != UNKNOWN:
                reasons[reason].append(f"{key.dataset}, {key.method}")
    said = ["Published rows are from the literature and of other splits: they give the order of magnitude."] * shown
    return " ".join([*said, *_without_figures(reasons)])


def _without_figures(reasons: dict[str, list[str]]) -> list[str]:
    """One sentence for all runs without published figures, by the reason."""
    told = []
    for reason, names in reasons.items():
        names = list(dict.fromkeys(names))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        told.append(f"{'; '.join(names[:3])}{more} ({reason})")
    return [f"No published figures beside {'; '.join(told)}."] if told else []


def difference_table(groups: Groups, baseline: str = "") -> Table:
    """How far each method is from its panel's baseline on the test split: top-1 in points, and the KL divergence of
    the distributions where there are any, with 95 % intervals over the seeds that both have; only the head where no
    two methods share two seeds."""
    table = [["data", "supervision", "backbone", "trainer", "against", "seeds", "last epoch", "best on validation",
              "KL, last epoch"]]
    for members in panels(groups).values():
        reference = choose_baseline(members, baseline)
        for key, runs in members.items():
            last, kl = (differences(tuned_scores(runs, metric), tuned_scores(members[reference], metric))
                        for metric in ("top1", "kl"))
            best = differences(scores(runs, "best"), scores(members[reference], "best"))
            if key != reference and len(last) > 1:
                table.append([*key.panel, key.method, reference.method, str(len(last)),
                              *(show_interval([100 * value for value in values]) for values in (last, best)),
                              show_interval(kl, 3)])
    return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]


def choose_baseline(members: Groups, wanted: str = "") -> Key:
    """The method of a panel that others are compared with: the one called `wanted`, by its trainer, experiment or both
    as in the table; else the experiment `base`, else the first of LaFTer, else the first; tuned ones come first."""
    return min(members, key=lambda key: (not is_called(key, wanted), not tuned_scores(members[key], "top1"),
                                         key.experiment != "base", key.trainer != "LaFTer", key))


def is_called(key: Key, name: str) -> bool:
    """Whether a method goes by this name: its trainer's, its experiment's, or both as in the tables."""
    return bool(name) and name in (key.method, key.experiment, key.trainer)


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours minus theirs, seed by seed, over the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


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


def show_interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean difference and its 95 % interval, such as `+1.2 [−0.3, +2.7]`."""
    if not values:
        return ""
    mean, low, high = (f"{number:+.{digits}f}".replace("-", "−") for number in mean_interval(values))
    return mean if math.isnan(mean_interval(values)[1]) else f"{mean} [{low}, {high}]"


def find_confusion(runs: Sequence[dict]) -> list[list[int]]:
    """The confusion matrices of the tuned models on the test split, added over the seeds; [] where none is recorded."""
    found = list((scores(runs, "last", "confusion_matrix") or scores(runs, "tuned", "confusion_matrix")).values())
    return [[sum(cells) for cells in zip(*rows)] for rows in zip(*found)]
