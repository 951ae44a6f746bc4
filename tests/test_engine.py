"""The training loop: its losses, accumulation, failures, and that an interrupted run continues bit by bit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import train_on
from tests.tiny_run import assert_same
from trainers.evaluation import evaluate, predict
from trainers.objective import Objective
from trainers.state import tuned_state
from trainers.training import choose_labels, fit, step_loss, train_one_epoch
from utils.errors import InputError, TrainingError
from utils.runs.checkpoint import find_checkpoint, load_checkpoint
from utils.runs.record import Run


def fit_in(folder, parts: SimpleNamespace, resume: bool = False) -> tuple[Run, dict]:
    run = Run(folder, resume)
    if resume:
        parts.training.load(find_checkpoint(folder))
        run.rewind(parts.training.epoch)
    return run, fit(parts.training, parts.objective, parts.loaders["train"], parts.evaluation, parts.cfg, run)


def timeless(value: object) -> object:
    """Without the seconds that it took."""
    if isinstance(value, dict):
        return {key: timeless(content) for key, content in value.items() if key not in ("train_seconds", "seconds")}
    return value


class PowerCut(Exception):
    """The machine stops."""


class Interrupted(Objective):
    """Stops in the middle of the third epoch: 18 images in batches of 5 are 4 steps an epoch."""

    calls, last = 0, 4 * 2 + 1

    def __call__(self, *args):
        self.calls += 1
        if self.calls > self.last:
            raise PowerCut
        return super().__call__(*args)


@pytest.mark.parametrize("trainer, values", [
    ("LaFTer", {"PSEUDO_LABEL.TEACHER": "shared"}),
    ("LaFTer", {"TRAIN.SUPERVISION": "labels", "OPTIM.NAME": "sgd", "OPTIM.LR_SCHEDULER": "multistep",
                "OPTIM.WARMUP_EPOCH": 1, "OPTIM.STEPSIZE": [3]}),
    ("MultiLayerLaFTer", {"PSEUDO_LABEL.TEACHER": "ema", "PSEUDO_LABEL.EMA_DECAY": 0.9, "OPTIM.LR_SCHEDULER": "coslr",
                          "OPTIM.WARMUP_EPOCH": 1}),
    ("MultiLayerLaFTer", {"PSEUDO_LABEL.TEACHER": "frozen", "MULTI_LAYER_PROMPT.MODE": "replace"}),
])
def test_an_interrupted_run_continues_to_the_same_last_bit(prepare, tmp_path, trainer, values):
    whole = prepare(trainer, values)
    start = tuned_state(whole.model)
    whole_run, whole_rows = fit_in(tmp_path / "whole", whole)

    with pytest.raises(PowerCut):
        fit_in(tmp_path / "cut", prepare(trainer, values, Interrupted))
    assert find_checkpoint(tmp_path / "cut").name == "epoch0002.pt"
    rest = prepare(trainer, values)
    rest_run, rest_rows = fit_in(tmp_path / "cut", rest, resume=True)

    assert all(not torch.equal(tensor, start[name]) for name, tensor in tuned_state(whole.model).items())
    assert_same(tuned_state(rest.model), tuned_state(whole.model))
    assert [row["epoch"] for row in whole_run.rows()] == [0, 1, 2, 3, 4]
    assert_same([timeless(row) for row in rest_run.rows()], [timeless(row) for row in whole_run.rows()])
    assert timeless(rest_rows["best"]) == timeless(whole_rows["best"])
    for name in ("epoch0004.pt", "best.pt"):
        states = [load_checkpoint(run.checkpoints / name, {"trainer": trainer}) for run in (rest_run, whole_run)]
        assert_same(*map(timeless, states), name)


def test_a_run_cut_off_before_its_summary_trains_no_further(prepare, tmp_path):
    _, first = fit_in(tmp_path / "run", prepare("LaFTer"))
    run, second = fit_in(tmp_path / "run", prepare("LaFTer"), resume=True)
    assert timeless(second) == timeless(first) and len(run.rows()) == 5


def test_a_new_run_goes_on_from_anothers_checkpoint(prepare, tmp_path):
    """As --resume CHECKPOINT --exp-name another does: the new record starts with what follows."""
    whole = prepare("LaFTer", {"TRAIN.KEEP": 0})
    old, _ = fit_in(tmp_path / "old", whole)
    rest = prepare("LaFTer")
    rest.training.load(find_checkpoint(old.folder, 2))
    run = Run(tmp_path / "new", resume=True)
    run.rewind(2)
    result = fit(rest.training, rest.objective, rest.loaders["train"], rest.evaluation, rest.cfg, run)
    assert_same(tuned_state(rest.model), tuned_state(whole.model))
    assert [timeless(row) for row in run.rows()][-2:] == [timeless(row) for row in old.rows()][-2:]
    assert result["last"]["epoch"] == 4


def test_a_runs_rows(prepare, tmp_path):
    parts = prepare("MultiLayerLaFTer")
    run, result = fit_in(tmp_path / "run", parts)
    untrained, *rows = run.rows()
    assert set(untrained) == {"epoch", "val", "test"}
    assert [row["active_stages"] for row in rows] == [[3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert [row["lr"]["prompts"] for row in rows] == pytest.approx([5e-4, 2e-3, 3.5e-3, 5e-3])
    assert [row["lr"]["adapter"] for row in rows] == pytest.approx([25e-4, 10e-3, 17.5e-3, 25e-3])
    assert ["consistency" in row for row in rows] == [False, True, True, True]
    for row in rows:
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row.get("consistency", 0.0))
        assert 0 <= row["pseudo_label_accuracy"] <= 1
        assert sum(row["stage_weights"]) == pytest.approx(1) and len(row["sigma"]) == 4
    assert_same(json.loads(json.dumps(result["last"])), rows[-1])
    assert result["best"] == max(rows, key=lambda row: row["val"]["top1"])  # the first of equals; never by test
    assert result["untrained"] == untrained
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.pt", "epoch0004.pt"]
    assert_same(evaluate(parts.model, parts.evaluation), {split: rows[-1][split] for split in ("val", "test")})


def test_the_epochs_loss_and_accuracy_are_means_over_the_images(prepare):
    """18 images in batches of 5, 5, 5 and 3, at a rate that changes nothing."""
    parts = prepare("MultiLayerLaFTer", {"OPTIM.LR": 1e-12, "PSEUDO_LABEL.TEACHER": "frozen"})
    parts.training.epoch = 3
    parts.model.start_epoch(3)
    row = train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
    batch = parts.loaders["train"].load(range(18), epoch=3)  # the views of this epoch
    prediction = parts.model(batch["strong"])
    labels = parts.training.teacher.table
    expected = F.cross_entropy(prediction.logits, labels, label_smoothing=0.1).item()
    assert row["cross_entropy"] == pytest.approx(expected, abs=1e-5)
    shallow, deep = (torch.stack(list(part)) for part in (prediction.stage_logits[:-1], prediction.stage_logits[1:]))
    divergence = (deep.softmax(-1) * (deep.log_softmax(-1) - shallow.log_softmax(-1))).sum(-1).mean().item()
    assert row["consistency"] == pytest.approx(0.1 * divergence, abs=1e-5)
    right = labels == batch["label"]
    assert row["pseudo_label_accuracy"] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_two_accumulated_halves_are_one_full_batch(prepare, trainer):
    """Also where a step should see 45 images, but the epoch has 18."""
    changes = []
    for size, accumulate in ((18, 1), (9, 2), (9, 5)):
        parts = prepare(trainer, {"DATALOADER.TRAIN_X.BATCH_SIZE": size, "OPTIM.ACCUMULATE": accumulate,
                                  "OPTIM.NAME": "sgd", "OPTIM.LR": 0.1, "OPTIM.LR_SCHEDULER": "none"})
        before = tuned_state(parts.model)
        parts.model.start_epoch(3)
        train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
        changes.append({name: tensor - before[name] for name, tensor in tuned_state(parts.model).items()})
    for name, change in changes[0].items():
        assert change.any(), name
        for other in changes[1:]:
            assert (other[name] - change).norm() < 1e-3 * change.norm() + 1e-6, name


def test_the_teacher_follows_every_step(prepare):
    parts = prepare("LaFTer", {"PSEUDO_LABEL.TEACHER": "ema", "PSEUDO_LABEL.EMA_DECAY": 0.0})
    train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
    for name, average in parts.training.teacher.average.items():  # at decay 0 it is the student's
        assert torch.equal(average, parts.model.clip.visual.get_parameter(name)), name


def test_leftover_images_are_a_step_of_their_own(prepare):
    parts = prepare("LaFTer", {"OPTIM.ACCUMULATE": 3})  # 15 images and 3: two steps
    train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
    steps = {state["step"].item() for state in parts.training.optimizer.state.values()}
    assert steps == {2}
    assert all(parameter.grad is None for parameter in parts.model.parameters())


@pytest.mark.parametrize("trainer, poisoned, named", [("LaFTer", "adapter.weight", "cross_entropy"),
                                                      ("MultiLayerLaFTer", "stage_fusion", "cross_entropy"),
                                                      ("MultiLayerLaFTer", "multi_prompts.0", "consistency")])
def test_a_loss_that_is_not_finite_stops_by_name_and_saves_nothing(prepare, tmp_path, trainer, poisoned, named):
    parts = prepare(trainer)
    parts.training.epoch, parts.training.rows = 3, {"untrained": {}}
    with torch.no_grad():
        parts.model.get_parameter(poisoned).fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"epoch 4, step 1: .*{named}.*learning rates: .*prompts") as error:
        fit_in(tmp_path / "run", parts)
    assert ("consistency" in str(error.value)) == (poisoned == "multi_prompts.0")  # what is finite is not blamed
    assert parts.training.progress.step == 0 and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_half_precision_trains(prepare, trainer, precision):
    parts = prepare(trainer, {"MODEL.PRECISION": precision})
    parts.model.start_epoch(3)
    before = tuned_state(parts.model)
    for _ in range(3):  # the scaler may skip steps until its scale fits
        row = train_one_epoch(parts.training, parts.objective, parts.loaders["train"], parts.cfg)
        assert np.isfinite(row["loss"])
    after = tuned_state(parts.model)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in after.values())
    assert not [name for name in after if torch.equal(after[name], before[name])]


class Overflowing(Objective):
    """A loss that is finite, with a gradient that is not, in the steps that `bad` names."""

    bad, calls = range(10 ** 6), 0

    def __call__(self, *args):
        parts = super().__call__(*args)
        self.calls += 1
        if self.calls - 1 in self.bad:
            parts["cross_entropy"].register_hook(lambda gradient: gradient * float("inf"))
        return parts


def test_fp16_that_leaves_out_every_step_stops_by_name(prepare, tmp_path):
    parts = prepare("LaFTer", {"MODEL.PRECISION": "fp16", "OPTIM.MAX_EPOCH": 50}, Overflowing)
    before = tuned_state(parts.model)
    with pytest.raises(TrainingError, match="fp16 left out 20 steps in a row: .*gradient of .*prompts.*epoch 5, step 4:"
                                            ".*learning rates: .*--lr.*MODEL.PRECISION fp32") as caught:
        fit_in(tmp_path / "run", parts)
    assert type(caught.value) is TrainingError
    rows = Run(tmp_path / "run", resume=True).rows()
    assert [row.get("skipped_steps") for row in rows] == [None, 4, 4, 4, 4] and "grad_norm" not in rows[1]
    assert_same(tuned_state(parts.model), before)
    assert parts.training.scaler.get_scale() == 65_536 / 2 ** 20


def test_fp16_counts_the_steps_that_it_leaves_out(prepare, tmp_path, caplog):
    """Eighteen of every twenty, which is no error: the scale may yet fit."""
    class Mostly(Overflowing):
        bad = [step for step in range(40) if step % 20 < 18]

    caplog.set_level("INFO")
    parts = prepare("LaFTer", {"MODEL.PRECISION": "fp16", "OPTIM.MAX_EPOCH": 6}, Mostly)
    run, rows = fit_in(tmp_path / "run", parts)
    assert [row.get("skipped_steps") for row in run.rows()] == [None, 4, 4, 4, 4, 2, 4]
    assert ["grad_norm" in row for row in run.rows()] == [False] * 5 + [True, False]
    assert "epoch 5/6: " in caplog.text and "2 steps left out" in caplog.text


def test_copies_are_asynchronous_to_cuda_alone(prepare):
    """Elsewhere (MPS) such a copy may read memory that is in use for something else by then. The meta device stands
    for all that are neither."""
    class Copies(TorchDispatchMode):
        found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("device") == torch.device("meta"):
                self.found.append(kwargs.get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    loader = prepare("LaFTer").loaders["train"]
    assert not loader.pin_memory
    loader.device = torch.device("meta")
    with Copies() as copies:
        next(iter(loader))
    assert copies.found and not any(copies.found)


def test_two_crops_are_averaged(prepare):
    parts = prepare("LaFTer", {"TRAIN.SUPERVISION": "labels", "TRAIN.AUGMENT": True, "TRAIN.TWO_CROPS": True})
    batch = next(iter(parts.loaders["train"]))
    assert not torch.equal(batch["strong"], batch["strong2"])
    labels = choose_labels(parts.training.teacher, batch)
    assert torch.equal(labels, batch["label"])
    losses = [F.cross_entropy(parts.model(batch[view]).logits, labels, label_smoothing=0.1)
              for view in ("strong", "strong2")]
    mean = pytest.approx((losses[0].item() + losses[1].item()) / 2, rel=1e-5)
    found = step_loss(parts.model, parts.objective, {**batch, "target": labels})
    assert found["cross_entropy"].item() == mean
    assert train_on(parts.training, parts.objective, parts.cfg, batch)["cross_entropy"] == mean


def test_prediction_keeps_the_order_of_the_images(prepare):
    parts = prepare("MultiLayerLaFTer")
    outputs = predict(parts.model, parts.loaders["test"])
    views = parts.loaders["test"].load(range(12))["weak"]
    assert torch.allclose(outputs["probabilities"], parts.model(views).logits.softmax(-1), atol=1e-5)
    assert outputs["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_checkpoint_of_another_trainer_is_refused(prepare, tmp_path):
    fit_in(tmp_path / "run", prepare("LaFTer", {"OPTIM.MAX_EPOCH": 1}))
    other = prepare("MultiLayerLaFTer")
    with pytest.raises(InputError, match="another trainer: 'LaFTer', here 'MultiLayerLaFTer'"):
        other.training.load(find_checkpoint(tmp_path / "run"))
