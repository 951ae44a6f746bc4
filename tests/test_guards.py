"""What protects a run: a full disk, a folder in use, gradients that are not finite, images that cannot be read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import LaFTer
from tests import tiny_run
from tests.conftest import note_gradients
from tests.test_engine import fit_in
from tests.warm_start import CONTEXT, started
from trainers.evaluation import evaluate
from trainers.objective import Objective
from trainers.program import exit_with_message
from trainers.statistics import TrainingStatistics
from trainers.training import train_one_epoch
from utils.config import default_config
from utils.errors import InputError, TrainingError
from utils.runs.checkpoint import find_latest, load_checkpoint, save_checkpoint
from utils.runs.random_state import rng_state, seed_generators, set_rng_state
from utils.runs.record import Run
from utils.runs.signals import Interrupted, Interrupts

# --- the disk and the folder ------------------------------------------------------------------------------------------

@contextlib.contextmanager
def largest_file(size: int):
    """The system refuses to write files of more than `size` bytes, as a full disk refuses any."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "best.pt"
    save_checkpoint(path, {"epoch": 1})
    with largest_file(10_000), pytest.raises(TrainingError, match=r"cannot write .*best\.pt \(.*make room.*--resume"):
        save_checkpoint(path, {"epoch": 2, "model": torch.zeros(10_000)})
    assert load_checkpoint(path, {})["epoch"] == 1
    assert [item.name for item in path.parent.iterdir()] == ["best.pt"]  # no half file


def test_a_run_on_a_full_disk_says_so_and_goes_on_later(tmp_path):
    """Full when the second epoch's checkpoint would grow: the first one's is there, and the same bits come of it."""
    tiny_run.make_inputs(tmp_path)
    LaFTer.main(tiny_run.arguments(tmp_path, "whole", "PROMPT_NUM", "4"))
    arguments = tiny_run.arguments(tmp_path, "full", "--resume", "auto")
    saved, limit = [], contextlib.ExitStack()

    def fill_the_disk(path, content, original=save_checkpoint):
        saved.append(path.name)
        if path.name == "epoch0002.pt":
            limit.enter_context(largest_file(10_000))
        original(path, content)

    with pytest.MonkeyPatch.context() as patch, limit:
        patch.setattr("trainers.training.save_checkpoint", fill_the_disk)
        with pytest.raises(TrainingError, match=r"epoch0002\.pt"):
            LaFTer.main(arguments)
    assert saved[-1] == "epoch0002.pt"
    run = tiny_run.run_folder(tmp_path, "full")
    assert find_latest(run).name == "epoch0001.pt"
    LaFTer.main(arguments)
    tiny_run.assert_same(tiny_run.record(run), tiny_run.record(tiny_run.run_folder(tmp_path, "whole")))


def hold(folder: Path, locked) -> None:
    run = Run(folder)
    run.lock()
    locked.set()
    time.sleep(60)


def test_a_folder_in_use_is_refused_and_a_dead_processs_is_not(tmp_path):
    locked = CONTEXT.Event()
    with started(hold, tmp_path / "run", locked):
        assert locked.wait(60)
        run = Run(tmp_path / "run")
        with pytest.raises(InputError, match="run is in use by a live process.*--exp-name"):
            run.lock(timeout=0.2)
    assert (tmp_path / "run" / ".lock").exists() or os.name == "nt"
    run.lock(timeout=5)
    run.unlock()
    Run(tmp_path / "run").lock(timeout=0.2)
    Run(tmp_path / "run", passive=True).lock(timeout=0.2)  # of several processes only the first locks


def test_passive_runs_write_nothing(tmp_path):
    run = Run(tmp_path / "run", passive=True)
    run.append({"epoch": 0})
    run.finish({})
    assert not (tmp_path / "run").exists()


# --- signals and generators -------------------------------------------------------------------------------------------

def test_a_signal_waits_for_the_end_of_what_has_begun():
    done = []
    with pytest.raises(Interrupted) as caught, Interrupts() as interrupts:
        with interrupts.deferred():
            with interrupts.deferred():
                signal.raise_signal(signal.SIGTERM)
            done.append("the step and its saving")
        done.append("more")
    assert done == ["the step and its saving"] and caught.value.status == 128 + signal.SIGTERM
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped by SIGINT"), Interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before  # as it was
    with Interrupts().deferred():
        pass


