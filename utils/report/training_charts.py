"""Charts of one method: what its record tells by epoch, and how far its confidence can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from .figures import GREY, Look, draw, legend_below, tones
from .groups import METHODS, added_tables

WIDTH, HEIGHT = 4.4, 2.1  # inches, of one panel, and of its axes
LEFT, RIGHT, TOP, BOTTOM, LINE = 0.6, 0.15, 0.3, 0.55, 0.17  # of its margins, and of a line of its legend
COLUMNS = 4  # of the legend

Curve = list[tuple[float, float]]  # (epoch or seconds, value)


class Panel(NamedTuple):
    """One small chart: named lines, each with a curve per seed."""

    title: str
    lines: dict[str, list[Curve]]
    log_scale: bool = False


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


def training_figures(runs: Sequence[dict], look: Look) -> dict[str, Figure]:
    """A figure per panel, by its title; then the reliability diagram, where bins are recorded."""
    figures = {panel.title: _small(len(panel.lines), lambda axis, panel=panel: _draw_panel(axis, panel, look.color))
               for panel in training_panels(runs)}
    lines = {METHODS[method]: bins for method in ("last", "tuned", "text_classifier", "zero_shot")
             if (bins := added_tables(runs, method, "reliability"))}
    if lines:
        figures["reliability (test)"] = _small(len(lines), lambda axis: _draw_reliability(axis, lines, look))
    return figures


def _small(lines: int, paint: Callable[[Axes], None]) -> Figure:
    """A figure with one axis that `paint` draws so many lines into, and their names below."""
    bottom = BOTTOM + LINE * -(-lines // COLUMNS)
    height = TOP + HEIGHT + bottom

    def fill(figure: Figure) -> None:
        figure.subplots_adjust(LEFT / WIDTH, bottom / height, 1 - RIGHT / WIDTH, 1 - TOP / height)
        paint(figure.subplots())
        legend_below(figure, COLUMNS)

    return draw((WIDTH, height), fill, layout="none")


def _draw_panel(axis: Axes, panel: Panel, colour: str) -> None:
    """Means over the seeds as lines, and what the seeds span as bands."""
    for (name, seeds), look in zip(panel.lines.items(), tones(colour, len(panel.lines))):
        by_epoch: dict[float, list[float]] = {}
        for epoch, value in (point for curve in seeds for point in curve):
            by_epoch.setdefault(epoch, []).append(value)
        epochs = sorted(by_epoch)
        axis.plot(epochs, [statistics.mean(by_epoch[epoch]) for epoch in epochs], label=name, linewidth=1.6,
                  marker="o", markersize=2.5, **look._asdict())
        if len(seeds) > 1:
            axis.fill_between(epochs, [min(by_epoch[epoch]) for epoch in epochs],
                              [max(by_epoch[epoch]) for epoch in epochs], color=look.color, alpha=0.15, linewidth=0)
    axis.set(title=panel.title, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if panel.log_scale and all(value > 0 for seeds in panel.lines.values() for curve in seeds for _, value in curve):
        use_log_scale(axis)


def use_log_scale(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default is written in mathtext
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_reliability(axis: Axes, lines: dict[str, list[list[float]]], look: Look) -> None:
    """Accuracy over mean confidence of each bin that holds images; a dot's area is the bin's share of the images."""
    axis.plot([0, 100], [0, 100], color=GREY, linewidth=0.8)
    styles = {METHODS["text_classifier"]: Look(GREY, "--"), METHODS["zero_shot"]: Look(GREY, ":")}
    for name, bins in lines.items():
        drawn, total = styles.get(name, Look(look.color, "-")), sum(images for images, *_ in bins)
        filled = [(100 * confidence / images, 100 * hits / images, images / total)
                  for images, hits, confidence in bins if images]
        confidences, accuracies, shares = zip(*filled)
        axis.plot(confidences, accuracies, label=name, linewidth=1.2, **drawn._asdict())
        axis.scatter(confidences, accuracies, [200 * share for share in shares], color=drawn.color, alpha=0.6,
                     linewidths=0)
    axis.set(title="reliability (test)", xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(-3, 103))
