"""The report in a real browser: its tables sort, it loads nothing and is read on a phone."""

from __future__ import annotations

import pytest

from tests.browser import BROWSER, start_browser
from tests.report_runs import two_methods
from utils.report.html import html_report


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_sorts_the_tables_and_nothing_is_wider_than_a_phone(tmp_path):
    path, groups = tmp_path / "report.html", two_methods(tmp_path / "runs")
    for run in (run for runs in groups.values() for run in runs):
        run["rows"] = []  # fewer charts to draw
    path.write_text(html_report(groups, "runs", folder=tmp_path), encoding="utf-8")
    cells = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent)"
    click = "document.querySelectorAll('table')[0].querySelectorAll('thead button')[{}].click()"
    order = "document.querySelector('table th[aria-sort]').ariaSort"
    with start_browser(tmp_path / "profile") as tab:
        tab.open(path, width=420)
        assert tab.run("document.documentElement.scrollWidth") <= 420
        assert tab.run(cells) == ["LaFTer", "MultiLayerLaFTer (a&b)"]
        tab.run(click.format(2))  # tuned, last epoch: the best first
        assert tab.run(cells) == ["MultiLayerLaFTer (a&b)", "LaFTer"] and tab.run(order) == "descending"
        tab.run(click.format(2))
        assert tab.run(cells) == ["LaFTer", "MultiLayerLaFTer (a&b)"] and tab.run(order) == "ascending"
        tab.run(click.format(1))  # zero-shot, which LaFTer has none of: empty cells stay below
        tab.run(click.format(1))
        assert tab.run(cells) == ["MultiLayerLaFTer (a&b)", "LaFTer"] and tab.run(order) == "ascending"
        assert tab.complaints == [] and tab.requests == [path.resolve().as_uri()]
        tab.open(path, width=1300, script=False)
        assert tab.call("Page.captureScreenshot")["data"] and not tab.complaints