def test_how_to_go_on_is_said_only_where_a_run_can_be_resumed(capsys, monkeypatch):
    def stopped(*_):
        signal.raise_signal(signal.SIGINT)

    for name in ("train_run", "evaluate_run", "predict_run"):
        monkeypatch.setattr(LaFTer, name, stopped)
    monkeypatch.setattr(LaFTer, "configure", lambda _: default_config())
    run = ["--model-dir", "x"]
    for arguments, said in (([], "stopped by SIGINT; the same command with --resume auto goes on"),
                            (["--eval-only", *run], "stopped by SIGINT"),
                            (["--predict", "x", *run], "stopped by SIGINT")):
        with pytest.raises(SystemExit) as stop:
            exit_with_message(lambda arguments=arguments: LaFTer.main(["--dataset-config-file", "demo", *arguments]))
        assert stop.value.code == 128 + signal.SIGINT and capsys.readouterr().err.strip() == said


def test_generators_go_on_where_they_were():
    import random

    import numpy as np

    def draw() -> list[float]:
        return [torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)]

    seed_generators(3)
    first = draw()
    state = rng_state()
    following = draw()
    set_rng_state(state)
    assert draw() == following
    seed_generators(3)
    assert draw() == first


def test_a_checkpoint_tells_what_it_belongs_to(tmp_path):
    tiny_run.make_inputs(tmp_path)
    LaFTer.main(tiny_run.arguments(tmp_path, "a", "--epochs", "1"))
    path = find_latest(tiny_run.run_folder(tmp_path, "a"))
    state = load_checkpoint(path, {})
    assert "OPTIM:" in state["config"] and "18/3/9 train/val/test images" in state["dataset"]
    assert {"rng", "optimizer", "scheduler", "scaler", "model", "progress", "clip_hash", "quick_gelu"} <= set(state)
    assert path.stat().st_size < 200_000  # no copy of CLIP
    splits = json.loads((path.parent.parent / "split.json").read_text(encoding="utf-8"))
    lost = splits["train"][0][0]
    (tmp_path / "data" / lost).unlink()
    with pytest.raises(InputError, match=f"a holds another run: image {lost} of the train split is gone"):
        LaFTer.main(tiny_run.arguments(tmp_path, "b", "--epochs", "1", "--resume", str(path)))
    alone = tmp_path / "alone" / "checkpoints" / path.name
    alone.parent.mkdir(parents=True)
    shutil.copy(path, alone)
    with pytest.raises(InputError, match="another dataset: '18/3/9 train.*here '17/3/9 train"):
        LaFTer.main(tiny_run.arguments(tmp_path, "c", "--epochs", "1", "--resume", str(alone)))
    with pytest.raises(InputError, match="was trained on: image .* is gone"):  # what was held out is not what it was
        LaFTer.main(["--eval-only", "--model-dir", str(path.parent.parent)])


# --- gradients --------------------------------------------------------------------------------------------------------

class Exploding(Objective):
    """The third loss is finite, its gradient is not: d/dx sqrt(x) at 0."""

    calls = 0

    def __call__(self, prediction, labels, batch):
        self.calls += 1
        parts = super().__call__(prediction, labels, batch)
        if self.calls == 3:
            parts["root"] = (prediction.logits * 0).sum().sqrt()
        return parts


def test_a_gradient_that_is_not_finite_stops_by_name(prepare, tmp_path):
    parts = prepare("LaFTer", objective=Exploding)
    parts.training.rows = {"untrained": {}}
    with pytest.raises(TrainingError) as caught:
        fit_in(tmp_path / "run", parts)
    message = str(caught.value)
    assert "the gradient of " in message and "epoch 1, step 3" in message and "learning rates: " in message
    assert "root 0" in message and "classifier" in message and "--max-grad-norm" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_norm_is_limited_and_recorded(prepare):
    """As it was before it was limited; 0: the gradient stays as it is."""
    found = {}
    for limit in (0.0, 0.5):
        parts = prepare("LaFTer", {"OPTIM.MAX_GRAD_NORM": limit, "DATALOADER.TRAIN_X.BATCH_SIZE": 18})
        gradients = note_gradients(parts.training)
        row = train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
        kinds = [norms[0] for norms in row["gradient_norms"].values()]
        assert math.hypot(*kinds) == pytest.approx(row["grad_norm"])
        found[limit] = norm, row["grad_norm"]
    assert found[0.0][0] == pytest.approx(found[0.0][1]) and found[0.0][0] > 0.5
    assert found[0.5][1] == found[0.0][1] and found[0.5][0] == pytest.approx(0.5, rel=1e-4)


