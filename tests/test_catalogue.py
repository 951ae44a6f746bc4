"""`LaFTer.py --list`: every known data set, whether it is there, how many images it has, and where to get it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from layouts import images

import LaFTer
from utils.config import PROJECT, load_config
from utils.datasets.catalogue import format_datasets, list_datasets
from utils.datasets.table import READERS


def test_every_known_data_set_is_listed_and_has_its_yaml():
    known = sorted(READERS)
    assert [entry.name for entry in list_datasets(PROJECT / "nowhere")] == known
    for name in known:
        assert name == load_config(name).DATASET.NAME
    for entry in list_datasets(PROJECT / "nowhere"):
        assert entry.folder is None and entry.images == 0 and entry.where


@pytest.mark.parametrize("name, files, folder", [
    ("caltech101", ["caltech-101/101_ObjectCategories/ant/1.jpg"], "caltech-101/101_ObjectCategories"),
    ("sun397", ["SUN397/a/abbey/1.jpg", "SUN397/a/abbey/2.JPG"], "SUN397"),
    ("emoset", ["EmoSet-118K/image/awe/1.jpg"], "EmoSet-118K"),
    ("demo", ["demo/images/train/1.png"], "demo"),
    ("folder", ["train/1.png", "train/a/2.webp"], "train"),
    ("cifar10", ["cifar10/train/cat/1.png"], "cifar10"),
])
def test_what_is_present_is_counted(tmp_path, name, files, folder):
    images(tmp_path, *files)
    (tmp_path / folder / "notes.txt").touch()
    present = [entry for entry in list_datasets(tmp_path) if entry.folder]
    assert [(entry.name, entry.folder, entry.images) for entry in present] == [(name, tmp_path / folder, len(files))]


@pytest.mark.parametrize("more, count", [
    ((), 0), (("a/1.jfif", "a/b/2.avif", "a/b/c/3.JPG", "train.ppm"), 4),
    (("._1.jpg", ".hidden/1.jpg", "__MACOSX/1.jpg", "a/x.jpg/1.png"), 0)])
def test_what_is_counted_is_what_the_readers_take(tmp_path, more, count):
    for name in more:
        path = tmp_path / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # no image: nothing is opened
    images(tmp_path, "demo/1.png")
    (entry,) = [entry for entry in list_datasets(tmp_path) if entry.folder]
    assert (entry.name, entry.images) == ("demo", 1 + count)


def test_a_folder_that_cannot_be_listed_does_not_hide_the_others(tmp_path, monkeypatch):
    images(tmp_path, "demo/1.png", "train/secret/1.png")

    def scandir(path, scandir=os.scandir):
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)  # who runs as root may list everything
    entries = {entry.name: entry for entry in list_datasets(tmp_path)}
    assert entries["demo"].images == 1 and entries["folder"].images == "?"
    assert "secret cannot be listed (Permission denied)" in entries["folder"].where
    row = next(line for line in format_datasets(list(entries.values())).splitlines() if line.startswith("folder"))
    assert row.split()[1] == "?" and "secret" in row


def test_the_command_prints_the_table_and_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "data", "Emotion6/images/joy/1.jpg")
    (tmp_path / "data" / "cifar-100-python").mkdir()
    assert LaFTer.main(["--list", "--root", "data"]) == {}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(READERS) and lines[0].split()[:2] == ["data", "set"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows["emotion6"].split()[1] == "1" and "Emotion6" in rows["emotion6"]
    assert rows["cifar100"].split()[1] == "packed"
    assert rows["dtd"].split()[1:3] == ["-", "absent"] and "vgg/data/dtd" in rows["dtd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
