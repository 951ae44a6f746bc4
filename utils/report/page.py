"""What every page shares: one style for light and dark, tables that a click sorts, pictures inside the file. A page is
read by opening it from disk: it loads nothing, and without script all of it is still there."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --stripe: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --text: #e6e8ea; --soft: #9aa4ae; --line: #353b42; --stripe: #1c2126; }
}
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto;
       max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
p, caption, figcaption { color: var(--soft); }
a { color: inherit; }
code { font-size: .85rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
caption { caption-side: top; padding-bottom: .3rem; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; }
th small, td small { color: var(--soft); font-weight: normal; white-space: nowrap; }
thead th { vertical-align: bottom; }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid; }
thead button::after { content: ""; padding-left: .2em; }
th[aria-sort=ascending] button::after { content: "▴"; }
th[aria-sort=descending] button::after { content: "▾"; }
tbody th { background: var(--page); font-weight: 600; left: 0; position: sticky; }
tbody tr:nth-child(even) > * { background: var(--stripe); }
figure { margin: 0; } svg, img { height: auto; width: 100%; }
details { border-top: 1px solid var(--line); padding: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 640px) {
  body { padding: 0 .6rem; } table { font-size: .78rem; } th, td { padding: .3rem .35rem; }
  tbody th { max-width: 9.5rem; overflow-wrap: anywhere; }
}
"""
# A click on a column's head sorts the table by it, another one the other way round; numbers by their value, what comes
# first in a cell; empty cells stay below.
SORT_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("\\u2212", "-");
    return /^[-+]?\\.?\\d[\\d.]*(?=$|[ %])/.test(text) ? parseFloat(text) : text;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, {numeric: true});
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const body = table.tBodies[0], rows = [...body.rows];
      const numbers = rows.some(row => typeof value(row, column) === "number");
      const orders = ["ascending", "descending"];
      if (numbers && !button.textContent.includes("\\u2193")) orders.reverse();  // the best first
      const order = orders[head.getAttribute("aria-sort") === orders[0] ? 1 : 0];
      for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        return (x === "") - (y === "") || sign * compare(x, y);
      });
      body.append(...rows);
    };
  });
}
"""


def page(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page in HTML; `body` is HTML, the `title` is text. `style` and `script` follow the shared ones, and none
    of what a user named may stand in them."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}{style}</style>\n</head>\n<body>\n" + "\n".join(body)
            + f"\n<script>{SORT_SCRIPT}{script}</script>\n</body>\n</html>\n")


def html_table(table: Sequence[Sequence[str]], caption: str = "", marks: Mapping[str, str] | None = None) -> str:
    """A table of texts, the head first, as HTML that a click on a column's head sorts.

    Its first column heads the rows. Columns that are the same in all of several rows are told in the caption instead,
    and empty ones left out. `marks` is HTML that stands before a row's head, by its text.
    """
    constants, (head, *rows) = lift_constants(table)
    same = "; ".join(f"{name}: {value}" for name, value in constants.items())
    said = " ".join(filter(None, (caption, f"The same for all: {same}." if same else "")))
    lines = []
    for name, *cells in rows:
        lines.append(f'<tr><th scope="row">{(marks or {}).get(name, "")}{escape(name)}</th>'
                     + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>")
    return ('<div class="wide"><table class="sortable">' + (f"<caption>{escape(said)}</caption>" if said else "")
            + "<thead><tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in head) + "</tr></thead><tbody>"
            + "".join(lines) + "</tbody></table></div>")


def lift_constants(table: Sequence[Sequence[str]]) -> tuple[dict[str, str], list[list[str]]]:
    """({head: value} of the columns that are the same in all of several rows, the table without these and without empty
    ones); the first column stays."""
    head, *rows = table
    columns = [[row[place] for row in rows] for place in range(len(head))]
    constants = {head[place]: column[0] for place, column in enumerate(columns)
                 if place and len(rows) > 1 and len(set(column)) == 1}
    kept = [place for place, column in enumerate(columns) if not place or any(column) and head[place] not in constants]
    return ({name: value for name, value in constants.items() if value},
            [[row[place] for place in kept] for row in table])


def _cell(text: str) -> str:
    """A cell's text; what stands after a number's value, its spread or interval, is small."""
    return re.sub(r"^(\S+) ((?:±|\[).*)$", r"\1 <small>\2</small>", escape(text))


def embedded(data: bytes, text: str, kind: str = "png") -> str:
    """A picture's bytes as an image inside the page; `text` is read to those who do not see it."""
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}">'
