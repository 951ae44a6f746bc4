"""Metrics against values computed by hand."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from utils import metrics
from utils.errors import InputError

# predicted 0, 1, 1, 2, 0, 0; class 3 never occurs
PROBS = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1], [0.1, 0.8, 0.05, 0.05],
                      [0.0, 0.0, 1.0, 0.0], [0.4, 0.3, 0.2, 0.1], [0.9, 0.1, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 0, 2, 2, 0])

P = [[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]]
T = [[0.3, 0.3, 0.4, 0.0], [1.0, 0.0, 0.0, 0.0]]
BY_HAND = {  # of the two rows
    "chebyshev": (0.2, 0.75),
    "clark": (math.sqrt(0.25 ** 2 + (1 / 3) ** 2), math.sqrt(0.6 ** 2 + 3)),
    "canberra": (0.25 + 1 / 3, 0.6 + 3),
    "kl": (0.3 * math.log(0.6) + 0.4 * math.log(2), math.log(4)),
    "cosine": (0.32 / math.sqrt(0.38 * 0.34), 0.5),
    "intersection": (0.8, 0.25),
}


@pytest.fixture(params=["torch", "half", "numpy"])
def as_given(request):
    """Both kinds of arrays serve, half precision too."""
    return {"torch": torch.tensor, "numpy": np.array,
            "half": lambda rows: torch.tensor(rows, dtype=torch.float16)}[request.param]


@pytest.mark.parametrize("name", BY_HAND)
def test_distribution_metrics_by_hand(name, as_given):
    metric = getattr(metrics, name)
    for row in (0, 1):
        got = metric(as_given(P[row:row + 1]), as_given(T[row:row + 1]))
        assert got == pytest.approx(BY_HAND[name][row], abs=2e-3)
    assert metric(np.array(P), np.array(T)) == pytest.approx(sum(BY_HAND[name]) / 2, rel=1e-12)


def test_six_distribution_metrics_and_their_normalised_forms():
    got = metrics.distribution_metrics(np.array(P), np.array(T))
    expected = {name: sum(rows) / 2 for name, rows in BY_HAND.items()}
    expected |= {"clark_normalized": expected["clark"] / 2, "canberra_normalized": expected["canberra"] / 4}
    assert got == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in got.values())


@pytest.mark.parametrize("row", [[0.1, 0.2, 0.7], [1.0, 0.0, 0.0], [1e-30, 0.5, 0.5]])
def test_a_perfect_prediction(row):
    got = metrics.distribution_metrics(np.array([row]), np.array([row]))
    assert got.pop("cosine") == pytest.approx(1, rel=1e-12)
    assert got.pop("intersection") == pytest.approx(1, rel=1e-12)
    assert got == dict.fromkeys(got, 0.0) and len(got) == 6


def test_the_worst_prediction():
    got = metrics.distribution_metrics(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert got.pop("kl") == pytest.approx(-math.log(1e-12))  # the bound that EPSILON sets
    assert got == pytest.approx({"chebyshev": 1, "clark": math.sqrt(2), "clark_normalized": 1, "canberra": 2,
                                 "canberra_normalized": 1, "cosine": 0, "intersection": 0})


def test_kl_is_of_the_target_from_the_prediction():
    p, t = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    assert metrics.kl(p, t) == pytest.approx(0.5 * math.log(0.25 / 0.09), rel=1e-12)
    assert metrics.kl(t, p) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-12)


def test_confusion_matrix():
    assert metrics.confusion_matrix(PROBS, LABELS).tolist() == [
        [2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_accuracies():
    assert metrics.top1(PROBS, LABELS) == 4 / 6
    assert metrics.per_class_accuracy(PROBS, LABELS) == [2 / 3, 1.0, 0.5, None]
    assert metrics.top1(PROBS.numpy(), LABELS.numpy()) == 4 / 6


def test_of_equal_classes_the_first_is_predicted():
    assert metrics.top1(np.full((2, 2), 0.5), np.array([0, 1])) == 0.5


def test_macro_f1_leaves_out_what_occurs_nowhere():
    """Class 0: TP 2, FP 1, FN 1; class 1: TP 1, FP 1, FN 0; class 2: TP 1, FP 0, FN 1; class 3: none."""
    assert metrics.macro_f1(PROBS, LABELS) == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3, rel=1e-12)
    probs = torch.eye(3)[[0, 0, 1, 0]]  # class 2 is only a label, with F1 0
    assert metrics.macro_f1(probs, torch.tensor([0, 0, 1, 2])) == pytest.approx((0.8 + 1 + 0) / 3, rel=1e-12)


def test_calibration_error():
    """Confidences .7 right, .5 right, .8 wrong, 1 right, .4 wrong, .9 right; of two bins one has .5, .4."""
    probs = PROBS.double().round(decimals=3)
    fifteen = (0.3 + 0.5 + 0.8 + 0.0 + 0.4 + 0.1) / 6  # each alone in its bin
    assert metrics.expected_calibration_error(probs, LABELS) == pytest.approx(fifteen, rel=1e-9)
    two = (abs(0.5 - 0.4) + abs(0.3 - 0.8 + 0.0 + 0.1)) / 6
    assert metrics.expected_calibration_error(probs, LABELS, bins=2) == pytest.approx(two, rel=1e-9)
    edge = np.array([[0.5, 0.5], [0.9, 0.1]])  # .5 belongs to the lower bin
    got = metrics.expected_calibration_error(edge, np.array([0, 1]), bins=2)
    assert got == pytest.approx((0.5 + 0.9) / 2)
    one = abs(4 - 4.3) / 6
    assert metrics.expected_calibration_error(probs, LABELS, bins=1) == pytest.approx(one, rel=1e-9)
    with pytest.raises(InputError, match="one bin"):
        metrics.expected_calibration_error(probs, LABELS, bins=0)


def test_the_bins_of_a_reliability_diagram():
    """The same six: .4, .5, .7, .8, .9 and 1 are in the bins 6, 8, 11, 12, 14 and 15 of fifteen."""
    got = metrics.reliability(PROBS.double().round(decimals=3), LABELS)
    assert {place: row for place, row in enumerate(got, start=1) if row[0]} == {
        6: [1, 0, pytest.approx(0.4)], 8: [1, 1, pytest.approx(0.5)], 11: [1, 1, pytest.approx(0.7)],
        12: [1, 0, pytest.approx(0.8)], 14: [1, 1, pytest.approx(0.9)], 15: [1, 1, pytest.approx(1.0)]}
    assert len(got) == 15 and got[0] == [0, 0, 0]
    twice = metrics.reliability(torch.cat([PROBS, PROBS]), torch.cat([LABELS, LABELS]))
    error = sum(abs(right - confidence) for _, right, confidence in twice) / sum(images for images, *_ in twice)
    assert error == pytest.approx(metrics.expected_calibration_error(PROBS, LABELS), rel=1e-9)


def test_kl_by_temperature():
    """p ∝ t²: at T = 2 it is t, at T = 1 it is as given, and at the highest it nears the uniform one."""
    targets = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    squares = targets ** 2 / (targets ** 2).sum(1, keepdims=True)
    got = dict(zip(metrics.TEMPERATURES, metrics.kl_by_temperature(squares, targets)))
    assert got[2.0] == pytest.approx(0, abs=1e-12) and got[1.0] == pytest.approx(metrics.kl(squares, targets))
    assert min(got) == 0.25 and max(got) == 8.0 and got[8.0] < metrics.kl(np.full((2, 3), 1 / 3), targets)
    onehot = metrics.kl_by_temperature(torch.eye(3)[:2], targets)  # ln p is that of EPSILON: finite
    assert all(map(math.isfinite, onehot)) and onehot[0] > onehot[-1]


def test_score_of_labelled_images():
    distributions = PROBS.roll(1, 0)
    got = metrics.score(PROBS, LABELS, distributions)
    assert got == {**metrics.classification_metrics(PROBS, LABELS),
                   **metrics.distribution_metrics(PROBS, distributions), "predicted": [3, 2, 1, 0],
                   "kl_by_temperature": metrics.kl_by_temperature(PROBS, distributions)}
    assert set(metrics.score(PROBS, LABELS)) == {"top1", "macro_f1", "ece", "per_class_accuracy", "reliability",
                                                 "confusion_matrix", "predicted"}
    assert got["confusion_matrix"] == metrics.confusion_matrix(PROBS, LABELS).tolist()
    assert json.loads(json.dumps(got)) == got


def test_a_record_holds_no_huge_confusion_matrix():
    for classes, there in ((128, True), (129, False)):
        assert ("confusion_matrix" in metrics.score(torch.eye(classes), torch.arange(classes))) == there


class WholeTables(TorchDispatchMode):
    """Lists the operations that read or make a tensor of `size` elements."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        if any(tensor.numel() == self.size for tensor in tensors):
            self.seen.append((func.name(), isinstance(result, torch.Tensor) and result.numel() == self.size))
        return result


