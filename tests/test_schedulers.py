"""The learning rate of every group in every epoch, for every value of --scheduler, and the settings."""

import io
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from utils.errors import InputError
from utils.utils import ConstantWarmupScheduler, setup_lafter_training_utils, setup_text_training_utils

pytestmark = pytest.mark.filterwarnings("error")

LR = 2e-3
WARM = [0.1, 0.4, 0.7, 1, 1, 1, 1, 1]
PLAIN = [1.0] * 8
FACTORS = {  # of each group's own rate, in epochs 0 … 7 of 8
    "cosine": WARM, "multistep": WARM, "warmup": WARM,
    "coslr": [0.1, 0.4, 0.7, 1, 0.9045084972, 0.6545084972, 0.3454915028, 0.0954915028],
    "none": PLAIN, None: PLAIN, "anything": PLAIN,
}
OWN_RATES = {"prompts": LR, "adapter": 5 * LR, "layernorm": LR, "fusion": 0.1 * LR}


class Model(nn.Module):
    """A parameter of each kind, two of the adapter."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.LayerNorm(8))
        self.prompts = nn.Parameter(torch.zeros(1, 5, 4))
        self.nga = nn.ParameterList([torch.zeros(2)])
        self.adapter = nn.Linear(4, 3)


def settings(scheduler="cosine", epochs=8, **others):
    return SimpleNamespace(lr=LR, epochs=epochs, scheduler=scheduler, **others)


def rates(optimizer):
    """Each group's rate by name; groups of one name must agree."""
    result = {}
    for group in optimizer.param_groups:
        assert result.setdefault(group["name"], group["lr"]) == group["lr"]
    return result


def rates_by_epoch(optimizer, scheduler, epochs):
    """The rates in each epoch, and those after the last, in the order of a training loop."""
    rows = [rates(optimizer)]
    for _ in range(epochs):
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
        rows.append(rates(optimizer))
    return rows


@pytest.mark.parametrize("scheduler", FACTORS)
@pytest.mark.parametrize("optimizer_name", ["adamw", "adam", "sgd"])
def test_rates_of_every_epoch(scheduler, optimizer_name):
    args = settings(scheduler, optimizer=optimizer_name)
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    rows = rates_by_epoch(optimizer, schedule, 7)
    for row, factor in zip(rows, FACTORS[scheduler], strict=True):
        assert row == pytest.approx({name: factor * own for name, own in OWN_RATES.items()}, rel=1e-8)


@pytest.mark.parametrize("scheduler", FACTORS)
def test_rates_of_the_text_phase(scheduler):
    optimizer, schedule, _ = setup_text_training_utils(settings(scheduler), nn.Linear(4, 3, bias=False))
    rows = rates_by_epoch(optimizer, schedule, 7)
    assert [row["adapter"] for row in rows] == pytest.approx([LR * f for f in FACTORS[scheduler]], rel=1e-8)


def test_coslr_ends_at_zero_where_training_ends():
    optimizer, schedule, _ = setup_lafter_training_utils(settings("coslr", epochs=50), Model())
    rows = rates_by_epoch(optimizer, schedule, 50)
    assert rows[3] == pytest.approx(OWN_RATES)
    assert rows[49]["adapter"] == pytest.approx(5 * LR * (1 + math.cos(46 / 47 * math.pi)) / 2)
    assert rows[50] == pytest.approx(dict.fromkeys(OWN_RATES, 0.0), abs=1e-12)


def test_multistep_lowers_the_rate_at_the_epochs_of_the_run():
    args = settings("multistep", scheduler_epochs=[7, 5], scheduler_gamma=0.5)
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    factors = [row["adapter"] / (5 * LR) for row in rates_by_epoch(optimizer, schedule, 7)]
    assert factors == pytest.approx([0.1, 0.4, 0.7, 1, 1, 0.5, 0.5, 0.25])


def test_scheduler_epochs_are_of_multistep_alone():
    args = settings("cosine", scheduler_epochs=[5])
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    assert rates_by_epoch(optimizer, schedule, 7)[7] == pytest.approx(OWN_RATES)


@pytest.mark.parametrize("scheduler_epochs", [[3, 6], [0], [-2]])
def test_multistep_refuses_epochs_within_the_warmup(scheduler_epochs):
    args = settings("multistep", scheduler_epochs=scheduler_epochs)
    with pytest.raises(InputError, match="give epochs from 4 on"):
        setup_lafter_training_utils(args, Model())