def test_a_step_that_fp16s_scaler_leaves_out_has_no_norm(prepare, monkeypatch):
    """The mean is over the steps that were taken; without any there is none."""
    norms = iter([1.0, math.inf, 3.0, *[math.nan] * 3])
    monkeypatch.setattr(TrainingStatistics, "gradient_norms", lambda _: {"grad_norm": torch.tensor(next(norms))})
    parts = prepare("LaFTer", {"MODEL.PRECISION": "fp16", "OPTIM.MAX_EPOCH": 2, "DATALOADER.TRAIN_X.BATCH_SIZE": 6})
    for mean, skipped in ((2.0, 1), (None, 3)):
        row = train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
        assert row.get("grad_norm") == mean and row["skipped_steps"] == skipped
        parts.training.progress = type(parts.training.progress)()


def test_a_norm_that_limits_nothing_sensible_is_refused(make_cfg):
    for norm in (-1.0, math.nan):
        with pytest.raises(InputError, match="OPTIM.MAX_GRAD_NORM"):
            make_cfg({"OPTIM.MAX_GRAD_NORM": norm})


# --- images that cannot be read ---------------------------------------------------------------------------------------

def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])


def test_unreadable_images_are_left_out_counted_and_reported(prepare, tmp_path, caplog):
    settings = {"PSEUDO_LABEL.TEACHER": "frozen", "OPTIM.MAX_EPOCH": 2}
    loaders = prepare("LaFTer", settings).loaders
    victims = [loaders["train"].dataset.items[index].path for index in (0, 7)]
    victims.append(loaders["test"].dataset.items[5].path)
    damage(*victims)
    with pytest.raises(InputError, match=r"cannot read image .*\.png"):
        prepare("LaFTer", settings)
    parts = prepare("MultiLayerLaFTer", {**settings, "DATALOADER.ON_ERROR": "skip"})
    with caplog.at_level("WARNING"):
        run, _ = fit_in(tmp_path / "run", parts)
    for row in run.rows()[1:]:
        assert sorted(message.split()[3] for message in row["unreadable"]) == sorted(map(str, victims[:2]))
        assert [message.split()[3] for message in row["test"]["unreadable"]] == [str(victims[2])]
        assert "unreadable" not in row["val"]
    assert len(parts.training.unreadable) == 3
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert ["2 images cannot be read" in line for line in told] == [True, False]  # train's, then test's: once each
    assert ["1 image cannot be read" in line for line in told] == [False, True]
    assert parts.training.teacher.table.eq(-1).sum() == 2


def test_a_batch_without_readable_images_is_no_step(prepare):
    settings = {"DATALOADER.ON_ERROR": "skip", "TRAIN.SUPERVISION": "labels", "OPTIM.LR": 1e-12}
    loader = prepare("LaFTer", settings).loaders["train"]
    order = [index for batch in loader.batch_sampler for _, index in batch]
    damage(*(loader.dataset.items[index].path for index in order[5:10]))
    parts = prepare("LaFTer", settings)
    row = train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
    assert len(row["unreadable"]) == 5
    assert {state["step"].item() for state in parts.training.optimizer.state.values()} == {3}  # of four batches
    images = loader.load(order[:5] + order[10:])["weak"]
    labels = torch.tensor([loader.dataset.items[index].label for index in order[:5] + order[10:]])
    expected = F.cross_entropy(parts.model(images).logits, labels, label_smoothing=0.1).item()
    assert row["loss"] == pytest.approx(expected, abs=1e-4)  # the mean over those that could be read


def test_nothing_readable_is_an_error(prepare):
    settings = {"DATALOADER.ON_ERROR": "skip", "TRAIN.SUPERVISION": "labels"}
    parts = prepare("LaFTer", settings)
    damage(*(item.path for name in ("train", "test") for item in parts.loaders[name].dataset.items))
    with pytest.raises(InputError, match="none of the training images could be read: cannot read image"):
        train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
    with pytest.raises(InputError, match="none of the test images could be read: cannot read image"):
        evaluate(parts.model, {"test": parts.loaders["test"]})


def test_the_program_counts_them_at_the_end(tmp_path):
    tiny_run.make_inputs(tmp_path)
    damage(tmp_path / "data" / "train" / "red" / "1.png", tmp_path / "data" / "test" / "green" / "0.png")
    result = LaFTer.main(tiny_run.arguments(tmp_path, "x", "DATALOADER.ON_ERROR", "skip", "PICTURES", "True"))
    assert sorted(Path(message.split()[3]).parent.name for message in result["unreadable"]) == ["green", "red"]
    log = (tiny_run.run_folder(tmp_path, "x") / "log.txt").read_text(encoding="utf-8")
    assert "images that could not be read and were left out: 2" in log
    assert log.count("1 image cannot be read") == 2  # test's in the text phase, train's after its epoch: never again
