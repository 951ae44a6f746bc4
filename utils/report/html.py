"""The report of many runs: Markdown tables, and one HTML file with all pictures inside, which loads nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from .charts import Looks, curves_figure, differences_figure, scores_figure
from .facts import class_table, duration, runs_table, settings_table, training_seconds
from .figures import Look, choose_looks, to_svg
from .groups import METHODS, Groups, Key, choose_baseline, find_confusion, panels
from .markup import embedded, html_table
from .page import page
from .tables import (
    CONDITIONS,
    Table,
    accuracy_table,
    difference_table,
    distribution_note,
    distribution_table,
    further_table,
    markdown,
    published_note,
)
from .training_charts import training_figures

HERE = Path(__file__).parent
SHOWN_CLASSES = 30  # a larger confusion matrix is told by its most frequent confusions
NOTES = {
    "accuracy": "Top-1 in per cent on the test split (↑: higher is better), mean ± standard deviation over seeds. The "
                "test split is scored in every epoch and never selects: the last epoch, and the one that was best on "
                "the validation split. Settings are the tuned defaults where no other are named; those called "
                "published are the original program's.",
    "difference": "Points on the test split, paired by seed: mean of the differences and a 95 % t-interval. One that "
                  "holds 0 shows no difference. Where many methods are compared, some intervals miss 0 by chance.",
    "further": "The models on the test split, tuned ones after the last epoch, in per cent. ECE: expected calibration "
               "error. Without labels there is agreement with the text classifier and the mean confidence.",
    "distribution": "Emotion distributions on the test split, tuned models after the last epoch, mean ± standard "
                    "deviation over seeds; ↓: lower is better.",
    "classes": "Accuracy of each class on the test split in per cent, tuned models after the last epoch.",
    "runs": "Training is the time of all epochs, without evaluation and what comes before them; the whole run that "
            "of all its starts.",
    "settings": "What each method is set to otherwise than the one it is compared with (whose value is in brackets); "
                "settings that change no number are left out.",
    "training": "Lines: mean over the seeds; bands: what they span. Epoch 0 is before the first step. Reliability: "
                "accuracy of the images by the confidence of their predictions, all seeds together; on the diagonal "
                "they are equal, and a dot's area is the share of the images.",
    "repeat": "In the project's folder. RUNS stands for the folder that these runs are in; <code>--root</code> tells "
              "where the images are, if not where they were.",
    "confusion": "True classes in rows, predicted ones in columns; test images of all seeds together, last epoch. The "
                 "shade is the share of the row.",
}


def markdown_report(groups: Groups, baseline: str = "") -> str:
    """All tables in Markdown, each with what its figures are."""
    parts = []
    for _, note, table in _tables(groups, baseline):
        parts += [note, markdown(table)]
    return "\n\n".join(parts) + "\n"


def html_report(groups: Groups, title: str, baseline: str = "", folder: Path | None = None) -> str:
    """The whole report as one HTML page that loads nothing; `folder` is where it will lie, which links to the runs'
    own pages start from (none are made if it is not given)."""
    looks = choose_looks(groups)
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(summary(groups))}</p>"]
    for heading, note, table in _tables(groups, baseline):
        body += [f"<h2>{heading}</h2>", method_table(table, note, looks)]
    found = panels(groups)
    settings = settings_table(groups, {panel: choose_baseline(members, baseline) for panel, members in found.items()})
    for heading, note, table in (("Settings that differ", NOTES["settings"], settings),
                                 ("The runs", NOTES["runs"], runs_table(groups))):
        if len(table) > 1:
            body.append(f"<details><summary>{heading}</summary>{method_table(table, note, looks)}</details>")
    for panel, members in found.items():
        body += panel_section(panel, members, looks, baseline, folder)
    style, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return page(title, body, style, script)


def summary(groups: Groups) -> str:
    """How many runs there are, when they were made and how long they trained."""
    runs = [run for members in groups.values() for run in members]
    days = sorted({str(date)[:10] for run in runs if (date := run.get("environment", {}).get("date"))})
    time = duration(training_seconds(runs))
    return ", ".join([f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(groups)} method{'s' * (len(groups) > 1)}",
                      *(["made " + " to ".join(dict.fromkeys((days[0], days[-1])))] if days else []),
                      *([f"{time} of training (h:mm:ss) in all"] if time else [])])


def _tables(groups: Groups, baseline: str) -> list[tuple[str, str, Table]]:
    """(heading, note, table) of each table that has rows."""
    found = [("Accuracy", f"{NOTES['accuracy']} {published_note(groups)}".strip(), accuracy_table(groups)),
             ("Differences", NOTES["difference"], difference_table(groups, baseline)),
             ("Classes and calibration", NOTES["further"], further_table(groups)),
             ("Distributions", f"{NOTES['distribution']} {distribution_note(groups)}".strip(),
              distribution_table(groups))]
    return [(heading, note, table) for heading, note, table in found if len(table) > 1]


def method_table(table: Table, note: str, looks: Looks) -> str:
    """A table as HTML with the method first, marked by its look."""
    place = table[0].index("trainer")
    rows = [[row[place], *row[:place], *row[place + 1:]] for row in table]
    rows[0][0] = "method"
    marks = {name + added: look.mark for name, look in looks.items() for added in ("", f", {METHODS['untrained']}")}
    return html_table(rows, note, marks, CONDITIONS)


def panel_section(panel: tuple[str, ...], members: Groups, looks: Looks, baseline: str,
                  folder: Path | None) -> Iterable[str]:
    """What is compared within a panel: charts, the accuracy of each class, and each of its methods."""
    yield f"<h2>{escape(', '.join(panel))}</h2>"
    figures = {"methods, best first": scores_figure(members, looks),
               "differences": differences_figure(members, looks, baseline),
               "test accuracy by epoch": curves_figure(members, looks),
               "test accuracy by seconds of training": curves_figure(members, looks, "seconds")}
    yield figure_grid({name: figure for name, figure in figures.items() if figure}, ", ".join(panel), "panels large")
    classes = class_table(members)
    if len(classes) > 1:
        yield f"<details><summary>Accuracy of each class</summary>{html_table(classes, NOTES['classes'])}</details>"
    for key, runs in members.items():
        yield method_section(key, runs, looks[key.method], folder)


def figure_grid(figures: dict[str, Figure], title: str, kind: str = "panels") -> str:
    """Figures side by side, as many as the page is wide."""
    return f'<div class="{kind}">' + "".join(
        f"<figure>{to_svg(figure, f'{title}: {name}')}</figure>" for name, figure in figures.items()) + "</div>"


def method_section(key: Key, runs: Sequence[dict], look: Look, folder: Path | None) -> str:
    """What one method's runs tell: curves, confusions, pictures, and how to repeat them."""
    parts = [f"<details><summary>{look.mark}{escape(key.method)}, {len(runs)} seed{'s' * (len(runs) > 1)}</summary>"]
    figures = training_figures(runs, look)
    if figures:
        parts += [f"<p>{NOTES['training']}</p>", figure_grid(figures, key.method)]
    if counts := find_confusion(runs):
        parts += ["<h3>Confusions</h3>", confusion_html(counts, runs[0]["classnames"])]
    parts += pages_html(runs, folder) if folder else []
    picture = next((run["folder"] / "predictions.png" for run in runs
                    if (run["folder"] / "predictions.png").is_file()), None)
    if picture:
        parts.append("<h3>Some test images</h3><figure>"
                     + embedded(picture.read_bytes(), f"{key.method}: predictions") + "</figure>")
    commands = "<br>".join(f"<code>{escape(repeat_command(run))}</code>" for run in runs)
    return "\n".join([*parts, f"<h3>Repeat</h3><p>{NOTES['repeat']}</p><p>{commands}</p></details>"])


