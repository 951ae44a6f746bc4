"""The picture of a run: test photos beside their annotated and their predicted distributions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.images import read_image
from ..data.items import UNKNOWN, Item
from ..errors import InputError

BARS = 10  # at most so many classes have a bar
ANNOTATED, PREDICTED = "#0072b2", "#e69f00"  # blue and orange that colour-blind eyes and grey prints keep apart


def draw_predictions(items: Sequence[Item], probabilities: Tensor, classnames: Sequence[str], path: Path,
                     count: int = 12, seed: int = 0) -> None:
    """Write a PNG of `count` photos, each beside its distributions as bars; the annotated label is marked and bold.

    `probabilities` [n, classes] belong to `items` row by row. The choice is seeded and spread over the classes.
    Raises InputError where the counts do not match or there is nothing to draw.
    """
    from matplotlib.figure import Figure  # only here: a picture is not always wanted, and the import takes a second

    from .fonts import fonts_for

    if tuple(probabilities.shape) != (len(items), len(classnames)):
        raise InputError(f"{len(items)} images of {len(classnames)} classes need as many rows and columns of "
                         f"probabilities, not {tuple(probabilities.shape)}")
    chosen = choose_items(items, count, seed)
    if not chosen:
        raise InputError("there is no image to draw")
    predicted = probabilities[chosen].detach().double().cpu().tolist()
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.0 * rows + 0.5), layout="constrained")
    with fonts_for([*classnames, *(items[i].path.parent.name + items[i].path.name for i in chosen)]):
        axes = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=[1.1, 1, 0.06] * columns).reshape(-1, 3)
        limit = max(max(row) for row in [*predicted, *(items[i].distribution or (0,) for i in chosen)])
        for (photo, bars, gap), index, row in zip(axes, chosen, predicted):
            gap.set_axis_off()
            _draw_photo(photo, items[index].path)
            _draw_bars(bars, items[index], row, classnames)
            bars.set_xlim(0, 1.05 * limit)  # one scale for all
        for axis in axes[len(chosen):].flat:
            axis.remove()
        _draw_legend(figure, [items[i] for i in chosen])
        figure.savefig(path, dpi=120)


def choose_items(items: Sequence[Item], count: int, seed: int) -> list[int]:
    """Indices of `count` items, or of all: classes take turns, in a seeded order; sorted by class."""
    members: dict[int, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(items)).tolist():
        members.setdefault(items[index].label, []).append(index)
    turns = sorted((turn, place, index) for place, group in enumerate(members.values())
                   for turn, index in enumerate(group))
    return sorted((index for *_, index in turns[:count]), key=lambda index: (items[index].label, index))


def shown_classes(row: Sequence[float], item: Item) -> list[int]:
    """The classes that get a bar: all where they are few, else the label and what is most probable, in class order."""
    annotated = item.distribution or (0.0,) * len(row)
    weight = [max(pair) + (index == item.label) for index, pair in enumerate(zip(row, annotated))]
    ranked = sorted(range(len(row)), key=lambda index: -weight[index])
    return sorted(ranked[:BARS])


def _draw_photo(axis, path: Path) -> None:
    image = read_image(path)
    image.thumbnail((400, 400))
    axis.imshow(image)
    name = f"{path.parent.name}/{path.name}"
    axis.set_title(name if len(name) <= 36 else "…" + name[-35:], fontsize=7, color="0.4", parse_math=False)
    axis.set_anchor("E")  # close to its bars
    axis.set_axis_off()


def _draw_bars(axis, item: Item, row: Sequence[float], classnames: Sequence[str]) -> None:
    """Per class the annotated bar above the predicted one; without an annotated distribution only the latter."""
    shown = shown_classes(row, item)
    places = np.arange(len(shown))
    height = 0.38 if item.distribution else 0.6
    if item.distribution:
        axis.barh(places - height / 2, [item.distribution[i] for i in shown], height, color=ANNOTATED)
    axis.barh(places + (height / 2 if item.distribution else 0), [row[i] for i in shown], height, color=PREDICTED)
    axis.set_yticks(places, [("▸ " if i == item.label else "") + _shorten(classnames[i]) for i in shown], fontsize=8,
                    parse_math=False)
    for tick, index in zip(axis.get_yticklabels(), shown):
        tick.set_fontweight("bold" if index == item.label else "normal")
    best = max(range(len(row)), key=row.__getitem__)
    verdict = "" if item.label == UNKNOWN else "✓ " if best == item.label else "✗ "
    axis.set_title(f"{verdict}predicted {_shorten(classnames[best])}", fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=7)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _shorten(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _draw_legend(figure, items: Sequence[Item]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=PREDICTED, label="predicted")]
    if any(item.distribution for item in items):
        handles.insert(0, Patch(color=ANNOTATED, label="annotated"))
    if any(item.label != UNKNOWN for item in items):
        handles.append(Line2D([], [], color="black", marker=">", markersize=5, linestyle="", label="label"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
