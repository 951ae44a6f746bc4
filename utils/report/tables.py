"""Finished runs as tables: means over seeds, paired differences between methods, published figures beside them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from .groups import (
    METHODS,
    Groups,
    choose_baseline,
    differences,
    panels,
    scaled_kl,
    scores,
    shared_scores,
    tuned_scores,
)
from .intervals import mean_interval
from .literature import UNKNOWN, published_distributions, published_top1
from .targets import dual_task_targets

# ↑: higher is better, ↓: lower is
FURTHER_COLUMNS = {"macro_f1": "macro-F1 ↑", "ece": "ECE ↓", "agreement": "agreement", "confidence": "confidence"}
DISTRIBUTION_COLUMNS = {"kl": "KL ↓", "chebyshev": "Chebyshev ↓", "clark": "Clark ↓", "clark_normalized": "Clark/√C ↓",
                        "canberra": "Canberra ↓", "canberra_normalized": "Canberra/C ↓", "cosine": "cosine ↑",
                        "intersection": "intersection ↑", "scaled_kl": "KL at T ↓", "temperature": "T"}
SCALED = ("scaled_kl", "temperature")  # not among the metrics themselves
CONDITIONS = ["data", "supervision", "backbone"]  # the columns that a panel's methods have in common

Table = list[list[str]]  # the head, then the rows


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = table
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
                      *("| " + " | ".join(row) + " |" for row in rows)])


def accuracy_table(groups: Groups, metric: str = "top1") -> Table:
    """Test-split means ± standard deviations over seeds, in per cent, beside published figures where there are any."""
    present = {name for runs in groups.values() for run in runs for name in run["splits"].get("test", {})}
    names = [name for name in METHODS if name in present]
    table = [[*CONDITIONS, "trainer", "seeds", *(METHODS[name] for name in names), "published"]]
    for key, runs in groups.items():
        cells = [spread([100 * value for value in scores(runs, name, metric).values()]) for name in names]
        cells.append(", ".join(f"{name} {value}" for name, value in published_top1(runs)[0].items()))
        table.append([*key.panel, key.method, str(len(runs)), *cells])
    return table


def further_table(groups: Groups) -> Table:
    """What else tells of the models' classes on the test split, in per cent, as far as any tuned model has it."""
    columns = {metric: title for metric, title in FURTHER_COLUMNS.items()
               if any(tuned_scores(runs, metric) for runs in groups.values())}
    table = [[*CONDITIONS, "trainer", "seeds", *columns.values()]]
    for panel, members in panels(groups).items():
        told = next((metric for metric in columns if any(tuned_scores(runs, metric) for runs in members.values())), "")
        for name, runs, method in model_rows(members, told):
            if method == "untrained":
                continue
            cells = [spread([100 * value for value in scores(runs, method, metric).values()]) for metric in columns]
            table.append([*panel, name, str(len(runs)), *cells])
    return table


def distribution_table(groups: Groups) -> Table:
    """The distribution metrics on the test split of every model that has them; what dual tasks learn; below them
    published figures of a data set of which some runs are comparable. Only the head where no run has any."""
    rows: list[tuple[list[str], dict[str, Sequence[float]]]] = []
    for panel, members in panels(groups).items():
        for name, runs, method in model_rows(members, "kl"):
            figures = {metric: list(scores(runs, method, metric).values()) for metric in DISTRIBUTION_COLUMNS}
            if scaled := scaled_kl(runs, method):
                figures["scaled_kl"], figures["temperature"] = zip(*scaled.values())
            rows.append(([*panel, name, str(len(runs))], figures))
        for name, seeds in dual_task_targets(members).items():
            figures = {metric: [one[metric] for one in seeds] for metric in seeds[0]}
            rows.append(([*panel, name, str(len(seeds))], figures))
    columns = {metric: title for metric, title in DISTRIBUTION_COLUMNS.items()
               if metric not in SCALED or any(figures.get(metric) for _, figures in rows)}
    table = [[*CONDITIONS, "trainer", "seeds", *columns.values()]]
    table += [[*start, *(spread(figures.get(metric, ()), 2 if metric == "temperature" else 3) for metric in columns)]
              for start, figures in rows]
    for dataset, methods in _published_methods(groups).items():
        for name, figures in methods.items():
            cells = [f"{figures[metric]:.2f}" if metric in figures else "" for metric in columns]
            table.append([dataset, "labels", "", f"{name} (published)", "", *cells])
    return table


def _published_methods(groups: Groups) -> dict[str, dict[str, dict[str, float]]]:
    """The published distribution metrics of each data set of which some tuned models are comparable, by method."""
    found: dict[str, dict] = {}
    for key, runs in groups.items():
        if tuned_scores(runs, "kl"):
            found.setdefault(key.dataset, {}).update(published_distributions(runs)[0])
    return found


def model_rows(members: Groups, metric: str) -> Iterator[tuple[str, list[dict], str]]:
    """(name, a run per seed, one of METHODS) of each of a panel's models that a metric is known of: zero-shot and the
    text classifier once, where the methods have them in common, and each method before its first step and tuned."""
    for method in ("zero_shot", "text_classifier"):
        shared = shared_scores(members, method, metric)
        for keys, runs in shared:
            of = f" of {'; '.join(key.method for key in keys)}" if len(shared) > 1 else ""
            yield METHODS[method] + of, runs, method
    for key, runs in members.items():
        for method, name in (("untrained", f"{key.method}, {METHODS['untrained']}"), ("last", key.method),
                             ("tuned", key.method)):
            if scored := scores(runs, method, metric):
                yield name, [run for run in runs if run["seed"] in scored], method


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
    """What the published distributions are, where some stand below runs, and beside which runs they do not; what the
    rows of dual tasks' targets and the columns of scaled logits are, where there are some."""
    shown, reasons = False, defaultdict(list)
    for key, runs in groups.items():
        figures, reason = published_distributions(runs)
        if tuned_scores(runs, "kl"):
            shown |= bool(figures)
            if reason and reason != UNKNOWN:
                reasons[reason].append(f"{key.dataset}, {key.method}")
    said = ["Published rows are from the literature and of other splits: they give the order of magnitude."] * shown
    if any(scaled_kl(runs, method) for runs in groups.values() for method in METHODS):
        said.append("A model may be too sharp (T above 1) or too flat for distributions, whatever it has learnt: KL at "
                    "T is that of softmax(logits / T), with the T whose KL on the validation split is least.")
    if any(map(dual_task_targets, panels(groups).values())):
        said.append("A dual task's target is made with the true labels here: a model that learns it perfectly, from "
                    "labels that are all right, has these figures.")
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
    table = [[*CONDITIONS, "trainer", "against", "seeds", "last epoch ↑", "best on validation ↑", "KL, last epoch ↓"]]
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


