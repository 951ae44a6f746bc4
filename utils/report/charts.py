"""Charts of methods against each other: accuracy by epoch and by seconds, scores, and differences from a baseline."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import GREY, INK, LINES, Look, choose_looks, draw, legend_below, save_png
from .groups import METHODS, Groups, Key, choose_baseline, differences, panels, scores, tuned_scores
from .intervals import mean_interval
from .training_charts import Curve

COLUMNS = 3  # panels side by side in a picture
BASELINES = {"zero_shot": Look(GREY, ":"), "text_classifier": Look(GREY, "--")}
X_LABELS = {"epoch": "epoch (0: before the first step)", "seconds": "seconds of training, without evaluation"}

Looks = Mapping[str, Look]


def draw_curves(groups: Groups, path: Path, axis: str = "epoch") -> None:
    """Write a picture with a panel per data set, supervision and backbone, of what `curves_figure` shows; none by
    `seconds` where no record tells them."""
    looks, found = choose_looks(groups), panels(groups)
    if axis == "seconds" and not any(accuracies(runs, axis) for runs in groups.values()):
        return
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, (panel, members) in itertools.zip_longest(axes, found.items(), fillvalue=(None, None)):
            if panel:
                _draw_methods(place, members, looks, axis)
                place.set_title(", ".join(panel))
            else:
                place.remove()
        legend_below(figure, 2 * columns)

    save_png(draw((6.4 * columns, 4.4 * rows), paint), path)


def curves_figure(members: Groups, looks: Looks, axis: str = "epoch") -> Figure | None:
    """A panel's test accuracy by `epoch` or `seconds`: each run thin, means thick, baselines grey; None where nothing
    tells it or too many methods would cross."""
    if len(members) > LINES or not any(accuracies(runs, axis) for runs in members.values()):
        return None

    def paint(figure: Figure) -> None:
        _draw_methods(figure.subplots(), members, looks, axis)
        legend_below(figure, 2)

    return draw((6.0, 4.0 + 0.1 * len(members)), paint)


def _draw_methods(place: Axes, members: Groups, looks: Looks, axis: str) -> None:
    for key, runs in members.items():
        seeds, look = accuracies(runs, axis), looks[key.method]
        for curve in seeds if len(seeds) > 1 else []:
            place.plot(*zip(*curve), color=look.color, alpha=0.25, linewidth=1)
        if seeds:
            means = [tuple(map(statistics.mean, zip(*points))) for points in zip(*seeds)]
            place.plot(*zip(*means), linewidth=2, marker="o", markersize=3, label=key.method, **look._asdict())
    for name, value in baselines(members).items():
        place.axhline(value, label=METHODS[name], **BASELINES[name]._asdict())
    place.set(xlabel=X_LABELS[axis], ylabel="test top-1 (%)")


def accuracies(runs: Sequence[dict], axis: str = "epoch") -> list[Curve]:
    """A curve per run of its test accuracy in per cent, by `epoch`, or by the `seconds` that training took until then;
    of the latter none for a record without times."""
    found = []
    for run in runs:
        seconds, curve = 0.0, []
        for row in run["rows"]:
            seconds += row.get("train_seconds", 0)
            if "top1" in row.get("test", {}):
                curve.append((row["epoch"] if axis == "epoch" else seconds, 100 * row["test"]["top1"]))
        if curve and (seconds or axis == "epoch"):
            found.append(curve)
    return found


def baselines(members: Groups) -> dict[str, float]:
    """Mean top-1 in per cent of zero-shot and the text classifier, over all runs that measured them."""
    found = {}
    for name in BASELINES:
        values = [value for runs in members.values() for value in scores(runs, name).values()]
        if values:
            found[name] = 100 * statistics.mean(values)
    return found


def draw_comparison(groups: Groups, path: Path, baseline: str = "") -> None:
    """The comparison of the panel with the most methods, as a picture: scores, and differences where there are some;
    nothing where no panel has an accuracy."""
    members = max(panels(groups).values(), key=lambda members: len(ranked(members)))
    looks, order, compared = choose_looks(groups), ranked(members), paired_differences(members, baseline)

    def paint(figure: Figure) -> None:
        left, *right = figure.subplots(1, 1 + bool(compared), sharey=True, squeeze=False)[0]
        _draw_scores(left, members, order, looks)
        left.set_title(", ".join(order[0].panel))
        for axis in right:
            _draw_differences(axis, compared, order, looks, choose_baseline(members, baseline))
        legend_below(figure, 2)

    if order:
        save_png(draw((5.2 + 4.3 * bool(compared), 1.9 + 0.27 * len(order)), paint), path)


def scores_figure(members: Groups, looks: Looks) -> Figure | None:
    """A panel's methods, the best on top: test top-1 of each seed and the mean; None where nothing has an accuracy."""
    order = ranked(members)

    def paint(figure: Figure) -> None:
        _draw_scores(figure.subplots(), members, order, looks)
        legend_below(figure, 2)

    return draw((6.0, 1.9 + 0.27 * len(order)), paint) if order else None


