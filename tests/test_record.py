"""A run's folder and its checkpoints: written whole, never overwritten by accident, and refused by name."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from utils.config import load_config
from utils.data.items import Item, Splits, load_splits
from utils.errors import InputError, TrainingError
from utils.runs.checkpoint import epoch_path, find_checkpoint, load_checkpoint, prune, save_checkpoint, saved_epochs
from utils.runs.identity import identify
from utils.runs.record import Run, backbone_label, read_rows, run_folder, write_text

IDENTITY = {"trainer": "LaFTer", "clip_hash": "abc", "classnames": ["cat", "dog"]}


# --- the run's folder -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, label", [
    ("ViT-B/32", "ViT-B-32"), ("ViT-L/14@336px", "ViT-L-14@336px"), ("weights/my_clip.pt", "my_clip"),
    ("weights/vitb16.int8.safetensors", "vitb16.int8"), ("hub/clip-vit-base-patch32", "clip-vit-base-patch32"),
    ("/hub/clip-v1.5/", "clip-v1.5"), ("hub/clip-v1.5/model.safetensors", "clip-v1.5"), (r"C:\hub\clip.pt", "clip"),
])
def test_the_folder_tells_what_ran(name, label):
    assert backbone_label(name) == label
    cfg = load_config("demo", flags={"MODEL.BACKBONE.NAME": name, "OUTPUT_DIR": "runs", "SEED": 4})
    assert run_folder(cfg, "faces") == Path("runs") / "faces" / "LaFTer" / label / "seed4"
    cfg = load_config("demo", flags={"MODEL.BACKBONE.NAME": name, "EXP_NAME": "trial"})
    assert run_folder(cfg, "faces").name == "trial"


def test_a_run_from_start_to_end(tmp_path):
    folder = tmp_path / "a" / "run"
    run = Run(folder)
    cfg = load_config("demo", flags={"SEED": 9, "EXP_NAME": "größe"})
    path = tmp_path / "1.png"
    path.touch()
    splits = Splits("demo", tmp_path, ["a"], [Item(path, 0, "a", (1.0,))], [], [])
    run.start(cfg, replace(identify(cfg, splits), weights="abc"))
    assert load_config(trainer_file=str(folder / "config.yaml")) == cfg
    assert load_splits(folder / "split.json", tmp_path) == splits
    for epoch in range(3):
        run.append({"epoch": epoch, "loss": 0.1 * epoch})
    assert run.rows() == [{"epoch": 0, "loss": 0.0}, {"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2}]
    assert not run.finished and not (folder / "final.json").exists()
    run.finish({"top1": 0.5, "classnames": ["größe"]})
    assert run.finished and run.result() == {"top1": 0.5, "classnames": ["größe"]}
    assert Run(folder).finished  # a finished run may be looked at without --resume
    assert not list(folder.glob("*.part"))


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    run = Run(tmp_path / "run")
    Run(tmp_path / "run")  # nothing was trained yet
    run.append({"epoch": 0})
    with pytest.raises(InputError, match="run.*unfinished.*--resume auto.*--exp-name"):
        Run(tmp_path / "run")
    assert Run(tmp_path / "run", resume=True).rows() == [{"epoch": 0}]


def test_rewind_drops_what_a_resumed_run_writes_again(tmp_path):
    run = Run(tmp_path)
    for epoch in range(5):
        run.append({"epoch": epoch})
    run.rewind(2)
    assert [row["epoch"] for row in run.rows()] == [0, 1, 2]
    run.append({"epoch": 3})
    assert [row["epoch"] for row in run.rows()] == [0, 1, 2, 3]
    run.rewind(-1)
    assert run.rows() == []
    Run(tmp_path / "new").rewind(3)
    assert Run(tmp_path / "new", resume=True).rows() == []


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path, caplog):
    run = Run(tmp_path)
    for epoch in range(2):
        run.append({"epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "lo')
    assert run.rows() == [{"epoch": 0}, {"epoch": 1}]
    assert "cut off" in caplog.text
    run.rewind(2)  # as a resumed run does: what follows starts on a line of its own
    run.append({"epoch": 2})
    assert [row["epoch"] for row in run.rows()] == [0, 1, 2]


def test_damage_within_the_rows_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\nnonsense\n{"epoch": 2}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        read_rows(tmp_path / "metrics.jsonl")
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "final.json"
    write_text(path, "old\n")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TrainingError, match="cannot write .*final.json .disk full.*kept"):
        write_text(path, "new\n")
    assert path.read_text(encoding="utf-8") == "old\n" and [item.name for item in tmp_path.iterdir()] == ["final.json"]


# --- checkpoints ----------------------------------------------------------------------------------------------------

def content() -> dict[str, object]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {**IDENTITY, "epoch": 3, "best": None, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = content()
    path = epoch_path(tmp_path / "new" / "checkpoints", 3)
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path, IDENTITY)
    assert [item.name for item in path.parent.iterdir()] == ["epoch0003.pt"]
    assert {name: loaded[name] for name in (*IDENTITY, "epoch", "best")} == {
        name: saved[name] for name in (*IDENTITY, "epoch", "best")}
    assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in saved["model"].items())
    states = zip(loaded["optimizer"]["state"].values(), saved["optimizer"]["state"].values())
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in states)
    assert loaded["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    save_checkpoint(path, {"epoch": 1})

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="disk full"):
        patch.setattr(os, "fsync", fail)
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path, {})["epoch"] == 1 and [item.name for item in tmp_path.iterdir()] == ["best.pt"]
    save_checkpoint(path, {"epoch": 3})
    assert load_checkpoint(path, {})["epoch"] == 3


class Harmful:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "start lost", "noise", "harmful", "list", "other format"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path, trap = tmp_path / "epoch0001.pt", tmp_path / "trap"
    save_checkpoint(path, content())
    whole = path.read_bytes()
    noise = torch.randint(256, (500,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy().tobytes()
    damaged = {"empty": b"", "text": b"not a checkpoint\n", "cut": whole[: len(whole) // 2], "start lost": whole[100:],
               "noise": noise, "harmful": pickle.dumps(Harmful(trap), protocol=2)}
    if damage in damaged:
        path.write_bytes(damaged[damage])
    else:
        torch.save({"list": [1, 2], "other format": {"format": 999, **IDENTITY}}[damage], path)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, IDENTITY)
    assert "epoch0001.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("name, value", [("trainer", "MultiLayerLaFTer"), ("clip_hash", "abd"),
                                         ("classnames", ["dog", "cat"])])
def test_a_checkpoint_of_another_kind_is_refused_with_both_values(tmp_path, name, value):
    save_checkpoint(tmp_path / "x.pt", content())
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "x.pt", IDENTITY | {name: value})
    message = str(caught.value)
    assert f"another {name}" in message and repr(value) in message and repr(IDENTITY[name]) in message


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    for epoch in (1, 2, 3, 10):
        save_checkpoint(epoch_path(tmp_path, epoch), {"epoch": epoch})
    save_checkpoint(tmp_path / "best.pt", {"epoch": 2})
    (tmp_path / "epochs.pt").touch()  # no checkpoint's name
    assert saved_epochs(tmp_path) == [1, 2, 3, 10]
    prune(tmp_path, 0)
    assert saved_epochs(tmp_path) == [1, 2, 3, 10]
    prune(tmp_path, 2)
    assert saved_epochs(tmp_path) == [3, 10]
    prune(tmp_path, 5)
    assert saved_epochs(tmp_path) == [3, 10]
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "epoch0010.pt", "epochs.pt"]


def test_finding_a_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for epoch in (2, 12):
        save_checkpoint(epoch_path(folder, epoch), {"epoch": epoch})
    save_checkpoint(folder / "best.pt", {"epoch": 2})
    run = tmp_path / "run"
    assert find_checkpoint(run) == folder / "epoch0012.pt"
    assert find_checkpoint(run, 2) == folder / "epoch0002.pt"
    assert find_checkpoint(folder / "best.pt") == folder / "best.pt"
    with pytest.raises(FileNotFoundError, match="epoch 7 in .*run; kept epochs: 2, 12"):
        find_checkpoint(run, 7)
    with pytest.raises(FileNotFoundError, match="any epoch in .*none"):
        find_checkpoint(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt", {})


def test_the_record_is_plain_json(tmp_path):
    run = Run(tmp_path)
    run.append({"epoch": 1, "lr": {"adapter": 5e-4}, "stage_weights": [0.1, 0.9]})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "lr": {"adapter": 5e-4}, "stage_weights": [0.1, 0.9]}]
