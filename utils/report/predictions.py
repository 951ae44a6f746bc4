"""The page of a model's predictions: thumbnails with their classes as bars, to be sorted and filtered in a browser."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..data.items import UNKNOWN
from ..files import write_whole
from .page import page
from .thumbnails import place_thumbnails

HERE = Path(__file__).parent
SHOWN = 10_000  # images that a page has at most: a browser stays quick
MISTAKES = 12  # in the gallery
ALL_BARS, TOP_BARS = 10, 5  # up to so many classes all have a bar; of more, the most probable


@dataclass(frozen=True)
class Shown:
    """An image of the page: its probabilities by class, or `error`, why there are none; its label and its annotated
    distribution, where they are known. Without a thumbnail its name stands alone."""

    file: Path
    probabilities: Sequence[float] = ()
    error: str = ""
    label: int = UNKNOWN
    distribution: Sequence[float] | None = None
    thumbnail: bytes = b""

    @cached_property
    def predicted(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        return self.probabilities[self.predicted]

    @property
    def wrong(self) -> bool:
        return self.label not in (UNKNOWN, self.predicted)


def write_page(path: Path, title: str, notes: Sequence[str], images: Sequence[Shown],
               classnames: Sequence[str]) -> None:
    """Write the page of `images`, in their order; `notes` are sentences below the title.

    Images that could not be read stand above the others, with their reasons; where labels are known the surest mistakes
    do. It loads nothing but the thumbnails beside it, if they are too many for the page itself, and is all there
    without its script. Raises TrainingError where the disk does not take it.
    """
    read = [image for image in images if not image.error]
    unread = [image for image in images if image.error]
    sources = place_thumbnails([image.thumbnail for image in read], path)
    base = common_folder([image.file for image in images])
    cards = [card(image, source, shown_name(image.file, base), path.parent, classnames)
             for image, source in zip(read, sources)]

    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="lead">{escape(note)}</p>' for note in notes)]
    if unread:
        body += [f"<details><summary>{len(unread):,} could not be read</summary><ul>",
                 *(f"<li>{escape(image.error)}</li>" for image in unread), "</ul></details>"]
    labelled = any(image.label != UNKNOWN for image in read)
    if labelled:
        mistakes = [cards[index] for index in surest_mistakes(read)] or ["<p>None: every prediction is right.</p>"]
        body += ["<h2>The surest mistakes</h2>", '<div class="grid strip">', *mistakes, "</div>", "<h2>All images</h2>"]
    body += [key_of_colours(read), controls(read, classnames, labelled), '<div class="grid" id="images">', *cards,
             "</div>", '<div id="end"></div>']
    style, script = ((HERE / f"predictions.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    write_whole(path, page(title, body, style, script).encode(errors="replace"))  # a name may hold what is no character


def surest_mistakes(images: Sequence[Shown]) -> list[int]:
    """Indices of the wrong predictions with the highest confidence, the surest first."""
    wrong = (index for index, image in enumerate(images) if image.wrong)
    return sorted(wrong, key=lambda index: -images[index].confidence)[:MISTAKES]


def common_folder(files: Sequence[Path]) -> str:
    """The folder that all files lie in, or "" where there is none, as on several Windows drives."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    drives = {os.path.splitdrive(folder)[0] for folder in folders}
    return os.path.commonpath(folders) if len(drives) == 1 else ""


def shown_name(file: Path, base: str) -> str:
    """A file's path below the common folder, with slashes."""
    absolute = os.path.abspath(file)
    return Path(os.path.relpath(absolute, base) if base else absolute).as_posix()


def link(file: Path, folder: Path) -> str:
    """What a page in `folder` links a file by: a relative path, or the whole one on another drive."""
    target, start = os.path.abspath(file), os.path.abspath(folder)
    if os.path.splitdrive(target)[0] != os.path.splitdrive(start)[0]:
        return Path(target).as_uri()
    return quote(os.fsencode(Path(os.path.relpath(target, start)).as_posix()))


