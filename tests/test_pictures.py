"""The picture of a run: which images it shows, what it marks, and that it comes out the same again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from utils.data.items import UNKNOWN, Item
from utils.errors import InputError
from utils.report.fonts import fallback_fonts
from utils.report.pictures import (
    ANNOTATED,
    BARS,
    PREDICTED,
    choose_items,
    draw_predictions,
    shown_classes,
)

CLASSES = ["anger", "fear", "joy"]


@pytest.fixture
def photos(tmp_path):
    """photos(labels, annotated) → Items with a small grey photo each."""

    def make(labels: list[int], annotated: bool = True) -> list[Item]:
        items = []
        for number, label in enumerate(labels):
            path = tmp_path / "photos" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (30, 20 + number % 20), (128, 128, 128)).save(path)
            distribution = tuple(0.5 if place == label else 0.25 for place in range(3)) if annotated else None
            items.append(Item(path, label, CLASSES[label] if label >= 0 else "", distribution))
        return items

    return make


def coloured(path: Path, colour: str) -> int:
    """How many pixels of a picture have exactly this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return int((pixels == np.round(np.array(to_rgb(colour)) * 255)).all(-1).sum())


def probabilities(rows: int, classes: int = 3) -> torch.Tensor:
    return torch.rand(rows, classes, generator=torch.Generator().manual_seed(3)).softmax(-1)


def test_the_choice_is_seeded_and_spread_over_the_classes():
    labels = [0] * 60 + [1] * 30 + [2] * 5 + [3]
    items = [Item(Path(f"{number}.jpg"), label, "") for number, label in enumerate(labels)]
    chosen = choose_items(items, 12, seed=0)
    assert chosen == sorted(set(chosen)) == choose_items(items, 12, seed=0)
    assert chosen != choose_items(items, 12, seed=1)
    counts = Counter(labels[index] for index in chosen)
    assert counts[3] == 1 and sorted((counts[0], counts[1], counts[2])) == [3, 4, 4]  # the one of class 3, then turns
    assert sorted(choose_items(items, 500, seed=0)) == list(range(len(items)))


def test_more_classes_than_photos():
    items = [Item(Path(f"{number}.jpg"), number % 100, "") for number in range(300)]
    first, second = ([items[index].label for index in choose_items(items, 12, seed)] for seed in (0, 1))
    assert len(set(first)) == len(set(second)) == 12 and first == sorted(first) and first != second
    assert max(first) > 50  # not simply the first classes


def test_bars_of_few_classes_and_of_many():
    item = Item(Path("x.jpg"), 2, "")
    assert shown_classes([0.1, 0.2, 0.7], item) == [0, 1, 2]
    row = [0.0] * 50
    row[40], row[7] = 0.6, 0.4
    shown = shown_classes(row, Item(Path("x.jpg"), 31, ""))
    assert len(shown) == BARS and {7, 31, 40} <= set(shown) and shown == sorted(shown)


def test_both_distributions_are_drawn_to_one_scale(photos, tmp_path):
    items = photos([0, 1, 2, 0])
    target = torch.tensor([item.distribution for item in items])
    draw_predictions(items, target, CLASSES, tmp_path / "equal.png")
    blue, orange = (coloured(tmp_path / "equal.png", colour) for colour in (ANNOTATED, PREDICTED))
    assert blue > 2000 and abs(blue - orange) < 0.1 * blue  # equal distributions, equal bars
    spread = torch.full((4, 3), 0.5)  # three bars of 0.5 for 0.5, 0.25 and 0.25: 1.5 times the length
    draw_predictions(items, spread, CLASSES, tmp_path / "more.png")
    blue, orange = (coloured(tmp_path / "more.png", colour) for colour in (ANNOTATED, PREDICTED))
    assert orange == pytest.approx(1.5 * blue, rel=0.1)


def test_without_annotated_distributions_only_the_label_is_marked(photos, tmp_path):
    items = photos([0, 1, 2], annotated=False)
    draw_predictions(items, probabilities(3), CLASSES, tmp_path / "labels.png")
    assert coloured(tmp_path / "labels.png", ANNOTATED) == 0 < coloured(tmp_path / "labels.png", PREDICTED)
    unlabelled = [Item(item.path, UNKNOWN, "") for item in items]
    draw_predictions(unlabelled, probabilities(3), CLASSES, tmp_path / "unlabelled.png")
    dark = [int((np.asarray(Image.open(tmp_path / name).convert("L")) < 60).sum())
            for name in ("labels.png", "unlabelled.png")]
    assert dark[0] > dark[1]  # bold names, markers and verdicts are gone


def test_the_same_picture_comes_out_again(photos, tmp_path):
    items = photos([0, 1, 2] * 6)
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        draw_predictions(items, probabilities(18), CLASSES, tmp_path / name, count=4, seed=seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png", "other.png"))
    assert first == second != other


def test_names_that_matplotlib_would_take_for_formulas(photos, tmp_path):
    (item,) = photos([0])
    strange = item.path.with_name("a$_{$" * 10 + ".png")
    item.path.rename(strange)
    names = ["$\\broken{$ with a name much longer than a bar chart has room for", "b", "c"]
    draw_predictions([Item(strange, 0, names[0])], probabilities(1).to(torch.bfloat16), names, tmp_path / "strange.png")
    assert Image.open(tmp_path / "strange.png").width > 300


def test_chinese_names_are_drawn_or_one_line_says_that_no_font_has_them(photos, tmp_path, caplog, recwarn):
    draw_predictions(photos([0, 1]), probabilities(2), ["快乐", "愤怒", "joy"], tmp_path / "chinese.png")
    lines = [record.getMessage() for record in caplog.records if "show boxes" in record.getMessage()]
    assert len(lines) == bool(fallback_fonts("快乐愤怒")[1])
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]
    caplog.clear()
    draw_predictions(photos([0, 1]), probabilities(2), CLASSES, tmp_path / "latin.png")
    assert "boxes" not in caplog.text


def test_bad_input_is_named(photos, tmp_path):
    items = photos([0, 1])
    with pytest.raises(InputError, match=r"2 images of 3 classes .* not \(2, 4\)"):
        draw_predictions(items, probabilities(2, 4), CLASSES, tmp_path / "x.png")
    with pytest.raises(InputError, match="no image to draw"):
        draw_predictions([], torch.empty(0, 3), CLASSES, tmp_path / "x.png")
    items[1].path.write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot read image .*1.png"):
        draw_predictions(items, probabilities(2), CLASSES, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
