"""The charts of the report, from records written by hand."""

from __future__ import annotations

import re

import matplotlib
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from tests.report_runs import two_methods
from tests.test_results import write_run
from utils.report.charts import curves_figure, differences_figure, draw_comparison, draw_curves, scores_figure
from utils.report.figures import COLOURS, LINES, choose_looks, nth_look, to_svg, tones
from utils.report.fonts import fallback_fonts, fonts_for
from utils.report.groups import find_runs
from utils.report.training_charts import training_figures, training_panels


@pytest.fixture
def groups(tmp_path):
    return two_methods(tmp_path)


# --- one method -------------------------------------------------------------------------------------------------------

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
    assert training_figures([{"rows": [], "seed": 1, "splits": {}}], nth_look(0)) == {}


def test_a_run_with_fewer_stages_has_fewer_curves():
    runs = [{"rows": [{"epoch": 1, "sigma": [1.0, 2.0]}]}, {"rows": [{"epoch": 1, "sigma": [3.0]}]}]
    (panel,) = training_panels(runs)
    assert panel.lines == {"stage 1": [[(1, 1.0)], [(1, 3.0)]], "stage 2": [[(1, 2.0)]]}


def test_reliability_is_of_the_bins_of_all_seeds(groups):
    plain, staged = groups.values()
    (axis,) = training_figures(staged, nth_look(0))["reliability (test)"].axes
    diagonal, line = axis.get_lines()
    assert list(line.get_xdata()) == pytest.approx([90, 98]) and list(line.get_ydata()) == pytest.approx([40, 90])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    small, large = axis.collections[0].get_sizes()
    assert large == pytest.approx(3 * small)  # 30 images against 10
    assert "reliability (test)" not in training_figures(plain, nth_look(0))  # an old record


# --- methods ----------------------------------------------------------------------------------------------------------

def test_curves_show_means_and_baselines(groups):
    (axis,) = curves_figure(groups, choose_looks(groups)).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert lines["MultiLayerLaFTer (a&b)"] == pytest.approx([50, 70, 85])
    assert lines["zero-shot"] == pytest.approx([60, 60])
    assert len(axis.get_lines()) == 2 * 3 + 1  # two methods: two runs and their mean each; the baseline


def test_curves_by_seconds_of_training(groups):
    looks = choose_looks(groups)
    (axis,) = curves_figure(groups, looks, "seconds").axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axis.get_lines()}
    assert lines["MultiLayerLaFTer (a&b)"] == [0, 2, 6]  # 2 s, then 4 s
    for run in (run for runs in groups.values() for run in runs):
        run["rows"] = [{name: value for name, value in row.items() if name != "train_seconds"} for row in run["rows"]]
    assert curves_figure(groups, looks, "seconds") is None and curves_figure(groups, looks)


def test_the_comparison_has_the_best_on_top_and_intervals(groups):
    (left,), (right,) = (figure(groups, choose_looks(groups)).axes for figure in (scores_figure, differences_figure))
    for axis in (left, right):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["LaFTer", "MultiLayerLaFTer (a&b)"]
    assert right.get_title() == "against LaFTer"
    interval = next(line for line in right.get_lines() if list(line.get_ydata()) == [1, 1])
    assert list(interval.get_xdata()) == pytest.approx([10, 10])  # both seeds differ by 10 points