def differences_figure(members: Groups, looks: Looks, baseline: str = "") -> Figure | None:
    """The same methods' differences from the baseline with their 95 % intervals; None where no two methods have two
    seeds in common: one alone has no interval."""
    order, compared = ranked(members), paired_differences(members, baseline)

    def paint(figure: Figure) -> None:
        _draw_differences(figure.subplots(), compared, order, looks, choose_baseline(members, baseline))

    return draw((6.0, 1.5 + 0.27 * len(order)), paint) if compared else None


def ranked(members: Groups) -> list[Key]:
    """The methods that have an accuracy, from the lowest mean to the highest."""
    tuned = {key: list(tuned_scores(runs, "top1").values()) for key, runs in members.items()}
    return sorted((key for key in tuned if tuned[key]), key=lambda key: statistics.mean(tuned[key]))


def paired_differences(members: Groups, baseline: str = "") -> dict[Key, list[float]]:
    """How far each method is from the panel's baseline, in points of top-1, seed by seed; {} where no two methods have
    two seeds in common."""
    reference = choose_baseline(members, baseline)
    theirs = tuned_scores(members[reference], "top1")
    found = {key: [100 * value for value in differences(tuned_scores(runs, "top1"), theirs)]
             for key, runs in members.items() if key != reference}
    if max(map(len, found.values()), default=0) < 2:
        return {}
    return {key: values for key, values in found.items() if values}


def _draw_scores(axis: Axes, members: Groups, order: Sequence[Key], looks: Looks) -> None:
    for place, key in enumerate(order):
        values, colour = [100 * value for value in tuned_scores(members[key], "top1").values()], looks[key.method].color
        if len(values) > 1:
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4, markeredgewidth=0)
        axis.plot(statistics.mean(values), place, "|", color=colour, markersize=11, markeredgewidth=2.5)
    for name, value in baselines(members).items():
        axis.axvline(value, label=METHODS[name], **BASELINES[name]._asdict())
    _name_rows(axis, order)
    axis.set_xlabel("test top-1, last epoch (%)")


def _draw_differences(axis: Axes, compared: Mapping[Key, list[float]], order: Sequence[Key], looks: Looks,
                      reference: Key) -> None:
    axis.axvline(0, color=INK, linewidth=0.8)
    for place, key in enumerate(order):
        if values := compared.get(key):
            mean, low, high = mean_interval(values)
            colour = looks[key.method].color
            if len(values) > 1:
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
            axis.plot(mean, place, "o", color=colour, markersize=5)
    _name_rows(axis, order)
    axis.set(xlabel="points, 95 % interval over common seeds", title=f"against {reference.method}")


def _name_rows(axis: Axes, order: Sequence[Key]) -> None:
    axis.set_yticks(range(len(order)), [key.method for key in order])
    axis.set_ylim(-0.6, len(order) - 0.4)
