"""The report of many runs: Markdown tables, and one HTML file with all pictures inside, which loads nothing."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .charts import comparison_figure, curves_figure, to_svg, training_figure
from .tables import (
    Groups,
    Key,
    Table,
    accuracy_table,
    difference_table,
    distribution_note,
    distribution_table,
    find_confusion,
    further_table,
    markdown,
    panels,
    published_note,
)

SHOWN_CLASSES = 30  # a larger confusion matrix is told by its most frequent confusions
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --stripe: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --text: #e6e8ea; --soft: #9aa4ae; --line: #353b42; --stripe: #1c2126; }
}
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
       max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
p, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; }
tbody tr:nth-child(even) { background: var(--stripe); }
table.matrix td { text-align: center; padding: .25rem .4rem; border: 0; }
table.matrix tbody tr { background: none; }
table.matrix thead th { writing-mode: vertical-rl; padding: .5rem .2rem; }
figure { margin: 1rem 0; } svg, img { height: auto; width: 100%; }
img { background: #fff; max-width: 900px; }
details { border-top: 1px solid var(--line); padding: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""
NOTES = {
    "accuracy": "Top-1 in per cent on the test split, mean ± standard deviation over seeds. The test split is scored "
                "in every epoch and never selects: the last epoch, and the one that was best on the validation split. "
                "Settings are the tuned defaults where no other are named; `published` are the original program's.",
    "difference": "Points on the test split, paired by seed: mean of the differences and a 95 % t-interval. One that "
                  "holds 0 shows no difference. Where many methods are compared, some intervals miss 0 by chance.",
    "further": "The tuned models on the test split, last epoch, in per cent. ECE: expected calibration error, lower is "
               "better. Without labels there is agreement with the text classifier and the mean confidence.",
    "distribution": "Emotion distributions on the test split, mean ± standard deviation over seeds; ↓: lower is "
                    "better.",
    "confusion": "True classes in rows, predicted ones in columns; test images of all seeds together, last epoch. The "
                 "shade is the share of the row.",
}


def markdown_report(groups: Groups, baseline: str = "") -> str:
    """All tables in Markdown, each with what its figures are."""
    parts = []
    for note, table in _tables(groups, baseline):
        parts += [note, markdown(table)]
    return "\n\n".join(parts) + "\n"


def html_report(groups: Groups, title: str, baseline: str = "") -> str:
    """The whole report as one HTML page that loads nothing."""
    body = [f"<h1>{escape(title)}</h1>"]
    for note, table in _tables(groups, baseline):
        body += [f"<p>{escape(note)}</p>", html_table(table)]
    for panel, members in panels(groups).items():
        body.append(f"<h2>{escape(', '.join(panel))}</h2>")
        for figure, what in ((comparison_figure(members, baseline), "methods, best first"),
                             (curves_figure(members), "test accuracy by epoch")):
            if figure:
                body.append(f"<figure>{to_svg(figure, f'{title}: {what}')}</figure>")
        body += [method_section(key, runs) for key, runs in members.items()]
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n")


def _tables(groups: Groups, baseline: str) -> list[tuple[str, Table]]:
    found = [(f"{NOTES['accuracy']} {published_note(groups)}".strip(), accuracy_table(groups)),
             (NOTES["difference"], difference_table(groups, baseline)), (NOTES["further"], further_table(groups)),
             (f"{NOTES['distribution']} {distribution_note(groups)}".strip(), distribution_table(groups))]
    return [(note, table) for note, table in found if len(table) > 1]


def html_table(table: Table) -> str:
    head, *rows = [[escape(cell) for cell in row] for row in table]
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return ('<div class="wide"><table><thead><tr>' + "".join(f"<th>{cell}</th>" for cell in head)
            + "</tr></thead><tbody>" + "".join(lines) + "</tbody></table></div>")


def method_section(key: Key, runs: Sequence[dict]) -> str:
    """What one method's runs tell: curves, confusions, pictures, and how to repeat them."""
    parts = [f"<details><summary>{escape(key.method)}, {len(runs)} seed{'s' * (len(runs) > 1)}</summary>"]
    figure = training_figure(runs)
    if figure:
        parts += [f"<figure>{to_svg(figure, f'{key.method}: training')}<figcaption>Lines: mean over the seeds; bands: "
                  "what they span. Epoch 0 is before the first step.</figcaption></figure>"]
    counts = find_confusion(runs)
    if counts:
        parts += ["<h3>Confusions</h3>", confusion_html(counts, runs[0]["classnames"])]
    picture = next((run["folder"] / "predictions.png" for run in runs
                    if (run["folder"] / "predictions.png").is_file()), None)
    if picture:
        parts.append(f"<h3>Test images</h3><figure>{embedded(picture, f'{key.method}: predictions')}</figure>")
    commands = "<br>".join(f"<code>{escape(repeat_command(run))}</code>" for run in runs)
    return "\n".join([*parts, f"<h3>Repeat</h3><p>{commands}</p></details>"])


def repeat_command(run: dict) -> str:
    """What repeats a finished run, into a folder of its own."""
    program, name = "LaFTer.py", run["folder"].name
    if run["trainer"] == "LinearProbe":  # it puts its targets before the name
        program, name = f"scripts/linear_probe.py --targets {run['targets']}", name.removeprefix(f"{run['targets']}-")
    config, name = (shlex.quote(text) for text in ((run["folder"] / "config.yaml").as_posix(), f"again-{name}"))
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


def embedded(path: Path, text: str) -> str:
    """A PNG file as an image inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