def test_one_seed_has_no_axis_of_intervals(groups, tmp_path):
    single = {key: runs[:1] for key, runs in groups.items()}
    assert differences_figure(single, choose_looks(single)) is None and scores_figure(single, choose_looks(single))
    for name, members in (("one", single), ("two", groups)):
        draw_comparison(members, tmp_path / f"{name}.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("one", "two")]
    assert widths[0] < 0.6 * widths[1]


def test_a_method_keeps_its_colour_in_all_charts(groups):
    looks = choose_looks(groups)
    for key, runs in groups.items():
        colour = looks[key.method].color
        (curves,), (scores,), (points,) = (figure(groups, looks).axes
                                           for figure in (curves_figure, scores_figure, differences_figure))
        drawn = {line.get_label(): line.get_color() for line in curves.get_lines()}
        place = [label.get_text() for label in scores.get_yticklabels()].index(key.method)
        assert drawn[key.method] == colour
        assert {line.get_color() for line in scores.get_lines() if set(line.get_ydata()) == {place}} == {colour}
        if place:
            assert {line.get_color() for line in points.get_lines() if set(line.get_ydata()) == {place}} == {colour}
        first = next(iter(training_figures(runs, looks[key.method]).values())).axes[0].get_lines()[0]
        assert first.get_color() == colour.lower() and colour in looks[key.method].mark


def test_no_two_lines_look_alike():
    looks = [nth_look(number) for number in range(LINES)]
    assert len(set(looks)) == LINES and all(a.color != b.color for a, b in zip(looks, looks[1:]))
    assert set(COLOURS) <= {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert len(set(tones(COLOURS[0], 12))) == 12


# --- files ------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("error")
def test_pictures_as_files_whatever_was_run(tmp_path, groups):
    draw_curves(groups, tmp_path / "curves.png")
    draw_curves(groups, tmp_path / "seconds.png", "seconds")
    draw_comparison(groups, tmp_path / "comparison.png")
    write_run(tmp_path, "x/zero", {"zero_shot": 0.6})
    write_run(tmp_path, "x/unlabelled", {}, dataset="mine")
    draw_curves(find_runs(tmp_path / "x"), tmp_path / "plain.png")
    draw_comparison(find_runs(tmp_path / "x"), tmp_path / "none.png")
    draw_curves(find_runs(tmp_path / "x"), tmp_path / "none.png", "seconds")
    for name in ("curves", "seconds", "comparison", "plain"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 200
    assert not (tmp_path / "none.png").exists()


def test_many_panels_wrap(tmp_path):
    for number in range(7):
        write_run(tmp_path, f"x/seed{number}", {"last": 0.5}, [0.4, 0.5], dataset=f"set{number}")
    draw_curves(find_runs(tmp_path), tmp_path / "curves.png")
    width, height = Image.open(tmp_path / "curves.png").size
    assert width < 2400 and height > 1400  # three in a row


def test_legends_cover_no_data(groups):
    figures = [curves_figure(groups, choose_looks(groups)), *training_figures(next(iter(groups.values())),
                                                                             nth_look(0)).values()]
    assert sum(len(figure.legends) for figure in figures) > 3
    for figure in figures:
        figure.draw_without_rendering()  # lays it out
        assert not any(axis.get_legend() for axis in figure.axes)
        for legend in figure.legends:
            assert legend.get_window_extent().y1 < min(axis.get_tightbbox().y0 for axis in figure.axes) + 1


def test_legends_of_long_names_stay_within_the_figure(tmp_path):
    for number in range(3):
        write_run(tmp_path, f"{number}-{'with a long name ' * 3}-seed1", {"last": 0.5}, [0.4, 0.5])
    groups = find_runs(tmp_path)
    figure = curves_figure(groups, choose_looks(groups))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) >= 3
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.width


def test_an_svg_takes_the_pages_colours_and_is_the_same_each_time(groups):
    first, second = (to_svg(curves_figure(groups, choose_looks(groups)), "a < b") for _ in range(2))
    assert first == second
    assert first.startswith("<svg viewBox=") and "<title>a &lt; b</title>" in first
    assert "currentColor" in first and "#010203" not in first
    assert "MultiLayerLaFTer (a&amp;b)" in first  # text stays text
    assert re.search(r'style="max-width:[\d.]+pt"', first)


# --- fonts ------------------------------------------------------------------------------------------------------------

def test_what_no_font_has_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "DejaVu" in font.name])
    monkeypatch.setattr("utils.report.fonts.findSystemFonts", lambda: [])
    with fonts_for(["快乐 joy", "乐"]):
        pass
    (record,) = caplog.records
    assert "no font here has the characters 乐快; install one" in record.getMessage()
    caplog.clear()
    with fonts_for(["joy é ✓ ▸"]):
        pass
    assert not caplog.records


def test_a_font_that_has_the_characters_is_found(monkeypatch):
    """Also one that was installed after matplotlib made its list; DejaVu Serif has an arrow that Sans lacks."""
    serif = next(font for font in fontManager.ttflist if font.name == "DejaVu Serif" and font.style == "normal")
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])
    for installed, expected in (([], ([], {"\u2900"})), ([serif.fname], (["DejaVu Serif"], set()))):
        monkeypatch.setattr("utils.report.fonts.findSystemFonts", lambda: installed)  # noqa: B023
        assert fallback_fonts("a\u2900 é") == expected
    with fonts_for(["\u2900"]):
        assert matplotlib.rcParams["font.family"] == ["sans-serif", "DejaVu Serif"]
