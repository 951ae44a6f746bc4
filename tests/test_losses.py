"""Values and gradients of the losses, against hand-computed ones."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.errors import InputError
from utils.losses import DualTaskLoss, MultiStageConsistencyLoss, dual_task_target


def logits_of(*rows):
    """Logits whose softmax is these rows."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_consistency_of_two_stages():
    shallow, deep = logits_of([0.5, 0.5], [0.9, 0.1]), logits_of([0.75, 0.25], [0.2, 0.8])
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.2 * math.log(2 / 9) + 0.8 * math.log(8)
    got = MultiStageConsistencyLoss(alpha=0.1)([shallow, deep]).item()
    assert got == pytest.approx(0.1 * (first + second) / 2, rel=1e-12)
    assert got == pytest.approx(0.0746775, abs=1e-7)


def test_consistency_is_the_mean_over_neighbouring_pairs():
    stages = [logits_of([0.5, 0.5]), logits_of([0.75, 0.25]), logits_of([0.25, 0.75])]
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL(stage 2 ‖ 1)
    second = 0.25 * math.log(1 / 3) + 0.75 * math.log(3)  # KL(stage 3 ‖ 2)
    got = MultiStageConsistencyLoss(alpha=2.0)(stages).item()
    assert got == pytest.approx(first + second, rel=1e-12)


def test_consistency_of_equal_stages_is_zero():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert MultiStageConsistencyLoss()([logits, logits + 3.0]).item() == pytest.approx(0, abs=1e-7)


def test_consistency_teaches_the_shallower_stage_only():
    shallow = logits_of([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]).requires_grad_()
    deep = logits_of([0.6, 0.2, 0.2], [0.3, 0.3, 0.4]).requires_grad_()
    MultiStageConsistencyLoss(alpha=0.1)([shallow, deep]).backward()
    assert deep.grad is None
    expected = 0.1 * (shallow.softmax(-1) - deep.softmax(-1)).detach() / 2  # the gradient of a KL is p − t
    torch.testing.assert_close(shallow.grad, expected, atol=1e-12, rtol=0)


def test_in_the_middle_a_stage_is_taught_but_does_not_follow_the_shallower():
    stages = [logits_of([0.5, 0.5]), logits_of([0.75, 0.25]).requires_grad_(), logits_of([0.25, 0.75])]
    MultiStageConsistencyLoss(alpha=1.0)(stages).backward()
    expected = torch.tensor([[0.25, -0.25]], dtype=torch.float64)  # half of p − t, for two pairs
    torch.testing.assert_close(stages[1].grad, expected)


def test_consistency_of_one_stage_is_zero_and_still_in_the_graph():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = MultiStageConsistencyLoss()([logits])
    loss.backward()
    assert loss.item() == 0 and loss.shape == ()
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_consistency_in_half_precision_is_computed_in_single():
    stages = [torch.tensor([[2.0, -1.0]]).half(), torch.tensor([[1.0, 0.5]]).half()]
    single = MultiStageConsistencyLoss()([stage.float() for stage in stages])
    assert torch.equal(MultiStageConsistencyLoss()(stages), single)


def test_consistency_refuses():
    with pytest.raises(InputError, match="one shape"):
        MultiStageConsistencyLoss()([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(InputError, match="none"):
        MultiStageConsistencyLoss()([])
    with pytest.raises(InputError, match="-0.1"):
        MultiStageConsistencyLoss(-0.1)


def test_target_mixes_label_and_distribution():
    labels = torch.tensor([2, 0])
    distributions = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    expected = torch.tensor([[0.4, 0.24, 0.36], [0.28, 0.16, 0.56]])
    torch.testing.assert_close(dual_task_target(labels, distributions, 0.8), expected)
    torch.testing.assert_close(dual_task_target(labels, distributions, 0.0), F.one_hot(labels, 3).float())
    torch.testing.assert_close(dual_task_target(labels, distributions, 1.0), distributions)


def test_dual_task_by_hand():
    """t = .2 · (0, 1) + .8 · (.5, .5) = (.4, .6); p = (.75, .25)."""
    even = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    got = DualTaskLoss(0.8)(logits_of([0.75, 0.25]), torch.tensor([1]), even)
    assert got.item() == pytest.approx(0.4 * math.log(0.4 / 0.75) + 0.6 * math.log(0.6 / 0.25), rel=1e-12)
    assert got.item() == pytest.approx(0.2738378, abs=1e-7)


def dual_task_batch():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(7, 6, generator=generator)
    labels = torch.randint(6, (7,), generator=generator)
    distributions = torch.rand(7, 6, generator=generator)
    distributions[:, 2] = 0  # votes often leave classes out
    return logits.requires_grad_(), labels, distributions / distributions.sum(1, keepdim=True)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8, 1.0])
def test_dual_task_gradient_is_p_minus_t(weight):
    logits, labels, distributions = dual_task_batch()
    DualTaskLoss(weight)(logits, labels, distributions).backward()
    target = dual_task_target(labels, distributions, weight)
    torch.testing.assert_close(7 * logits.grad, logits.softmax(-1).detach() - target, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.8, 1.0])
def test_dual_task_has_the_gradient_of_the_two_losses(weight):
    logits, labels, distributions = dual_task_batch()
    (mine,) = torch.autograd.grad(DualTaskLoss(weight)(logits, labels, distributions), logits)
    divergence = F.kl_div(logits.log_softmax(-1), distributions, reduction="batchmean")
    (two,) = torch.autograd.grad((1 - weight) * F.cross_entropy(logits, labels) + weight * divergence, logits)
    torch.testing.assert_close(mine, two, atol=1e-6, rtol=0)


def test_dual_task_without_distributions_is_cross_entropy():
    logits, labels, distributions = dual_task_batch()
    loss = DualTaskLoss(0.0)(logits, labels, distributions)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_dual_task_is_zero_at_the_target():
    labels, distributions = torch.tensor([0]), torch.tensor([[0.5, 0.25, 0.25]])
    for temperature in (1.0, 2.5):
        logits = dual_task_target(labels, distributions, 0.8).log()
        loss = DualTaskLoss(0.8, temperature)(logits, labels, distributions)
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_temperature_acts_on_both_sides():
    """T = 2, λ = 1, l = (.8, .2): t ∝ (√.8, √.2), so (2/3, 1/3); logits (2 ln 3, 0): p = (3/4, 1/4)."""
    logits = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    loss = DualTaskLoss(1.0, temperature=2.0)(logits, torch.tensor([0]), torch.tensor([[0.8, 0.2]]).double())
    expected = 4 * (2 / 3 * math.log(8 / 9) + 1 / 3 * math.log(4 / 3))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * torch.tensor([[1 / 12, -1 / 12]]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight, temperature", [
    (-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.8, 0.0), (0.8, -1.0), (0.8, math.nan)])
def test_dual_task_refuses_settings(weight, temperature):
    with pytest.raises(InputError):
        DualTaskLoss(weight, temperature)


@pytest.mark.parametrize("labels, distributions", [
    (torch.zeros(2, dtype=torch.long), torch.ones(2, 4) / 4),
    (torch.zeros(3, dtype=torch.long), torch.ones(2, 3) / 3),
])
def test_dual_task_refuses_shapes(labels, distributions):
    with pytest.raises(InputError, match="shape|needs labels"):
        DualTaskLoss()(torch.zeros(2, 3), labels, distributions)
