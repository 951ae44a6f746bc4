"""The page of predictions as a file: what stands in it, how it is escaped, where its thumbnails lie."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.browser import PageSource
from trainers import pages
from trainers.pages import choose_shown, show_files, show_split
from trainers.predict import ImageFiles
from utils.data.images import Decoding, read_image
from utils.data.items import UNKNOWN, Item, Splits
from utils.data.loader import build_loader
from utils.data.views import WeakView
from utils.errors import TrainingError
from utils.report import thumbnails
from utils.report.page import page
from utils.report.predictions import Shown, barred_classes, link, shown_name, surest_mistakes, write_page
from utils.report.thumbnails import make_thumbnail, place_thumbnails, read_thumbnails

NASTY = "<img src=x onerror=alert(1)>\"'&</script>"


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize("size, small", [((400, 200), (160, 80)), ((200, 401), (80, 160)), ((32, 20), (32, 20)),
                                         ((5000, 2), (160, 1))])
def test_a_thumbnail_is_a_jpeg_of_160_pixels(size, small):
    thumbnail = opened(make_thumbnail(Image.new("RGB", size, (200, 30, 60))))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", small)
    assert np.asarray(thumbnail).mean((0, 1)) == pytest.approx([200, 30, 60], abs=3)


def test_thumbnails_are_turned_as_the_decoding_says_and_made_as_the_image_is_read(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (320, 200), (10, 200, 90)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_text("no image", encoding="utf-8")
    files = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    turned, reason = read_thumbnails(files, Decoding(exif=True), 2)
    lying, _ = read_thumbnails(files, Decoding(exif=False), 0)
    assert opened(turned).size == (100, 160) and opened(lying).size == (160, 100)
    assert reason.startswith(f"cannot read image {files[1]}")
    dataset = ImageFiles(files, WeakView(16, (0.5,) * 3, (0.5,) * 3), Decoding(exif=True))
    assert dataset[0]["thumbnail"] == turned == make_thumbnail(read_image(files[0]))
    assert dataset[1]["thumbnail"] == b"" and dataset[1]["error"] == reason


def test_thumbnails_stand_in_the_page_or_beside_it(tmp_path, monkeypatch):
    (tmp_path / "p_thumbnails").mkdir()
    for name in ("0.jpg", "7.jpg", "my own.jpg"):
        (tmp_path / "p_thumbnails" / name).write_bytes(b"old")
    monkeypatch.setattr(thumbnails, "INSIDE", 5)
    assert place_thumbnails([b"abc", b"", b"def"], tmp_path / "p.html") == [
        "p_thumbnails/0.jpg", "", "p_thumbnails/2.jpg"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "p_thumbnails").iterdir()}
    assert found == {"0.jpg": b"abc", "2.jpg": b"def", "my own.jpg": b"old"}  # an earlier page's are gone
    assert place_thumbnails([b"abc", b""], tmp_path / "p.html") == ["data:image/jpeg;base64,YWJj", ""]
    assert [path.name for path in (tmp_path / "p_thumbnails").iterdir()] == ["my own.jpg"]
    assert place_thumbnails([b"abcdef"], tmp_path / "a b#.html") == ["a%20b%23_thumbnails/0.jpg"]
    (tmp_path / "a b#_thumbnails" / "0.jpg").unlink()
    place_thumbnails([b"abc"], tmp_path / "a b#.html")
    assert not (tmp_path / "a b#_thumbnails").exists()
    (tmp_path / "q_thumbnails").write_text("no folder", encoding="utf-8")
    with pytest.raises(TrainingError, match="cannot write the thumbnails into .*q_thumbnails"):
        place_thumbnails([b"abcdef"], tmp_path / "q.html")


def test_names_are_escaped_and_links_lead_to_the_files(tmp_path):
    folder = tmp_path / "图 #1"
    files = [folder / name for name in (NASTY.replace("/", ""), "100%?.jpg", "javascript:alert(1).jpg")]
    images = [Shown(file, (0.7, 0.2, 0.1), label=label) for label, file in enumerate(files)]
    images.append(Shown(folder / "bad", error=f"cannot read {NASTY}"))
    write_page(tmp_path / "out" / "p.html", NASTY, [NASTY], images, [NASTY, "b", "c"])
    seen = PageSource(tmp_path / "out" / "p.html")
    assert not seen.all("img") and len(seen.all("article")) == 3 + 2  # two are wrong and stand in the gallery too
    links = [attributes["href"] for attributes in seen.all("a")]
    assert {(tmp_path / "out" / unquote(address)).resolve() for address in links} == set(files)
    assert all(address.startswith("../%E5%9B%BE%20%231/") for address in links)
    assert seen.texts.count(NASTY) == 3 + 2 * 5  # title, heading, note; of each card the prediction and a bar
    assert f"cannot read {NASTY}" in seen.texts
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert len(seen.all("script")) == 1


def test_the_policy_lets_nothing_in_but_the_script(tmp_path):
    text = page("t", ["<p>x</p>"], script="let a = '中';")
    digest = base64.b64encode(hashlib.sha256("let a = '中';".encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)">', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "'self' data: file:" and "http" not in policy
    assert "<script>" not in page("t", [])


def test_a_card_tells_the_prediction_and_each_share():
    image = Shown(Path("a"), (0.125, 0.5, 0.375), label=2, distribution=(0.0, 0.25, 0.75))
    assert (image.predicted, image.confidence, image.wrong) == (1, 0.5, True)
    assert not replace(image, label=1).wrong and not replace(image, label=UNKNOWN).wrong
    assert barred_classes(image) == [0, 1, 2]
    many = Shown(Path("a"), [0.01 * k for k in range(12)], label=3)
    assert barred_classes(many) == [11, 10, 9, 8, 7, 3]
    assert barred_classes(replace(many, label=UNKNOWN)) == barred_classes(replace(many, label=9)) == [11, 10, 9, 8, 7]


def test_the_surest_mistakes_come_first():
    images = [Shown(Path("a"), (p, 1 - p), label=label)
              for p, label in ((0.9, 0), (0.8, 1), (0.7, UNKNOWN), (0.05, 0), (0.6, 1))]
    assert surest_mistakes(images) == [3, 1, 4]
    assert len(surest_mistakes(images * 9)) == 12


def test_names_are_told_below_the_common_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_name(Path("x/y/1.jpg"), str(tmp_path / "x")) == "y/1.jpg"
    assert link(Path("x/1.jpg"), Path("x/out")) == "../1.jpg"
    write_page(Path("p.html"), "t", [], [Shown(Path(name), (1.0,)) for name in ("x/y/1.jpg", "x/2.jpg")], ["c"])
    assert [attributes["title"] for attributes in PageSource(Path("p.html")).all("h3")] == ["y/1.jpg", "2.jpg"]


def test_folders_called_like_classes_are_labels(tmp_path):
    def verdicts(*files: str) -> list[str | None]:
        rows = [{"file": file, "prediction": "hot dog", "probabilities": {"hot dog": 0.9, "b": 0.1}} for file in files]
        show_files(tmp_path / "p.html", rows, [b""] * len(rows), ["hot dog", "b"], "x", "y")
        cards = PageSource(tmp_path / "p.html").all("article")[-len(files):]
        return [card.get("data-label") for card in cards]

    assert verdicts("x/hot_dog/1.jpg", "x/B/1.jpg") == ["0", "1"]
    assert verdicts("x/hot dog/1.jpg", "x/other/1.jpg") == [None, None]


def test_images_that_a_split_left_out_stand_with_their_reasons(tmp_path):
    for name in ("0.png", "2.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "1.png").write_bytes(b"cut")
    items = [Item(tmp_path / f"{number}.png", number % 2, "") for number in range(3)]
    loader = build_loader(items, {"weak": WeakView(16, (0.5,) * 3, (0.5,) * 3)}, 2, 0, on_error="skip")
    probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75]])  # of images 0 and 2
    show_split(tmp_path / "p.html", Splits("set", tmp_path, ["a", "b"], [], [], items), loader,
               {"probabilities": probabilities, "index": torch.tensor([0, 2]), "labels": torch.tensor([0, 0])}, "note")
    seen = PageSource(tmp_path / "p.html")
    assert [card["data-predicted"] + card["data-label"] for card in seen.all("article")] == ["10", "00", "10"]
    assert len(seen.all("img")) == 3 and "set: the test images" in seen.texts
    assert any(text.startswith(f"cannot read image {tmp_path / '1.png'} (") for text in seen.texts)


def test_a_page_of_very_many_images_has_a_part_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "SHOWN", 4)
    rows = [{"file": f"{number}.jpg", "probabilities": {"a": 1.0}} for number in range(6)]
    rows[5] = {"file": "5.jpg", "error": "cannot read 5.jpg"}
    show_files(tmp_path / "p.html", rows, [b""] * 6, ["a"], "x", "y")
    seen = PageSource(tmp_path / "p.html")
    assert len(seen.all("article")) == 4
    assert {"Here are the first 4 of 6 images; predictions.csv has all.", "cannot read 5.jpg"} < set(seen.texts)
    labels, index = torch.tensor([0, 0, 1, UNKNOWN, 0]), torch.tensor([0, 1, 2, 4, 5])  # image 3 could not be read
    shares = torch.tensor([0.9, 0.4, 0.8, 0.1, 0.2])
    outputs = {"probabilities": torch.stack([shares, 1 - shares], 1), "labels": labels, "index": index}
    assert choose_shown(outputs, 4) == [0, 1, 2, 3]
    monkeypatch.setattr(pages, "MISTAKES", 2)
    assert choose_shown(outputs, 6) == [0, 2, 3, 4, 5]  # every second; the surest mistakes are 2 and 5