@pytest.mark.parametrize("scheduler", ["cosine", "multistep", "warmup", "coslr"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_run_may_be_shorter_than_the_warmup(scheduler, epochs):
    optimizer, schedule, _ = setup_lafter_training_utils(settings(scheduler, epochs), Model())
    factors = [row["adapter"] / (5 * LR) for row in rates_by_epoch(optimizer, schedule, epochs)]
    assert factors[:epochs] == pytest.approx([0.1, 0.4, 0.7, 1.0][:epochs])


@pytest.mark.parametrize("warmup_epochs, warmup_lr, expected", [
    (0, None, [5, 5, 5, 5, 5, 5]),
    (1, None, [0.5, 5, 5, 5, 5, 5]),
    (5, None, [0.5, 1.4, 2.3, 3.2, 4.1, 5]),
    (4, 1.0 * LR, [1, 2, 3, 4, 5, 5]),
    (2, 0.0, [0, 2.5, 5, 5, 5, 5]),
])
def test_length_and_start_of_the_warmup(warmup_epochs, warmup_lr, expected):
    args = settings("warmup", warmup_epochs=warmup_epochs, warmup_lr=warmup_lr)
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    got = [row["adapter"] / LR for row in rates_by_epoch(optimizer, schedule, 5)]
    assert got == pytest.approx(expected)


def test_a_constant_warmup_stays_at_its_start():
    args = settings("warmup", warmup_epochs=2, warmup_lr=1.0 * LR, warmup_type="constant")
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    assert [row["adapter"] / LR for row in rates_by_epoch(optimizer, schedule, 3)] == pytest.approx([1, 1, 5, 5])
    with pytest.raises(InputError, match="warmup_type"):
        setup_lafter_training_utils(settings("warmup", warmup_type="cosine"), Model())


def test_the_wrapped_scheduler_counts_from_the_end_of_the_warmup():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "name": "a"}], lr=8.0)
    schedule = ConstantWarmupScheduler(optimizer, StepLR(optimizer, step_size=2, gamma=0.5), warmup_epochs=2)
    got = [row["a"] for row in rates_by_epoch(optimizer, schedule, 7)]
    assert got == pytest.approx([0.8, 4.4, 8, 8, 4, 4, 2, 2])


@pytest.mark.parametrize("scheduler", [*FACTORS, "multistep with epochs"])
@pytest.mark.parametrize("done", range(8))
@pytest.mark.parametrize("scheduler_first", [False, True])
def test_a_run_resumed_after_any_epoch_has_the_same_rates(scheduler, done, scheduler_first):
    args = settings(scheduler)
    if scheduler == "multistep with epochs":
        args = settings("multistep", scheduler_epochs=[5, 7])
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    rates_by_epoch(optimizer, schedule, done)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], file)
    rest = rates_by_epoch(optimizer, schedule, 8 - done)

    file.seek(0)
    states = torch.load(file, weights_only=True)
    optimizer, schedule, _ = setup_lafter_training_utils(args, Model())
    pairs = list(zip((optimizer, schedule), states))
    for part, state in reversed(pairs) if scheduler_first else pairs:
        part.load_state_dict(state)
    assert rates_by_epoch(optimizer, schedule, 8 - done) == rest


def test_loading_leaves_the_state_as_it_was():
    _, schedule, _ = setup_lafter_training_utils(settings(), Model())
    state = schedule.state_dict()
    schedule.load_state_dict(state)
    assert state["constant_scheduler"]["last_epoch"] == 0
    assert "optimizer" not in state and "optimizer" not in state["constant_scheduler"]


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam),
                                        ("sgd", torch.optim.SGD), (None, torch.optim.AdamW)])
def test_optimizers(name, kind):
    optimizer, _, _ = setup_lafter_training_utils(settings(optimizer=name, momentum=0.8), Model())
    assert type(optimizer) is kind
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_the_criterion_smooths_labels():
    logits, label = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    log_sum = math.log(math.exp(2) + 2)
    for smoothing, args in ((0.1, settings()), (0.4, settings(label_smoothing=0.4))):
        for setup in (setup_lafter_training_utils, setup_text_training_utils):
            _, _, criterion = setup(args, Model())
            expected = log_sum - 2 * (1 - smoothing + smoothing / 3)
            assert criterion(logits, label).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values, reason", [
    ({"lr": 0.0}, "learning rate"), ({"lr": -1e-3}, "learning rate"), ({"lr": float("nan")}, "learning rate"),
    ({"lr": "fast"}, "learning rate"), ({"epochs": 0}, "epochs"), ({"epochs": 2.5}, "epochs"),
    ({"optimizer": "lion"}, "adamw, adam, sgd"), ({"weight_decay": -0.1}, "weight_decay"),
    ({"warmup_epochs": -1}, "warmup_epochs"), ({"warmup_epochs": 1.5}, "warmup_epochs"),
    ({"label_smoothing": 1.5}, "label_smoothing"), ({"adapter_lr_scale": -5.0}, "adapter_lr_scale"),
])
def test_bad_settings_are_refused(values, reason):
    args = SimpleNamespace(**{"lr": LR, "epochs": 8, "scheduler": "cosine", **values})
    for setup in (setup_lafter_training_utils, setup_text_training_utils):
        with pytest.raises(InputError, match=reason):
            setup(args, Model())


@pytest.mark.parametrize("name", ["lr", "epochs", "scheduler"])
def test_a_missing_setting_is_named(name):
    args = settings()
    delattr(args, name)
    with pytest.raises(InputError, match=f"lack '{name}'"):
        setup_lafter_training_utils(args, Model())


@pytest.mark.parametrize("args, words", [
    (settings("cosine"), "AdamW with a warm-up over 3 epochs, then constant rates (scheduler cosine)"),
    (settings("multistep", scheduler_epochs=[5, 7]), "then rates times 0.1 at epochs 5, 7 (scheduler multi"),
    (settings("coslr"), "a warm-up over 3 epochs, then a cosine decay to 0 (scheduler coslr)"),
    (settings("none"), "AdamW with constant rates without warm-up (scheduler none)"),
])
def test_one_line_says_what_was_built(args, words, caplog):
    with caplog.at_level(logging.INFO, logger="utils.utils"):
        setup_lafter_training_utils(args, Model())
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]
    assert "prompts 20" in caplog.messages[0] and "classifier 15" in caplog.messages[0]
    assert "layernorm 16" in caplog.messages[0] and "fusion 2" in caplog.messages[0]
