"""What counts as an image among a user's files, in which order, and what is told of the rest."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from layouts import images
from PIL import Image

from utils.config import PROJECT
from utils.data.image_formats import hint, open_image, readable_suffixes
from utils.data.listing import count_images, describe_left_out, list_class, list_folders, list_images, tell_left_out
from utils.errors import InputError


def names(folder: Path, **options) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_images(folder, **options)]


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this system lets no user make links")


# --- images ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, format", [
    ("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.Png", "PNG"), ("a.jp2", "JPEG2000"), ("a.avif", "AVIF"),
    ("a.ppm", "PPM"), ("a.pgm", "PPM"), ("a.webp", "WEBP"), ("a.bmp", "BMP"), ("a.gif", "GIF"), ("a.tif", "TIFF"),
    ("a.tga", "TGA"), ("a.mpo", "MPO"), ("a.ico", "ICO"), ("a.qoi", "QOI"), ("no suffix", "PNG"), ("8", "JPEG"),
])
def test_whatever_pillow_opens_is_an_image(tmp_path, name, format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"Pillow here has no {format}")
    Image.new("RGB", (16, 16), (200, 10, 10)).save(tmp_path / name, format)
    left_out = Counter()
    assert names(tmp_path, left_out=left_out) == [name] and not left_out
    with open_image(tmp_path / name) as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize("suffix", [".pdf", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib",
                                    ".txt", ".csv", ".json", ".zip", ".mp4", ".npy"])
def test_documents_videos_and_data_are_none(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"whatever")
    left_out = Counter()
    assert names(tmp_path, left_out=left_out) == [] and left_out == {suffix: 1}


@pytest.mark.parametrize("content", [b"", b"see README\n", b"\x00" * 400, b"\xff\xd8\xff", bytes(range(256)) * 9,
                                     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89HDF\r\n\x1a\n" * 9,
                                     np.random.default_rng(0).bytes(4000)])
def test_a_file_without_suffix_is_known_by_its_header(tmp_path, content):
    (tmp_path / "LICENSE").write_bytes(content)
    left_out = Counter()
    assert names(tmp_path, left_out=left_out) == [] and left_out == {"without suffix": 1}


@pytest.mark.parametrize("name", ["._0.jpg", ".hidden.png", ".ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg",
                                  "__MACOSX/a/._0.jpg", "Thumbs.db", "desktop.ini", "Desktop.ini", ".DS_Store",
                                  "@eaDir/0.jpg", "$RECYCLE.BIN/0.jpg"])
def test_hidden_names_and_litter_are_no_data(tmp_path, name):
    images(tmp_path, "a/1.png")
    path = tmp_path / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "a" / "1.png").read_bytes())
    left_out = Counter()
    assert names(tmp_path, left_out=left_out, below=True) == ["a/1.png"] and left_out == {"hidden or system": 1}
    assert count_images(tmp_path) == 1 and list_folders(tmp_path / "a") == []


def test_a_folder_named_like_an_image_is_no_data(tmp_path):
    images(tmp_path, "a/1.png", "a/x.jpg/1.png", "y.JPG/2.png")
    left_out = Counter()
    assert names(tmp_path, left_out=left_out, below=True) == ["a/1.png"]
    assert left_out == {"folders named like an image": 2}
    assert list_folders(tmp_path) == [tmp_path / "a"] and count_images(tmp_path) == 1
    left_out.clear()
    assert names(tmp_path, left_out=left_out) == [] and left_out == {"folders named like an image": 1}


def test_hidden_folders_above_do_not_matter(tmp_path):
    images(tmp_path / ".cache" / "x.jpg", "1.png")
    assert names(tmp_path / ".cache" / "x.jpg") == ["1.png"]


# --- order and links ------------------------------------------------------------------------------------------------

def test_the_order_is_that_of_the_paths_own_characters(tmp_path):
    images(tmp_path, "b/2.JPG", "a-b/1.png", "a/1.png", "a/B/1.png", "a/10.png", "a/2.png", "é.png", "C.png", "图.png")
    expected = ["C.png", "a-b/1.png", "a/1.png", "a/10.png", "a/2.png", "a/B/1.png", "b/2.JPG", "é.png", "图.png"]
    assert names(tmp_path, below=True) == expected == sorted(expected)
    assert names(tmp_path) == ["C.png", "é.png", "图.png"]
    assert [folder.name for folder in list_folders(tmp_path)] == ["a", "a-b", "b"]
    assert count_images(tmp_path) == len(expected)


def test_links_are_followed_and_circles_end(tmp_path):
    images(tmp_path, "data/a/b/1.png", "elsewhere/2.png")
    link(tmp_path / "data" / "a" / "again", tmp_path / "data")
    link(tmp_path / "data" / "a" / "a link to b", tmp_path / "data" / "a" / "b")
    link(tmp_path / "data" / "more", tmp_path / "elsewhere")
    link(tmp_path / "data" / "3.png", tmp_path / "elsewhere" / "2.png")
    link(tmp_path / "data" / "4.png", tmp_path / "nowhere.png")
    link(tmp_path / "data" / "5.png", tmp_path / "data" / "5.png")
    left_out = Counter()
    assert names(tmp_path / "data", left_out=left_out, below=True) == ["3.png", "a/b/1.png", "more/2.png"]
    assert left_out == {"broken links": 2}
    assert [folder.name for folder in list_folders(tmp_path / "data")] == ["a", "more"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "file").touch()
    for list_it in (list_images, list_folders, count_images):
        with pytest.raises(InputError, match=r"file cannot be listed \(.+\); allow"):
            list_it(tmp_path / "file")


# --- what is left out -----------------------------------------------------------------------------------------------

def test_what_is_left_out_is_told_in_one_line(caplog):
    left_out = Counter({".csv": 1, "without suffix": 2, ".cr2": 13})
    assert describe_left_out(left_out) == ("left out: 13 .cr2, 2 without suffix, 1 .csv; "
                                           ".cr2: convert it to JPEG or PNG")
    assert describe_left_out(Counter()) == ""
    many = describe_left_out(Counter({f".{letter}{letter}{letter}": 2 for letter in "abcdefghijklm"}))
    assert many.endswith("2 .iii, 2 .jjj, 6 of 3 other kinds")
    with caplog.at_level(logging.INFO):
        tell_left_out(left_out)
        tell_left_out(Counter({".csv": 1}))
        tell_left_out(Counter())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", describe_left_out(left_out)), ("INFO", "left out: 1 .csv")]


def test_a_class_folder_without_an_image_says_what_else_it_holds(tmp_path):
    left_out = Counter({".csv": 1})
    images(tmp_path, "cat/1.png")
    for name in ("cat/a.csv", "dog/b.nef", "dog/c.nef", "dog/.d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_class(tmp_path / "cat", left_out) == [tmp_path / "cat" / "1.png"] and left_out == {".csv": 2}
    with pytest.raises(InputError, match=r"dog holds no image; fill or remove it \(left out: 2 \.nef, 1 hidden"):
        list_class(tmp_path / "dog", left_out)


def test_heic_without_its_plugin_is_left_out_with_the_hint(tmp_path):
    """In a process of its own: a plugin that is registered once stays."""
    images(tmp_path, "1.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(60))
    code = ("import sys; sys.modules['pillow_heif'] = None\n"  # as if it were not installed
            "from collections import Counter; from pathlib import Path\n"
            "from utils.data.image_formats import HINTS\n"
            "from utils.data.listing import describe_left_out, list_images\n"
            "folder, left_out = Path(sys.argv[1]), Counter()\n"
            "print([path.name for path in list_images(folder, left_out)], describe_left_out(left_out))\n"
            "print([path.name for path in list_images(folder, also=HINTS)])\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert done.stdout.splitlines() == ["['1.png'] left out: 1 .heic; .heic: pip install pillow-heif",
                                        "['1.png', 'IMG_1.HEIC']"], done.stderr


def test_heic_with_its_plugin_is_an_image(tmp_path):
    pytest.importorskip("pillow_heif")
    assert {".heic", ".heif"} <= readable_suffixes() and hint(".heic") == "" != hint(".nef")
    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "IMG_1.HEIC", "HEIF")
    (tmp_path / "2").write_bytes((tmp_path / "IMG_1.HEIC").read_bytes())
    assert names(tmp_path) == ["2", "IMG_1.HEIC"]
    with open_image(tmp_path / "2") as image:
        assert image.size == (64, 48)