@pytest.mark.parametrize("labelled", [True, False])
def test_the_table_is_read_few_times_and_never_copied(labelled):
    """50,000 images of 1,000 classes are 200 MB, and are scored in every epoch."""
    probs = torch.rand(60, 50).softmax(1)
    labels, reference = torch.arange(60) % 50 if labelled else torch.full((60,), -1), probs.argmax(1)
    with WholeTables(60 * 50) as tables:
        metrics.score(probs, labels, reference=reference)
    reads = [name for name, whole in tables.seen if name != "aten::detach"]
    assert 1 <= len(reads) <= 3 and not any(whole for name, whole in tables.seen if name != "aten::detach"), tables.seen


def test_many_classes_against_counting_one_by_one():
    """One class leads with a known share, the others have equal parts of the rest."""
    rng = np.random.default_rng(0)
    images, classes, bins = 400, 300, 15
    predicted, confidence = rng.integers(classes, size=images), rng.uniform(0.05, 0.999, images)
    labels = np.where(rng.random(images) < 0.6, predicted, rng.integers(classes, size=images))
    probs = np.repeat(((1 - confidence) / (classes - 1))[:, None], classes, 1)
    probs[np.arange(images), predicted] = confidence
    gaps, f1 = [0.0] * bins, []
    for p, c, y in zip(predicted, confidence, labels):
        gaps[next(b for b in range(bins) if b / bins < c <= (b + 1) / bins)] += (p == y) - c
    for k in sorted({*predicted.tolist(), *labels.tolist()}):
        hits = sum((predicted == k) & (labels == k))
        f1.append(2 * hits / (sum(predicted == k) + sum(labels == k)))
    got = metrics.score(torch.from_numpy(probs), torch.from_numpy(labels))
    assert got["ece"] == pytest.approx(sum(map(abs, gaps)) / images, rel=1e-9)
    assert got["macro_f1"] == pytest.approx(np.mean(f1), rel=1e-9)
    assert got["top1"] == pytest.approx((predicted == labels).mean(), rel=1e-12)
    assert metrics.score(torch.from_numpy(probs).float(), torch.from_numpy(labels))["ece"] == pytest.approx(
        got["ece"], abs=1e-6)


