"""Pictures of runs: for files, and as SVG that takes the text colour of the page around it.

Colours are those of Okabe and Ito, which colour-blind eyes tell apart; lines differ in style too.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from .intervals import mean_interval
from .tables import METHODS, Groups, Key, choose_baseline, differences, panels, scores, tuned_scores

INK = "#010203"  # text and axes; in an SVG it becomes the page's text colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "runs", "font.family": "sans-serif", "font.size": 9,
            "axes.titlesize": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
            "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
            "axes.spines.right": False, "axes.grid": True, "grid.color": "#808080", "grid.alpha": 0.3,
            "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8, "text.parse_math": False,
            "axes.formatter.useoffset": False}
LINES = 24  # more lines than colours and styles tell apart are not drawn into one panel

Curve = list[tuple[int, float]]  # (epoch, value)


class Panel(NamedTuple):
    """One small chart: named lines, each with a curve per seed."""

    title: str
    lines: dict[str, list[Curve]]
    log_scale: bool = False


def to_svg(figure: Figure, title: str) -> str:
    """A figure as an inline SVG element; `title` is read to those who do not see it."""
    file = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):].replace(INK, "currentColor")
    width = re.search(r'width="([\d.]+)pt"', text)[1]
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" style="max-width:{width}pt" role="img" '
                  rf'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
                  rf'<title>{escape(title)}</title>', text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


# --- curves of one method -------------------------------------------------------------------------------------------

def training_panels(runs: Sequence[dict]) -> list[Panel]:
    """What the rows of one method's runs tell, by epoch; panels without a value are left out."""
    def values(get: Callable[[dict], float | None], factor: float = 1.0) -> list[Curve]:
        return curves(runs, get, factor)

    losses = sorted({name for run in runs for row in run["rows"] for name, value in row.items()
                     if name in ("loss", "cross_entropy", "dual_task", "consistency")})
    rates = sorted({name for run in runs for row in run["rows"] for name in row.get("lr", {})})
    kinds = sorted({name for run in runs for row in run["rows"] for name in row.get("gradient_norms", {})})
    found = [
        Panel("top-1 and pseudo-labels (%)", {
            "test": values(lambda row: row.get("test", {}).get("top1"), 100),
            "validation": values(lambda row: row.get("val", {}).get("top1"), 100),
            "pseudo-labels": values(lambda row: row.get("pseudo_label_accuracy"), 100)}),
        Panel("macro-F1 and calibration error (test, %)", {
            name: values(lambda row, key=key: row.get("test", {}).get(key), 100)
            for key, name in (("macro_f1", "macro-F1"), ("ece", "ECE"))}),
        Panel("agreement and confidence (test, %)", {
            name: values(lambda row, name=name: row.get("test", {}).get(name), 100)
            for name in ("agreement", "confidence")}),
        Panel("KL divergence of the distributions", {
            name: values(lambda row, split=split: row.get(split, {}).get("kl"))
            for split, name in (("test", "test"), ("val", "validation"))}),
        Panel("loss and its parts", {name: values(lambda row, name=name: row.get(name)) for name in losses}),
        Panel("learning rates", {name: values(lambda row, name=name: row.get("lr", {}).get(name)) for name in rates},
              log_scale=True),
        Panel("test top-1 of each stage alone (%)",
              _stages(runs, lambda row: row.get("test", {}).get("stage_top1"), 100)),
        Panel("stages' weights in the fusion", _stages(runs, lambda row: row.get("stage_weights"))),
        Panel("σ of NGA", _stages(runs, lambda row: row.get("sigma"))),
        Panel("CKA with the last stage (test)", _stages(runs, lambda row: row.get("test", {}).get("stage_cka"))),
        Panel("same class as the next stage (test, %)",
              _stages(runs, lambda row: row.get("test", {}).get("stage_agreement"), 100)),
        Panel("length of the prompts", _stages(runs, lambda row: row.get("prompt_norms"))),
        Panel("gradient norm", {"all": values(lambda row: row.get("grad_norm"))}, log_scale=True),
        *(Panel(f"gradient norm, {kind}", _stages(runs, lambda row, kind=kind: row.get("gradient_norms", {}).get(kind)),
                log_scale=True) for kind in kinds)]
    drawn = [panel._replace(lines={name: seeds for name, seeds in panel.lines.items() if seeds}) for panel in found]
    return [panel for panel in drawn if panel.lines]


