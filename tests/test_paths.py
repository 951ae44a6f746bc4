"""Paths that a configuration names: ~ is the home, and they are sought here, then in the project."""

from __future__ import annotations

from utils.config import PATHS, PROJECT, flatten, load_config, resolve_path


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "own.yaml").write_text("SEED: 5\nDATASET: {ROOT: ~/data}\n", encoding="utf-8")
    others = [key for key in PATHS if key not in ("DATASET.ROOT", "DATASET.CLASSNAMES")]
    options = ["DATASET.NAME", "demo", "DATASET.CLASSNAMES", "~/names",
               *(part for key in others for part in (key, "~/x"))]
    values = dict(flatten(load_config("", "~/own.yaml", options=options)))
    assert values["SEED"] == 5 and values["DATASET.ROOT"] == f"{tmp_path}/data"
    assert values["DATASET.CLASSNAMES"] == [f"{tmp_path}/names"]
    assert {key: values[key] for key in others} == dict.fromkeys(others, f"{tmp_path}/x")


def test_paths_are_sought_here_then_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("configs/datasets/demo.yaml") == PROJECT / "configs/datasets/demo.yaml"
    (tmp_path / "configs" / "datasets").mkdir(parents=True)
    (tmp_path / "configs" / "datasets" / "demo.yaml").write_text("SEED: 99\nDATASET: {NAME: demo}\n", encoding="utf-8")
    assert resolve_path("configs/datasets/demo.yaml").resolve() == tmp_path / "configs/datasets/demo.yaml"
    assert load_config("configs/datasets/demo.yaml").SEED == 99
    assert resolve_path("nowhere/at_all.json").name == "at_all.json"