def test_score_leaves_out_unlabelled_images():
    labels = torch.tensor([0, -1, -1, 2, 2, 0])
    got = metrics.score(PROBS, labels, PROBS)
    assert got["top1"] == 3 / 4 and got["per_class_accuracy"] == [1.0, None, 0.5, None]
    assert got["intersection"] == pytest.approx(1)


def test_score_without_any_label_is_the_confidence():
    got = metrics.score(PROBS, torch.full((6,), -1))
    assert got == {"confidence": pytest.approx((0.7 + 0.5 + 0.8 + 1.0 + 0.4 + 0.9) / 6, rel=1e-6),
                   "predicted": [3, 2, 1, 0]}


@pytest.mark.parametrize("probs, labels, reason", [
    (torch.empty(0, 3), torch.empty(0, dtype=torch.long), "not empty"),
    (torch.ones(3), torch.zeros(3, dtype=torch.long), r"\[samples, classes\]"),
    (torch.full((1, 2), math.nan), torch.tensor([0]), "finite"),
    (torch.tensor([[1.0, math.inf]]), torch.tensor([0]), "finite"),
    (torch.tensor([[1.2, -0.2]]), torch.tensor([0]), "not negative"),
    (torch.tensor([[3.0, 1.0]]), torch.tensor([0]), "sum 1"),
    (PROBS, LABELS[:5], "6 integers"),
    (PROBS, LABELS.double(), "integers"),
    (PROBS, torch.full((6,), 4), "0 … 3"),
    (PROBS, torch.full((6,), -1), "0 … 3"),
])
def test_classification_metrics_refuse(probs, labels, reason):
    for metric in (metrics.top1, metrics.macro_f1, metrics.per_class_accuracy, metrics.confusion_matrix,
                   metrics.expected_calibration_error, metrics.reliability, metrics.classification_metrics):
        with pytest.raises(InputError, match=reason):
            metric(probs, labels)


@pytest.mark.parametrize("probs, targets, reason", [
    (PROBS, PROBS[:5], "one shape"),
    (PROBS, torch.full((6, 4), math.nan), "target distributions must be probabilities"),
    (torch.full((6, 4), math.nan), PROBS, "predictions must be probabilities"),
    (torch.empty(0, 4), torch.empty(0, 4), "not empty"),
    (PROBS, torch.zeros(6, 4), "sum 1"),
])
@pytest.mark.parametrize("name", BY_HAND)
def test_distribution_metrics_refuse(name, probs, targets, reason):
    with pytest.raises(InputError, match=reason):
        getattr(metrics, name)(probs, targets)


@pytest.mark.parametrize("counts, top1, expected", [
    ([1, 57, 0], None, 1), ([0, 19, 1], None, 1), ([0, 18, 2], None, None), ([0, 19, 0], None, None),  # too few
    ([58], None, None), ([1, 57, 0], 0.3, 1), ([1, 57, 0], 0.98, None),  # the labels say so too
])
def test_one_class_that_takes_nearly_all(counts, top1, expected):
    assert metrics.one_sided({"predicted": counts} | ({} if top1 is None else {"top1": top1})) == expected
    assert metrics.one_sided({"top1": 0.5}) is None  # a record from before the counts