def curves(runs: Sequence[dict], get: Callable[[dict], float | None], factor: float = 1.0) -> list[Curve]:
    """A curve per run of what `get` finds in its rows, without empty ones."""
    found = [[(row["epoch"], factor * get(row)) for row in run["rows"] if get(row) is not None] for run in runs]
    return [curve for curve in found if curve]


def _stages(runs: Sequence[dict], get: Callable[[dict], list | None], factor: float = 1.0) -> dict[str, list[Curve]]:
    """A line per entry of a list in the rows, `stage 1` and so on; `all` where there is but one."""
    count = max((len(get(row) or ()) for run in runs for row in run["rows"]), default=0)

    def entry(row: dict, stage: int) -> float | None:
        found = get(row) or ()
        return found[stage] if stage < len(found) else None

    return {f"stage {stage + 1}" if count > 1 else "all":
            curves(runs, lambda row, stage=stage: entry(row, stage), factor) for stage in range(count)}


def training_figure(runs: Sequence[dict]) -> Figure | None:
    """All training panels of one method, three in a row: means over the seeds, and what the seeds span as a band."""
    found = training_panels(runs)
    if not found:
        return None
    with matplotlib.rc_context(SETTINGS):
        rows = -(-len(found) // 3)
        figure = Figure(figsize=(10.5, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, 3, squeeze=False).ravel()
        for axis, panel in zip(axes, found):
            _draw_panel(axis, panel)
        for axis in axes[len(found):]:
            axis.remove()
    return figure


def _draw_panel(axis, panel: Panel) -> None:
    for number, (name, seeds) in enumerate(panel.lines.items()):
        look = _look(number)
        by_epoch: dict[int, list[float]] = {}
        for epoch, value in (point for curve in seeds for point in curve):
            by_epoch.setdefault(epoch, []).append(value)
        epochs = sorted(by_epoch)
        axis.plot(epochs, [statistics.mean(by_epoch[epoch]) for epoch in epochs], label=name, linewidth=1.6,
                  marker="o", markersize=2.5, **look)
        if len(seeds) > 1:
            axis.fill_between(epochs, [min(by_epoch[epoch]) for epoch in epochs],
                              [max(by_epoch[epoch]) for epoch in epochs], color=look["color"], alpha=0.15, linewidth=0)
    positive = all(value > 0 for seeds in panel.lines.values() for curve in seeds for _, value in curve)
    axis.set(title=panel.title, xlabel="epoch")
    if panel.log_scale and positive:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default is written in mathtext
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(ncols=2 if len(panel.lines) > 4 else 1)


def _look(number: int) -> dict[str, str]:
    """Colour and style of the nth line: neighbours differ in both, and the first LINES are all different."""
    turn, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": STYLES[(number + turn) % len(STYLES)]}


# --- methods against each other -------------------------------------------------------------------------------------

def draw_curves(groups: Groups, path: Path) -> None:
    """A panel per data set, supervision and backbone: test accuracy by epoch, each run thin, means thick; baselines
    dashed."""
    found = panels(groups)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4 * len(found), 4.2), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, (panel, members) in zip(axes, found.items()):
            _draw_methods(axis, panel, members)
        figure.savefig(path, dpi=120)


def curves_figure(members: Groups) -> Figure | None:
    """One panel of `draw_curves`; None where nothing was trained or too many methods would cross."""
    if len(members) > LINES or not any(_accuracies(runs) for runs in members.values()):
        return None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        _draw_methods(figure.subplots(), next(iter(members)).panel, members)
    return figure


def _draw_methods(axis, panel: tuple[str, ...], members: Groups) -> None:
    for number, (key, runs) in enumerate(members.items()):
        seeds = _accuracies(runs)
        if not seeds:
            continue
        look = _look(number)
        for curve in seeds if len(seeds) > 1 else []:
            axis.plot(*zip(*curve), color=look["color"], alpha=0.25, linewidth=1)
        means = [(points[0][0], statistics.mean(value for _, value in points)) for points in zip(*seeds)]
        axis.plot(*zip(*means), linewidth=2, marker="o", markersize=3, label=key.method, **look)
    for name, value in _baselines(members).items():
        axis.axhline(value, color="#808080", linestyle=":" if name == "zero_shot" else "--", label=METHODS[name])
    axis.set(title=", ".join(panel), xlabel="epoch (0: before the first step)", ylabel="test top-1 (%)")
    handles = axis.get_legend_handles_labels()[0]
    if handles:
        axis.legend(ncols=1 + len(handles) // 12)


def _accuracies(runs: Sequence[dict]) -> list[Curve]:
    return curves(runs, lambda row: row.get("test", {}).get("top1"), 100)


def _baselines(members: Groups) -> dict[str, float]:
    """Mean top-1 in per cent of zero-shot and the text classifier, over all runs that measured them."""
    found = {}
    for name in ("zero_shot", "text_classifier"):
        values = [value for runs in members.values() for value in scores(runs, name).values()]
        if values:
            found[name] = 100 * statistics.mean(values)
    return found


def draw_comparison(groups: Groups, path: Path, baseline: str = "") -> None:
    """The comparison of the panel with the most methods, as a file; nothing where no panel has an accuracy."""
    figures = [comparison_figure(members, baseline) for members in
               sorted(panels(groups).values(), key=len, reverse=True)]
    figure = next((figure for figure in figures if figure), None)
    if figure:
        with matplotlib.rc_context(SETTINGS):
            figure.savefig(path, dpi=120)


def comparison_figure(members: Groups, baseline: str = "") -> Figure | None:
    """A panel's methods, best first. Left: test top-1 of each seed and the mean. Right: the difference from the
    baseline with its 95 % interval over the common seeds. None where nothing has an accuracy."""
    tuned = {key: list(tuned_scores(runs, "top1").values()) for key, runs in members.items()}
    order = sorted((key for key in tuned if tuned[key]), key=lambda key: statistics.mean(tuned[key]))
    if not order:
        return None
    reference = choose_baseline(members, baseline)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.5, 1.7 + 0.27 * len(order)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.2, 1])
        for place, key in enumerate(order):
            _draw_row(left, right, place, key, [100 * value for value in tuned[key]], members, reference)
        for name, value in _baselines(members).items():
            left.axvline(value, color="#808080", linestyle=":" if name == "zero_shot" else "--", label=METHODS[name])
        if left.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2)
        left.set_yticks(range(len(order)), [key.method for key in order])
        left.set_ylim(-0.6, len(order) - 0.4)
        left.set(xlabel="test top-1, last epoch (%)", title=", ".join(order[0].panel))
        right.axvline(0, color=INK, linewidth=0.8)
        right.set(xlabel="points, 95 % interval over common seeds", title=f"against {reference.method}")
    return figure


def _draw_row(left, right, place: int, key: Key, values: list[float], members: Groups, reference: Key) -> None:
    colour = COLOURS[1] if key == reference else COLOURS[0]
    left.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4, markeredgewidth=0)
    left.plot(statistics.mean(values), place, "|", color=colour, markersize=11, markeredgewidth=2.5)
    paired = [100 * value for value in differences(tuned_scores(members[key], "top1"),
                                                   tuned_scores(members[reference], "top1"))]
    if key != reference and paired:
        mean, low, high = mean_interval(paired)
        if len(paired) > 1:
            right.plot([low, high], [place, place], color=colour, linewidth=2)
        right.plot(mean, place, "o", color=colour, markersize=5)
