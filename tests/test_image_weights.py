"""What pseudo-labelled images weigh, soft labels, and fairness of the mean prediction."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import CLASSNAMES, note_gradients, train_on
from trainers.image_weights import ImageWeights, nearest_rows
from trainers.LaFTer import Prediction
from trainers.objective import PARTS, Objective
from trainers.training import mean_prediction
from utils.losses import DualTaskLoss, fairness

COUNT, CLASSES = 200, 4


def made(**values) -> ImageWeights:
    weights = ImageWeights(SimpleNamespace(**{"WEIGHT": "none", "SHARE": 1.0, "NEIGHBOURS": 3, **values}), epochs=3)
    weights.fill(F.normalize(torch.randn(COUNT, 8)), torch.arange(COUNT), COUNT, CLASSES)
    return weights


@pytest.fixture
def logits() -> torch.Tensor:
    return 0.25 + 0.02 * torch.randn(COUNT, CLASSES)


def test_confidence_is_the_labels_probability(logits):
    weights = made(WEIGHT="confidence")
    weights.follow(logits)
    told = weights.weights(logits[:50], torch.arange(50), torch.zeros(COUNT + 1))
    assert torch.equal(told, (logits[:50] / weights.temperature).softmax(1).amax(1))
    assert weights.probabilities(logits).amax(1).mean().item() == pytest.approx(0.9, abs=1e-3)


def test_the_share_of_the_surest_rises_in_each_class_to_all(logits):
    logits[:, 0] += 0.01  # so that classes are of unequal size
    weights, index, labels = made(SHARE=0.5), torch.arange(COUNT), logits.argmax(1)
    for share in (0.5, 0.75, 1.0, 1.0):
        weights.follow(logits)
        told, sure = weights.weights(logits, index, index), weights.probabilities(logits).amax(1)
        assert set(told.tolist()) <= {0.0, 1.0}
        for label in range(CLASSES):
            own = labels == label
            assert told[own].mean().item() == pytest.approx(share, abs=1 / own.sum().item())
            assert not (told == 0)[own].any() or sure[own & (told == 0)].max() < sure[own & (told == 1)].min()


def test_neighbours_weigh_by_how_many_of_them_agree():
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 2.0, 2.1, 2.2, 2.3])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    weights = made(WEIGHT="neighbours")
    index = torch.tensor([8, 1, 2, 3, 4, 5, 6, 7])  # of nine images the first could not be read
    weights.fill(features, index, 9, 2)
    assert sorted(weights.nearest[8].tolist()) == [1, 2, 3] and weights.nearest[0].tolist() == [-1, -1, -1]
    logits = torch.eye(2)[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])]
    weights.follow(logits)
    latest = torch.tensor([-1, 0, 1, 1, 1, 1, 1, 1, 0, -1])  # the last is no image
    assert weights.weights(logits, index, latest).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])


def test_the_nearest_are_found_part_by_part(monkeypatch):
    features = F.normalize(torch.randn(50, 8), dim=1)
    similarity = features @ features.t() - 3 * torch.eye(50)
    expected = similarity.argsort(descending=True)[:, :6]
    assert torch.equal(nearest_rows(features, 6), expected)
    monkeypatch.setattr("trainers.image_weights.PRODUCTS", 50 * 7)
    assert torch.equal(nearest_rows(features, 6), expected)


def test_fairness_and_its_gradient_add_up_over_parts_of_a_batch():
    logits = torch.randn(12, CLASSES, dtype=torch.double, requires_grad=True)
    mean = logits.softmax(1).mean(0)
    direct = -mean.log().mean()
    (expected,) = torch.autograd.grad(direct, logits)
    parts = [(part, fairness(part, mean)) for part in logits.split([5, 5, 2])]
    whole = sum(value * (len(part) / 12) for part, value in parts)
    assert whole.item() == pytest.approx(direct.item())
    assert torch.allclose(torch.autograd.grad(whole, logits)[0], expected)


def test_a_training_step_is_fair_to_the_whole_batch_however_it_is_divided(prepare):
    gradients = []
    for size in (2, 5):
        parts = prepare("LaFTer", {"PSEUDO_LABEL.FAIRNESS": 10.0, "DATALOADER.TRAIN_X.MICRO_BATCH": size})
        batch = parts.loaders["train"].load([0, 4, 9, 12, 16])
        found = note_gradients(parts.training)
        logits = parts.model(batch["strong"]).logits
        mean = mean_prediction(parts.training, parts.cfg, batch, 5)
        assert torch.allclose(mean, logits.softmax(1).mean(0), atol=1e-6)
        row = train_on(parts.training, parts.objective, parts.cfg, batch)
        assert "fairness" in PARTS  # so that the log tells it
        assert row["fairness"] == pytest.approx(-10 * mean.log().mean().item(), rel=1e-4)
        gradients.append(found)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5 * gradients[1][name].abs().max()), name


def test_weights_divide_a_mean_over_all_images(make_cfg):
    cfg = make_cfg({"OPTIM.LABEL_SMOOTHING": 0.1}, "LaFTer")
    objective = Objective(torch.nn.CrossEntropyLoss(label_smoothing=0.1), cfg, CLASSNAMES)
    logits, labels, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6)
    told = objective(Prediction(logits), labels, {"weight": weight})["cross_entropy"]
    each = torch.stack([objective.criterion(logits[i:i + 1], labels[i:i + 1]) for i in range(6)])
    assert told.item() == pytest.approx((weight * each).sum().item() / 6)
    plain = objective(Prediction(logits), labels, {"weight": torch.ones(6)})["cross_entropy"]
    assert plain.item() == pytest.approx(objective(Prediction(logits), labels, {})["cross_entropy"].item())
    target = torch.rand(6, 3).softmax(1)
    for temperature in (1.0, 2.0):
        loss = DualTaskLoss(0.8, temperature)
        each = torch.stack([loss(logits[i:i + 1], labels[i:i + 1], target[i:i + 1]) for i in range(6)])
        assert loss(logits, labels, target, weight).item() == pytest.approx((weight * each).sum().item() / 6, rel=1e-4)


def test_soft_labels_mix_the_distributions_of_the_classes(make_cfg):
    settings = {"DUAL_TASK.ENABLED": True, "PSEUDO_LABEL.SOFT": True, "DATASET.CIRCLE": ["blue", "green", "red"]}
    objective = Objective(torch.nn.CrossEntropyLoss(), make_cfg(settings, "LaFTer"), CLASSNAMES)
    logits = torch.randn(2, 3, requires_grad=True)
    probabilities = torch.tensor([[1.0, 0, 0], [0.5, 0.3, 0.2]])
    labels = torch.tensor([0, 0])
    loss = objective(Prediction(logits), labels, {"probabilities": probabilities})["dual_task"]
    target = 0.2 * F.one_hot(labels, 3) + 0.8 * probabilities @ objective.generated
    assert torch.allclose(torch.autograd.grad(loss, logits)[0], (logits.softmax(1) - target) / 2, atol=1e-6)


@pytest.mark.parametrize("teacher", ["shared", "frozen"])
def test_a_whole_epoch_with_soft_labels_and_weights(prepare, teacher):
    parts = prepare("LaFTer", {"PSEUDO_LABEL.TEACHER": teacher, "PSEUDO_LABEL.WEIGHT": "confidence",
                               "PSEUDO_LABEL.SOFT": True, "PSEUDO_LABEL.SHARE": 0.5, "DUAL_TASK.ENABLED": True,
                               "DATASET.CIRCLE": CLASSNAMES, "DATASET.DISTRIBUTION_STRATEGY": "strategy1"})
    batch = parts.loaders["train"].load(range(18))
    labels = parts.training.teacher.labels(batch)
    assert torch.equal(batch["probabilities"].argmax(1), labels) and "uncalibrated" not in batch
    assert (batch["weight"] == 0).sum() > 5
    row = train_on(parts.training, parts.objective, parts.cfg, parts.loaders["train"].load(range(18)))
    assert row["pseudo_label_weight"] == pytest.approx(batch["weight"].mean().item(), rel=1e-5)
