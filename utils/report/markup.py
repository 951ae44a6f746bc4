"""Pieces of a page in HTML: tables that a click sorts, pictures inside the file."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape


def html_table(table: Sequence[Sequence[str]], caption: str = "", marks: Mapping[str, str] | None = None,
               conditions: Collection[str] = ()) -> str:
    """A table of texts, the head first, as HTML that a click on a column's head sorts.

    Its first column heads the rows. Columns that are the same in all rows are told in the caption instead, of a single
    row only the `conditions` among them; empty ones are left out. `marks` is HTML that stands before a row's head, by
    its text.
    """
    constants, (head, *rows) = lift_constants(table, conditions)
    same = "; ".join(f"{name}: {value}" for name, value in constants.items())
    parts = [f"<p>{escape(caption)}</p>" if caption else "", f"<p>For all rows: {escape(same)}.</p>" if same else ""]
    lines = []
    for name, *cells in rows:
        lines.append(f'<tr><th scope="row">{(marks or {}).get(name, "")}{escape(name)}</th>'
                     + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>")
    return (f'<figure><figcaption>{"".join(parts)}</figcaption><div class="wide"><table class="sortable"><thead><tr>'
            + "".join(f'<th scope="col">{escape(name)}</th>' for name in head) + "</tr></thead><tbody>"
            + "".join(lines) + "</tbody></table></div></figure>")


def lift_constants(table: Sequence[Sequence[str]],
                   conditions: Collection[str] = ()) -> tuple[dict[str, str], list[list[str]]]:
    """({head: value} of the columns that are the same in all rows, the table without these and without empty ones); the
    first column stays, and of a single row all but the `conditions`."""
    head, *rows = table
    columns = [[row[place] for row in rows] for place in range(len(head))]
    constants = {head[place]: column[0] for place, column in enumerate(columns)
                 if place and len(set(column)) == 1 and (len(rows) > 1 or head[place] in conditions)}
    kept = [place for place, column in enumerate(columns) if not place or any(column) and head[place] not in constants]
    return ({name: value for name, value in constants.items() if value},
            [[row[place] for place in kept] for row in table])


def _cell(text: str) -> str:
    """A cell's text; what stands after a number's value, its spread or interval, is small."""
    return re.sub(r"^(\S+) ((?:±|\[).*)$", r"\1 <small>\2</small>", escape(text))


def embedded(data: bytes, text: str, kind: str = "png") -> str:
    """A picture's bytes as an image inside the page; `text` is read to those who do not see it."""
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}">'
