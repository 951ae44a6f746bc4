"""The pictures of many runs and the page that holds them, from records written by hand."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.report_runs import two_methods
from utils.report.html import SHOWN_CLASSES, confusion_html, html_report, pages_html, repeat_command
from utils.report.markup import html_table, lift_constants


@pytest.fixture
def groups(tmp_path):
    return two_methods(tmp_path)


# --- pieces ---------------------------------------------------------------------------------------------------------

def test_what_repeats_a_run():
    """Whatever the machine: RUNS stands for the folder of all runs."""
    run = {"trainer": "LaFTer", "folder": Path("/home/me/my runs/x/seed3"), "place": "my x/seed3", "seed": 3}
    assert repeat_command(run) == ("python LaFTer.py --config-file 'RUNS/my x/seed3/config.yaml' --exp-name "
                                   "again-seed3")
    probe = run | {"trainer": "LinearProbe", "targets": "votes", "folder": Path("a"), "place": "a"}
    assert repeat_command(probe).startswith("python scripts/linear_probe.py --targets votes --config-file RUNS/a/conf")
    for folder, name in (("votes-seed3", "again-seed3"), ("votes-mine", "again-mine")):  # it puts `votes-` there itself
        assert repeat_command(probe | {"folder": Path(folder)}).endswith(f"--exp-name {name}")
    both = [repeat_command(run | {"folder": Path(f"runs/{name}-seed3")}) for name in ("append", "base")]
    assert [command.split()[-1] for command in both] == ["again-append-seed3", "again-base-seed3"]  # no common folder


def test_what_all_rows_share_is_told_above_the_table():
    table = [["method", "data", "seeds", "top-1", "empty"], ["a", "demo", "3", "70.0 ± 1.0", ""],
             ["b", "demo", "5", "71.0", ""]]
    assert lift_constants(table) == ({"data": "demo"}, [["method", "seeds", "top-1"], ["a", "3", "70.0 ± 1.0"],
                                                        ["b", "5", "71.0"]])
    assert lift_constants(table[:2], ["data"])[0] == {"data": "demo"}  # the score of a single row is no constant
    text = html_table(table, "Note <1>.", {"a": "<i></i>"})
    assert "<p>Note &lt;1&gt;.</p><p>For all rows: data: demo.</p>" in text
    assert '<th scope="row"><i></i>a</th><td>3</td><td>70.0 <small>± 1.0</small></td>' in text


def test_links_to_the_runs_own_pages(tmp_path):
    run = {"folder": tmp_path / "runs" / "a b" / "seed1", "place": "a b/seed1"}
    run["folder"].mkdir(parents=True)
    (told,) = pages_html([run], tmp_path / "runs")[0].split("<p>")[1:]
    assert told.startswith("<code>python LaFTer.py --eval-only --model-dir &#x27;RUNS/a b/seed1&#x27;</code>")
    (run["folder"] / "eval_x.html").write_text("x", encoding="utf-8")
    for folder, address in ((tmp_path / "runs", "a%20b/seed1"), (tmp_path / "else", "../runs/a%20b/seed1")):
        assert f'<a href="{address}/eval_x.html">seed1/eval_x.html</a>' in pages_html([run], folder)[0]


# --- the page ---------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """What a browser would load, and whether every tag is closed."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "stop"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(groups):
    run = next(iter(groups.values()))[0]
    Image.new("RGB", (4, 3), "red").save(run["folder"] / "predictions.png")
    text = html_report(groups, "my <runs>")
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert text.count("<script") == 1 and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert str(run["folder"].parent) not in text and run["folder"].parent.as_posix() not in text
    (picture,) = [address for address in page.addresses if address.startswith("data:")]
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
        assert image.size == (4, 3)
    assert "<h1>my &lt;runs&gt;</h1>" in text and "a&b" not in text
    for words in ("85.0 <small>± 7.1", "+10.0 <small>[+10.0, +10.0]", "prefers-color-scheme: dark",
                  "config.yaml --exp-name again-seed2", "4 runs of 2 methods, 0:00:24 of training",
                  '<tr><th scope="row">cat</th><td>20.0 <small>± 0.0</small></td>'):
        assert words in text


def test_confusions_as_a_shaded_table_or_a_list():
    small = confusion_html([[3, 1], [0, 4]], ["cat", "dog"])
    assert re.findall(r"/ ([\d.]+)\)\">(\d)", small) == [("0.562", "3"), ("0.188", "1"), ("0.000", "0"), ("0.750", "4")]
    size = SHOWN_CLASSES + 1
    counts = [[9 if i == j else 0 for j in range(size)] for i in range(size)]
    counts[2][5], counts[7][1] = 4, 6
    large = confusion_html(counts, [f"class {i}" for i in range(size)])
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", large)
    assert cells[3:] == ["class 7", "class 1", "6", "class 2", "class 5", "4"]