def card(image: Shown, source: str, name: str, folder: Path, classnames: Sequence[str]) -> str:
    """One image with its prediction and its bars; `source` is the thumbnail's `src`, `folder` the page's."""
    label = "" if image.label == UNKNOWN else f' data-label="{image.label}"'
    picture = (f'<img loading="lazy" decoding="async" width="160" height="160" alt="{escape(name)}" src="{source}">'
               if source else f'<span class="none">no thumbnail of {escape(name)}</span>')
    verdict = ""
    if image.label != UNKNOWN:
        verdict = (f'<p class="wrong">✗ label: <bdi>{escape(classnames[image.label])}</bdi></p>' if image.wrong
                   else '<p class="right">✓ right</p>')
    return (f'<article data-predicted="{image.predicted}" data-confidence="{image.confidence:.4f}"{label}>'
            f'<a href="{escape(link(image.file, folder))}">{picture}</a>'
            f'<h3 title="{escape(name)}"><bdi>{escape(name)}</bdi></h3>'
            f"<p><b><bdi>{escape(classnames[image.predicted])}</bdi></b> {percent(image.confidence)} %</p>{verdict}"
            f"<ul>{''.join(bar(image, index, classnames[index]) for index in barred_classes(image))}</ul></article>")


def barred_classes(image: Shown) -> list[int]:
    """The classes with a bar: all in their order where they are few, so that images can be compared; else the most
    probable, the first of them first, and the label."""
    classes = range(len(image.probabilities))
    if len(classes) <= ALL_BARS:
        return list(classes)
    top = heapq.nlargest(TOP_BARS, classes, key=image.probabilities.__getitem__)
    return top if image.label in (UNKNOWN, *top) else [*top, image.label]


def bar(image: Shown, index: int, classname: str) -> str:
    share = image.probabilities[index]
    style, kind, number = f"--p:{100 * share:.1f}%", "", percent(share)
    if image.distribution is not None:
        style, kind = f"{style};--a:{100 * image.distribution[index]:.1f}%", ' class="two"'
        number += f" | {percent(image.distribution[index])}"
    return f'<li{kind} style="{style}"><bdi>{escape(classname)}</bdi>{number}</li>'


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def key_of_colours(images: Sequence[Shown]) -> str:
    """What the bars and the numbers beside them are."""
    annotated = any(image.distribution is not None for image in images)
    return ('<p class="lead key"><i style="background: var(--predicted)"></i>predicted'
            + (' | <i style="background: var(--annotated)"></i>annotated' if annotated else "") + ", in per cent</p>")


def controls(images: Sequence[Shown], classnames: Sequence[str], labelled: bool) -> str:
    """The form that sorts and filters; the script shows it."""
    fields = [_select("Predicted class", "predicted", {"": "all", **_counted((image.predicted for image in images),
                                                                             classnames)})]
    orders = {"given": "as given", "sure": "surest first", "unsure": "least sure first", "class": "by class"}
    if labelled:
        fields += [_select("Label", "label", {"": "all", **_counted((image.label for image in images), classnames)}),
                   _select("Verdict", "verdict", {"": "all", "right": "right", "wrong": "wrong"})]
        orders["mistakes"] = "surest mistakes first"
    if len(classnames) <= ALL_BARS:
        orders |= {f"most {index}": f"most {name} first" for index, name in enumerate(classnames)}
    bounds = (f'<label>{text}<input type="number" name="{name}" value="{value}" min="0" max="100" step="any">'
              "</label>" for text, name, value in (("Confidence", "least", 0), ("to, in %", "most", 100)))
    fields += [f'<span class="pair">{"".join(bounds)}</span>',
               '<label>File name has<input type="search" name="file" autocomplete="off"></label>',
               _select("Order", "order", orders), '<button type="reset">Show all</button>',
               '<output id="count" aria-live="polite"></output>']
    return '<form id="controls" hidden>' + "\n".join(fields) + "</form>"


def _counted(labels: Iterable[int], classnames: Sequence[str]) -> dict[str, str]:
    """Options of the classes that occur, each with its number of images."""
    counts = Counter(labels)
    return {str(label): f"{classnames[label]} ({counts[label]:,})" for label in sorted(counts) if label != UNKNOWN}


def _select(text: str, name: str, options: dict[str, str]) -> str:
    return (f'<label>{text}<select name="{name}">'
            + "".join(f'<option value="{value}">{escape(told)}</option>' for value, told in options.items())
            + "</select></label>")
