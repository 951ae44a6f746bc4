"""What all charts share: one look, a colour that each method keeps, legends below, and figures as SVG that takes the
text colour of the page around it.

Colours are those of Okabe and Ito, which colour-blind eyes tell apart; lines differ in style too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from .groups import Groups

INK = "#010203"  # text and axes; in an SVG it becomes the page's text colour
GREY = "#808080"  # what belongs to no method
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = {"-": "", "--": "7 3", "-.": "7 3 2 3", ":": "2 3"}  # matplotlib's name, SVG's dashes
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "runs", "font.size": 9,
            "axes.titlesize": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
            "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
            "axes.spines.right": False, "axes.grid": True, "grid.color": GREY, "grid.alpha": 0.3,
            "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8, "text.parse_math": False,
            "axes.formatter.useoffset": False}
LINES = len(COLOURS) * len(STYLES)  # more lines are not told apart, and not drawn into one panel


class Look(NamedTuple):
    """How a line is drawn, in matplotlib's words."""

    color: str
    linestyle: str

    @property
    def mark(self) -> str:
        """A piece of the line as SVG, to stand before a name in a page."""
        return (f'<svg class="mark" viewBox="0 0 24 8" aria-hidden="true"><path d="M0 4h24" stroke="{self.color}" '
                f'stroke-width="4" stroke-dasharray="{STYLES[self.linestyle]}"/></svg>')


def choose_looks(groups: Groups) -> dict[str, Look]:
    """The look of each method, by its name: the same in every panel and chart. Neighbours differ in colour and style,
    and the first LINES are all different."""
    return {name: nth_look(number) for number, name in enumerate(dict.fromkeys(key.method for key in groups))}


def nth_look(number: int) -> Look:
    turn, colour = divmod(number, len(COLOURS))
    return Look(COLOURS[colour], list(STYLES)[(number + turn) % len(STYLES)])


def tones(colour: str, count: int) -> list[Look]:
    """Looks of `count` lines of one method: from its colour towards grey, with all styles in turn."""
    steps = [0.8 * number / max(1, count - 1) for number in range(count)]
    mixed = [[(1 - step) * ours + step * grey for ours, grey in zip(to_rgb(colour), to_rgb(GREY))] for step in steps]
    return [Look(to_hex(mix), list(STYLES)[number % len(STYLES)]) for number, mix in enumerate(mixed)]


def draw(size: tuple[float, float], paint: Callable[[Figure], None], layout: str = "constrained") -> Figure:
    """A figure of `size` inches that `paint` has drawn into; with the layout `none` that sets the margins too, which
    takes a third of the time."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout=layout)
        paint(figure)
    return figure


def legend_below(figure: Figure, columns: int) -> None:
    """One legend below all axes of a figure, where it covers no data; a name that several axes have stands once. It has
    as many `columns` at most as its names leave room for."""
    entries = {name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels())}
    for number in range(min(columns, len(entries)), 0, -1):
        legend = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=number)
        if number == 1 or legend.get_tightbbox().width <= figure.bbox.width:
            return
        legend.remove()


def save_png(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(path, dpi=120)


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
