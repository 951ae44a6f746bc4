"""Downloads are unpacked beside and moved: a data set's folder is there whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import stat
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from layouts import images, told, write

from utils.config import load_config
from utils.datasets import classification as classification_datasets
from utils.datasets.table import load_dataset
from utils.errors import InputError
from utils.files import move_in, whole_folder

DTD = {"train": "banded/banded_0001.jpg", "val": "banded/banded_0002.jpg", "test": "woven/woven_0001.jpg"}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """publish(name, kind, data) → torchvision's data set `kind` downloads this archive from a server of the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "server").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path / "server"))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def publish(name: str, kind: type, data: bytes) -> None:
            (tmp_path / "server" / name).write_bytes(data)
            prefix = "_DATASET" if kind is torchvision.datasets.SUN397 else ""
            monkeypatch.setattr(kind, f"{prefix}_URL", f"http://127.0.0.1:{server.server_port}/{name}")
            monkeypatch.setattr(kind, f"{prefix}_MD5", hashlib.md5(data).hexdigest())

        yield publish
        server.shutdown()


@pytest.fixture
def archive(tmp_path, publish):
    """archive(keep) → DTD's archive, of which the first `keep` of its bytes are there, is published."""

    def pack(keep: float = 1) -> None:
        source = tmp_path / "source"
        for split, image in DTD.items():
            images(source / "dtd" / "images", image)
            write(source / "dtd" / "labels" / f"{split}1.txt", image)
        (source / "dtd" / "labels" / "padding").write_bytes(np.random.default_rng(0).bytes(100_000))
        path = tmp_path / "dtd-r1.0.1.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for below in ("dtd/images", "dtd/labels"):
                file.add(source / below, below)
        data = path.read_bytes()
        publish(path.name, torchvision.datasets.DTD, data[: int(keep * len(data))])

    return pack


@pytest.fixture
def download(tmp_path):
    return lambda name, *options: load_dataset(load_config(name, options=[
        "DATASET.ROOT", str(tmp_path / "data"), "DATASET.VAL_FRACTION", "0", "DATASET.PARTIAL", "True", *options]))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_download_is_unpacked_beside_and_moved(tmp_path, archive, download):
    archive()
    splits = download("dtd")
    assert {split: rows[0][0] for split, rows in told(splits).items()} == DTD
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dtd"]
    folder = splits.root.parent
    assert folder == tmp_path / "data" / "dtd" / "dtd"
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in (folder, folder / "images", tmp_path / "data" / "dtd"):
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, archive, download):
    archive(0.5)
    with pytest.raises(InputError, match=r"DTD.*vgg/data/dtd.*--root") as caught:
        download("dtd")
    assert "\n" not in str(caught.value) and list((tmp_path / "data").iterdir()) == []
    archive()
    assert download("dtd").train  # the next attempt begins anew


def test_an_interrupted_download_leaves_nothing(tmp_path, archive, download, monkeypatch):
    archive()
    extract = tarfile.TarFile.extractall

    def interrupt(self, path, *arguments, **options):
        extract(self, path, members=[self.getmember("dtd/images/banded/banded_0001.jpg")])
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("dtd")
    assert list((tmp_path / "data").iterdir()) == []


def test_what_the_user_put_there_stays(tmp_path, archive, download):
    """CoOp's split file is often there before the images are."""
    archive()
    split = tmp_path / "data" / "dtd" / "dtd" / "split_zhou_DescribableTextures.json"
    write(split, json.dumps({"train": [[DTD["test"], 0, "woven"]], "val": [], "test": [[DTD["val"], 0, "woven"]]}))
    write(tmp_path / "data" / "dtd" / "dtd" / "labels" / "train1.txt", "my own")
    assert [row[0] for row in told(download("dtd"))["train"]] == [DTD["test"]]
    folder = tmp_path / "data" / "dtd" / "dtd"
    assert (folder / "labels" / "train1.txt").read_text() == "my own\n"
    assert (folder / "labels" / "test1.txt").read_text() == DTD["test"] + "\n"


def test_another_process_may_be_faster(tmp_path, archive, download, monkeypatch):
    archive()
    fetch = classification_datasets.open_torchvision

    def slow(*arguments, **options):
        result = fetch(*arguments, **options)
        monkeypatch.setattr(classification_datasets, "open_torchvision", fetch)
        download("dtd")
        (tmp_path / "data" / "dtd" / "first").touch()
        return result

    monkeypatch.setattr(classification_datasets, "open_torchvision", slow)
    assert {split: rows[0][0] for split, rows in told(download("dtd")).items()} == DTD
    assert (tmp_path / "data" / "dtd" / "first").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dtd"]


def test_sun397_lies_in_the_root_itself(tmp_path, download, publish):
    images(tmp_path / "source" / "SUN397", *(f"a/abbey/sun_{i}.jpg" for i in range(4)))
    write(tmp_path / "source" / "SUN397" / "ClassName.txt", "/a/abbey")
    path = tmp_path / "SUN397.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(tmp_path / "source", ".")
    publish(path.name, torchvision.datasets.SUN397, path.read_bytes())
    assert len(download("sun397", "DATASET.TEST_FRACTION", "0.5").train) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["SUN397"]  # and no archive of 37 GB beside it


def test_a_missing_package_is_asked_for_before_the_download(download, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name))
    with pytest.raises(InputError, match="Flowers102 needs scipy: pip install scipy"):
        download("oxford_flowers")


# --- whole or not at all ---------------------------------------------------------------------------------------------

def test_a_whole_folder(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    with whole_folder(tmp_path / "new" / "a") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "new" / "a").exists()
    assert files(tmp_path / "new") == ["a/x"]
    assert stat.S_IMODE((tmp_path / "new" / "a").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    with pytest.raises(KeyError), whole_folder(tmp_path / "new" / "b") as folder:
        (folder / "x").touch()
        raise KeyError
    with whole_folder(tmp_path / "new" / "a") as folder:
        (folder / "y").touch()
    (tmp_path / "new" / "empty").mkdir()
    with whole_folder(tmp_path / "new" / "empty") as folder:
        (folder / "z").touch()
    assert files(tmp_path / "new") == ["a/x", "empty/z"]  # the faster stays, nothing of b, no temporary folder
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "empty"]


def test_a_folder_that_appears_at_the_last_moment_stays(tmp_path, monkeypatch):
    replace = os.replace

    def be_late(source: Path, target: Path) -> None:
        images(target, "theirs.jpg")
        replace(source, target)

    monkeypatch.setattr(os, "replace", be_late)
    with whole_folder(tmp_path / "a") as folder:
        (folder / "ours").touch()
    assert files(tmp_path) == ["a/theirs.jpg"]


def test_what_is_moved_last_comes_last(tmp_path, monkeypatch):
    images(tmp_path / "source", "a/images/1.jpg", "b.jpg")
    (tmp_path / "target").mkdir()
    write(tmp_path / "target" / "own", "")
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(Path(source).name),
                                                               replace(source, target)))
    move_in(tmp_path / "source", tmp_path / "target", tmp_path / "source" / "a" / "images")
    assert moved == ["b.jpg", "a"] and files(tmp_path / "target") == ["a/images/1.jpg", "b.jpg", "own"]
