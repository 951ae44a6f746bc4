"""Flickr_LDL's and Twitter_LDL's official split, in the MATLAB file beside their votes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from layouts import images, told, write

from utils.data.items import Splits
from utils.errors import InputError

EMOTIONS = "Amusement Awe Contentment Excitement Anger Disgust Fear Sadness"
COUNT = 6


@pytest.fixture(params=["flickr_ldl", "twitter_ldl"])
def read(request, tmp_path, read_dataset):
    """read(**variables) → the splits of six images, whose official split holds these variables; without: no file."""
    name, (site, _) = request.param, request.param.split("_")
    folder = tmp_path / f"{site.capitalize()}_LDL"
    images(folder / "images", *(f"{i}.jpg" for i in range(1, COUNT + 1)))
    write(folder / "ground_truth.txt", f"images-name {EMOTIONS} ",
          *(f"{i}.jpg 1 0 0 {i} 0 0 0 0 " for i in range(1, COUNT + 1)))

    def read(*options: str, **variables: object) -> Splits:
        if variables:
            pytest.importorskip("scipy.io").savemat(folder / f"{site}_ldl_config.mat", variables)
        return read_dataset(name, "DATASET.TEST_FRACTION", "0.5", *options)

    return read


def names(*numbers: int, suffix: str = ".jpg") -> np.ndarray:
    """MATLAB's column of cells."""
    return np.array([[f"{number}{suffix}"] for number in numbers], dtype=object)


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)[:, None]


TRAIN = flags(1, 0, 1, 1, 0, 1)
ORDER = (6, 5, 4, 3, 2, 1)  # not the table's: images are matched by name


@pytest.mark.parametrize("suffix", [".jpg", ""], ids=["names", "numbers"])
def test_the_official_split_counts(read, suffix):
    splits = read(imgname=names(*ORDER, suffix=suffix), train_ind=TRAIN, test_ind=~TRAIN)
    assert [row[0] for row in told(splits)["train"]] == [f"images/{i}.jpg" for i in (1, 3, 4, 6)]
    assert [row[0] for row in told(splits)["test"]] == [f"images/{i}.jpg" for i in (2, 5)]
    assert splits.val == [] and splits.train[1].distribution == pytest.approx((0, .75, 0, 0, .25, 0, 0, 0))
    carved = read("DATASET.VAL_FRACTION", "0.5")
    assert carved.test == splits.test and {*carved.train, *carved.val} == {*splits.train} and carved.val


def test_without_the_file_a_split_is_drawn(read):
    splits = read()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [3, 0, 3]


@pytest.mark.parametrize("variables, match", [
    (dict(vote=np.ones((6, 8))), "must hold imgname"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN), "must hold imgname.*test_ind"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN, test_ind=np.array([[5], [2]])), "must hold imgname.*flags"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN, test_ind=np.arange(6)), "must hold imgname.*flags"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN, test_ind=flags(0, 1, 0, 0, 0, 0)), "each of the 6.*4 and 1 are"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN, test_ind=flags(0, 1, 0, 0, 1, 1)), "each of the 6.*4 and 3 are"),
    (dict(imgname=names(*ORDER), train_ind=TRAIN, test_ind=flags(0, 1, 0, 0, 0, 1)), "each of the 6.*4 and 2 are"),
    (dict(imgname=names(11, 5, 4, 3, 2, 1), train_ind=TRAIN, test_ind=~TRAIN), "each of the 6.*3 and 2 are"),
])
def test_a_split_that_cannot_be_right_is_refused(read, variables, match):
    with pytest.raises(InputError, match=f"ldl_config.mat.*{match}.*rename it") as caught:
        read(**variables)
    assert "\n" not in str(caught.value)


def test_what_scipy_is_needed_for_and_cannot_read_is_said(read, tmp_path, monkeypatch):
    read(imgname=names(*ORDER), train_ind=TRAIN, test_ind=~TRAIN)
    file = next(tmp_path.glob("*/*.mat"))
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(InputError, match="config.mat.*version 7.3.*save -v7.*rename it"):
        read()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match="config.mat is a MATLAB file: pip install scipy.*rename it"):
        read()