def pages_html(runs: Sequence[dict], folder: Path) -> list[str]:
    """Links to the runs' own pages of test images and mistakes, or the command that makes one."""
    links = [f'<a href="{escape(quote(path))}">{escape(name)}</a>' for run in runs
             for name, path in linked_pages(run["folder"], folder)]
    told = ", ".join(links) if links else (
        f"<code>{escape(f'python LaFTer.py --eval-only --model-dir {run_place(runs[0])}')}</code> writes a page of all "
        "test images and the surest mistakes into the run's folder.")
    return [f"<h3>Mistakes</h3><p>{told}</p>"]


def linked_pages(run: Path, folder: Path) -> list[tuple[str, str]]:
    """(name, relative path from `folder`) of a run's pages; none where they are on another drive."""
    if run.resolve().drive != folder.resolve().drive:
        return []
    return [(f"{run.name}/{path.name}", Path(os.path.relpath(path, folder)).as_posix())
            for path in sorted(run.glob("*.html"))]


def run_place(run: dict) -> str:
    """A run's folder as it is told in a command, whatever the machine."""
    return shlex.quote(f"RUNS/{run['place']}")


def repeat_command(run: dict) -> str:
    """What repeats a finished run, into a folder of its own."""
    program, name = "LaFTer.py", run["folder"].name
    if run["trainer"] == "LinearProbe":  # it puts its targets before the name
        program, name = f"scripts/linear_probe.py --targets {run['targets']}", name.removeprefix(f"{run['targets']}-")
    config, name = shlex.quote(f"RUNS/{run['place']}/config.yaml"), shlex.quote(f"again-{name}")
    return f"python {program} --config-file {config} --exp-name {name}"


def confusion_html(counts: list[list[int]], classnames: Sequence[str]) -> str:
    """A confusion matrix as a shaded table; with more than SHOWN_CLASSES classes, its most frequent confusions."""
    if len(counts) > SHOWN_CLASSES:
        pairs = sorted(((count, classnames[i], classnames[j]) for i, row in enumerate(counts)
                        for j, count in enumerate(row) if i != j and count), reverse=True)[:SHOWN_CLASSES]
        return html_table([["true", "predicted", "images"], *([true, said, str(count)] for count, true, said in pairs)])
    head = "<th></th>" + "".join(f"<th>{escape(name)}</th>" for name in classnames)
    rows = []
    for name, row in zip(classnames, counts):
        shares = [count / max(1, sum(row)) for count in row]
        cells = "".join(f'<td style="background: rgb(0 114 178 / {0.75 * share:.3f})">{count}</td>'
                        for count, share in zip(row, shares))
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (f"<p>{NOTES['confusion']}</p>" + '<div class="wide"><table class="matrix"><thead><tr>' + head
            + "</tr></thead><tbody>" + "".join(rows) + "</tbody></table></div>")
