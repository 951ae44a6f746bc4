"""The pictures of many runs and the page that holds them, from records written by hand."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from test_results import write_run

from utils.report.charts import (
    COLOURS,
    LINES,
    _look,
    comparison_figure,
    curves_figure,
    draw_comparison,
    draw_curves,
    to_svg,
    training_figure,
    training_panels,
)
from utils.report.html import SHOWN_CLASSES, confusion_html, html_report, repeat_command
from utils.report.tables import find_runs


def rows(*accuracies: float) -> list[dict]:
    """A row per epoch as a staged run writes it, without the losses of epoch 0."""
    first = {"epoch": 0, "test": {"top1": accuracies[0], "stage_top1": [0.2, accuracies[0]]}}
    return [first, *({"epoch": epoch, "loss": 2.0 / epoch, "cross_entropy": 1.5 / epoch, "consistency": 0.5 / epoch,
                      "lr": {"prompts": 1e-4}, "sigma": [1.0, 1.1], "stage_weights": [0.1, 0.9],
                      "gradient_norms": {"prompts": [None, 0.5]}, "pseudo_label_accuracy": 0.5,
                      "grad_norm": 2.0,
                      "test": {"top1": accuracy, "kl": 0.25 / epoch, "ece": 0.1, "stage_top1": [0.3, accuracy],
                               "stage_cka": [0.4, 1.0]}}
                     for epoch, accuracy in enumerate(accuracies[1:], start=1))]


@pytest.fixture
def groups(tmp_path):
    """Two methods with two seeds, with full rows; a name that HTML must escape."""
    for seed, last in ((1, 0.8), (2, 0.9)):
        write_run(tmp_path, f"demo/a/a&b-seed{seed}", {"zero_shot": 0.6, "last": last}, seed=seed,
                  classnames=["cat", "dog"],
                  splits={"test": {"zero_shot": {"top1": 0.6},
                                   "last": {"top1": last, "confusion_matrix": [[3, 1], [0, 4]]}}})
        write_run(tmp_path, f"demo/b/seed{seed}", {"last": last - 0.1}, seed=seed, trainer="LaFTer")
    groups = find_runs(tmp_path)
    for runs in groups.values():
        for run in runs:
            run["rows"] = rows(0.5, 0.7, run["splits"]["test"]["last"]["top1"])
    return groups


# --- pictures ---------------------------------------------------------------------------------------------------------

def test_the_panels_of_one_method(groups):
    panels = {panel.title: panel.lines for panel in training_panels(next(iter(groups.values())))}
    assert panels["top-1 and pseudo-labels (%)"]["test"][0] == [(0, 50), (1, 70), (2, pytest.approx(70))]
    assert panels["loss and its parts"]["consistency"] == [[(1, 0.5), (2, 0.25)]] * 2
    assert set(panels["test top-1 of each stage alone (%)"]) == {"stage 1", "stage 2"}
    assert panels["gradient norm, prompts"] == {"stage 2": [[(1, 0.5), (2, 0.5)]] * 2}  # stage 1 never trained
    assert panels["gradient norm"]["all"] == [[(1, 2.0), (2, 2.0)]] * 2
    assert panels["KL divergence of the distributions"] == {"test": [[(1, 0.25), (2, 0.125)]] * 2}
    assert panels["macro-F1 and calibration error (test, %)"]["ECE"] == [[(1, 10), (2, 10)]] * 2
    assert "length of the prompts" not in panels and "validation" not in panels["top-1 and pseudo-labels (%)"]
    assert training_figure([{"rows": []}]) is None


def test_a_run_with_fewer_stages_has_fewer_curves():
    runs = [{"rows": [{"epoch": 1, "sigma": [1.0, 2.0]}]}, {"rows": [{"epoch": 1, "sigma": [3.0]}]}]
    (panel,) = training_panels(runs)
    assert panel.lines == {"stage 1": [[(1, 1.0)], [(1, 3.0)]], "stage 2": [[(1, 2.0)]]}


def test_what_repeats_a_run():
    run = {"trainer": "LaFTer", "folder": Path("my runs/seed3"), "seed": 3}
    assert repeat_command(run) == "python LaFTer.py --config-file 'my runs/seed3/config.yaml' --exp-name again-seed3"
    probe = run | {"trainer": "LinearProbe", "targets": "votes", "folder": Path("a")}
    assert repeat_command(probe).startswith("python scripts/linear_probe.py --targets votes --config-file a/config.y")
    for folder, name in (("votes-seed3", "again-seed3"), ("votes-mine", "again-mine")):  # it puts `votes-` there itself
        assert repeat_command(probe | {"folder": Path(folder)}).endswith(f"--exp-name {name}")
    both = [repeat_command(run | {"folder": Path(f"runs/{name}-seed3")}) for name in ("append", "base")]
    assert [command.split()[-1] for command in both] == ["again-append-seed3", "again-base-seed3"]  # no common folder


def test_curves_show_means_and_baselines(groups):
    (axis,) = curves_figure(groups).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert lines["MultiLayerLaFTer (a&b)"] == pytest.approx([50, 70, 85])
    assert lines["zero-shot"] == pytest.approx([60, 60])
    assert len(axis.get_lines()) == 2 * 3 + 1  # two methods: two runs and their mean each; the baseline


def test_the_comparison_has_the_best_on_top_and_intervals(groups):
    left, right = comparison_figure(groups).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["LaFTer", "MultiLayerLaFTer (a&b)"]
    assert right.get_title() == "against LaFTer"
    interval = next(line for line in right.get_lines() if list(line.get_ydata()) == [1, 1])
    assert list(interval.get_xdata()) == pytest.approx([10, 10])  # both seeds differ by 10 points


def test_no_two_lines_look_alike():
    looks = [tuple(_look(number).values()) for number in range(LINES)]
    assert len(set(looks)) == LINES and all(a[0] != b[0] for a, b in zip(looks, looks[1:]))
    assert set(COLOURS) <= {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.mark.filterwarnings("error")
def test_pictures_as_files_whatever_was_run(tmp_path, groups):
    draw_curves(groups, tmp_path / "curves.png")
    draw_comparison(groups, tmp_path / "comparison.png")
    write_run(tmp_path, "x/zero", {"zero_shot": 0.6})
    write_run(tmp_path, "x/unlabelled", {}, dataset="mine")
    draw_curves(find_runs(tmp_path / "x"), tmp_path / "plain.png")
    draw_comparison(find_runs(tmp_path / "x"), tmp_path / "none.png")
    for name in ("curves", "comparison", "plain"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 200
    assert not (tmp_path / "none.png").exists()


def test_an_svg_takes_the_pages_colours_and_is_the_same_each_time(groups):
    first, second = (to_svg(curves_figure(groups), "a < b") for _ in range(2))
    assert first == second
    assert first.startswith("<svg viewBox=") and "<title>a &lt; b</title>" in first
    assert "currentColor" in first and "#010203" not in first
    assert "MultiLayerLaFTer (a&amp;b)" in first  # text stays text


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
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    (picture,) = [address for address in page.addresses if address.startswith("data:")]
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
        assert image.size == (4, 3)
    assert "<h1>my &lt;runs&gt;</h1>" in text and "a&b" not in text
    for words in ("85.0 ± 7.1", "+10.0 [+10.0, +10.0]", "prefers-color-scheme: dark",
                  "config.yaml --exp-name again-seed2"):
        assert words in text


def test_confusions_as_a_shaded_table_or_a_list():
    small = confusion_html([[3, 1], [0, 4]], ["cat", "dog"])
    assert re.findall(r"/ ([\d.]+)\)\">(\d)", small) == [("0.562", "3"), ("0.188", "1"), ("0.000", "0"), ("0.750", "4")]
    size = SHOWN_CLASSES + 1
    counts = [[9 if i == j else 0 for j in range(size)] for i in range(size)]
    counts[2][5], counts[7][1] = 4, 6
    large = confusion_html(counts, [f"class {i}" for i in range(size)])
    assert re.findall(r"<td>([^<]*)</td>", large) == ["class 7", "class 1", "6", "class 2", "class 5", "4"]
