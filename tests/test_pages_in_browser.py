"""The page of predictions in a real browser: it sorts and filters, quickly, and loads nothing but its thumbnails."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import BROWSER, Browser, start_browser
from utils.report import thumbnails
from utils.report.predictions import Shown, write_page
from utils.report.thumbnails import make_thumbnail

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
CLASSES = ["joy", "fear", "<b onclick=alert(1)>悲伤</b>"]
COUNT, FEW = 3_000, 60
NASTY = "<img src=x onerror=document.title='run'>\"'.jpg"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def draw(count: int) -> list[Shown]:
    """Images of which every third is of each class, and one that could not be read."""
    rng, thumbnail = np.random.default_rng(0), make_thumbnail(Image.new("RGB", (160, 120), "teal"))
    images = [Shown(Path(f"photos/{number:04}.jpg"), rng.dirichlet(np.ones(3)).round(3).tolist(), label=number % 3,
                    distribution=rng.dirichlet(np.ones(3)).tolist(), thumbnail=thumbnail) for number in range(count)]
    images[1] = replace(images[1], file=Path("photos") / NASTY)
    return [*images, Shown(Path("photos/bad.jpg"), error="cannot read photos/bad.jpg (it is <b>cut</b>)")]


@pytest.fixture(scope="module")
def images() -> list[Shown]:
    return draw(COUNT)


@pytest.fixture(scope="module")
def page(tmp_path_factory, images) -> Path:
    path = tmp_path_factory.mktemp("page") / "predictions.html"
    inside, thumbnails.INSIDE = thumbnails.INSIDE, 0
    write_page(path, "Predictions", ["A model"], images, CLASSES)
    thumbnails.INSIDE = inside
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / "predictions.html"
    write_page(path, "Predictions", [], draw(FEW), CLASSES)
    return path


def ask(browser: Browser, **fields: object) -> int:
    """Fill in fields of the form, as a hand does; returns how many images the page says are left."""
    for name, value in fields.items():
        browser.run(f"(() => {{ form.elements.{name}.value = {str(value)!r};"
                    f"form.elements.{name}.dispatchEvent(new Event('input', {{bubbles: true}})); }})()")
    return int(browser.run("count.textContent").split()[0].replace(",", ""))


def shown(browser: Browser) -> list[str]:
    """The names of the cards in the page, in their order."""
    return browser.run("Array.from(document.querySelectorAll('#images h3'), name => name.textContent)")


def names(images: list[Shown]) -> list[str]:
    return [image.file.name for image in images]


def test_it_filters_and_sorts_by_class_confidence_and_verdict(browser, page, images):
    browser.open(page)
    known = images[:COUNT]
    assert ask(browser) == COUNT and shown(browser)[:5] == names(known[:5])
    fear = [image for image in known if image.predicted == 1]
    assert ask(browser, predicted=1) == len(fear) and shown(browser)[:50] == names(fear[:50])
    right = [image for image in fear if not image.wrong]
    assert ask(browser, verdict="right") == len(right)
    sure = sorted((image for image in right if image.confidence >= 0.595), key=lambda image: -image.confidence)
    assert ask(browser, least=60, order="sure") == len(sure) and shown(browser)[:50] == names(sure[:50])
    browser.run("form.reset()")
    browser.run("new Promise(resolve => setTimeout(resolve))")
    wrong = sorted((image for image in known if image.wrong), key=lambda image: -image.confidence)
    assert ask(browser, order="mistakes") == COUNT and shown(browser)[:50] == names(wrong[:50])
    assert names(wrong[:12]) == browser.run("Array.from(document.querySelectorAll('.strip h3'), n => n.textContent)")
    most = sorted(known, key=lambda image: -image.probabilities[2])
    assert ask(browser, order="most 2") == COUNT and shown(browser)[:50] == names(most[:50])
    assert ask(browser, label=2, verdict="wrong") == sum(image.wrong and image.label == 2 for image in known)
    assert ask(browser, file=" 299") == sum(image.wrong and image.label == 2 and "299" in image.file.name
                                            for image in known) > 0
    assert ask(browser, file="nowhere") == 0 and shown(browser) == []
    assert browser.complaints == []


def test_thousands_stay_quick(browser, page):
    """Few cards are in the page, few thumbnails are loaded, and no card listens to anything."""
    browser.open(page)
    assert browser.run("document.querySelectorAll('#images article').length") < 500
    assert 1 < len(browser.requests) < 200
    assert all(address.startswith(page.parent.as_uri()) for address in browser.requests)
    card = browser.call("Runtime.evaluate", expression="list.firstElementChild")["result"]["objectId"]
    assert browser.call("DOMDebugger.getEventListeners", objectId=card, depth=-1)["listeners"] == []
    seconds = browser.run("(() => { const start = performance.now(); form.elements.order.value = 'sure'; show();"
                          "document.body.offsetHeight; return (performance.now() - start) / 1000; })()")
    assert seconds < 2  # 0.05 measured on an idle machine
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.run("new Promise(resolve => setTimeout(resolve, 300))")
    assert browser.run("document.querySelectorAll('#images article').length") > 240  # more come as one scrolls
    assert browser.complaints == []


def test_nothing_in_a_name_is_run(browser, small):
    browser.open(small)
    assert browser.run("document.title") == "Predictions" and NASTY in shown(browser)
    assert browser.run("document.querySelector('b[onclick], img[onerror]')") is None
    assert browser.run("document.querySelector('details li').textContent").strip().endswith("(it is <b>cut</b>)")
    assert browser.complaints == []
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\" "
                "onerror=\"document.title = 1\">')")  # were the escaping to fail, the page's policy would stand
    browser.run("document.body.append(Object.assign(document.createElement('script'), "
                "{textContent: 'document.title = 2'}))")
    browser.run("new Promise(resolve => setTimeout(resolve, 100))")
    assert browser.run("document.title") == "Predictions"
    assert len(browser.complaints) == 3 and all("Content Security Policy" in str(told) for told in browser.complaints)


def test_without_script_everything_is_there(browser, small):
    browser.open(small, script=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]

    def found(selector: str) -> int:
        return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert found("#images article") == FEW and found("details li") == 1 and browser.complaints == []
    assert found("form[hidden]") == 1  # what would do nothing is not shown


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_phones_and_desks_light_and_dark(browser, small, width, dark):
    browser.open(small, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    columns = browser.run("getComputedStyle(list).gridTemplateColumns.split(' ').length")
    assert columns == (2 if width == 400 else 6)
    shade = browser.run("getComputedStyle(document.body).backgroundColor")
    assert shade == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_the_keyboard_suffices(browser, small):
    browser.open(small)
    browser.run("Array.from(document.querySelectorAll('.strip a')).at(-1).focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.name") == "predicted"
    browser.press("j")  # a select takes the first option that begins so
    assert browser.run("form.elements.predicted.selectedOptions[0].textContent").startswith("joy (")
    joy = [image for image in draw(FEW)[:FEW] if image.predicted == 0]
    assert browser.run("count.textContent") == f"{len(joy)} of {FEW} images" and shown(browser) == names(joy)


def test_few_thumbnails_stand_in_the_file(browser, small, tmp_path):
    assert [path.name for path in small.parent.iterdir()] == ["predictions.html"]
    moved = shutil.copy(small, tmp_path / "moved.html")
    browser.open(moved)
    assert browser.requests == [moved.as_uri()] and browser.complaints == []
    browser.run("Promise.all(Array.from(list.querySelectorAll('img'), image => image.decode()))")
    assert browser.run("Array.from(list.querySelectorAll('img'), image => image.naturalWidth)") == [160] * FEW
