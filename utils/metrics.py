"""Metrics of classification and of distribution learning.

All take probabilities [n, classes] (torch or numpy, rows that sum to 1) and compute on the CPU, in double precision
once classes are chosen. Distribution metrics are means over the samples of a distance or similarity of prediction p and
target t; a term 0/0 counts as 0. Wrong shapes, empty input and values that are no probabilities raise
InputError.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data.items import UNKNOWN
from .errors import InputError

EPSILON = 1e-12  # the least probability inside KL's logarithm
CONFUSION_CLASSES = 128  # with more classes the confusion matrix is too large for a record with a row per epoch
BINS = 15  # of the highest probability, for calibration
TEMPERATURES = tuple(2 ** (half / 2) for half in range(-4, 7))  # ¼ to 8, of `kl_by_temperature`

Array = Tensor | np.ndarray


def _probabilities(values: Array, what: str = "predictions") -> Tensor:
    """The table on the CPU, in its own precision: a pass over 50,000 × 1,000 of them costs less than a copy."""
    table = (values if isinstance(values, Tensor) else torch.tensor(values)).detach().cpu()
    if table.ndim != 2 or not table.numel():
        raise InputError(f"{what} must be [samples, classes] and not empty, not {tuple(table.shape)}")
    # half precision rounds a row's sum by some thousandths; what is not finite makes a sum that is not
    if not (table.amin() >= 0 and ((table.sum(1) - 1).abs() <= 1e-2).all()):
        raise InputError(f"{what} must be probabilities: finite, not negative, each row with the sum 1")
    return table


class _Choices(NamedTuple):
    """All that the metrics of classification look at, by image: the most probable class, the first of equals, and
    its probability, in double precision."""

    predicted: Tensor
    confidence: Tensor
    classes: int


def _choices(probs: Array) -> _Choices:
    probs = _probabilities(probs)
    confidence, predicted = probs.max(1)
    return _Choices(predicted, confidence.double(), probs.shape[1])


def _labels(labels: Array, choices: _Choices) -> Tensor:
    labels = (labels if isinstance(labels, Tensor) else torch.tensor(labels)).detach().cpu()
    if labels.shape != choices.predicted.shape or labels.is_floating_point():
        raise InputError(f"labels must be {len(choices.predicted)} integers, not {labels.dtype} {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= choices.classes:
        raise InputError(f"labels must lie in 0 … {choices.classes - 1}; these reach from {labels.min()} to "
                         f"{labels.max()}")
    return labels.long()


def _pair(probs: Array, targets: Array) -> tuple[Tensor, Tensor]:
    probs, targets = _probabilities(probs).double(), _probabilities(targets, "target distributions").double()
    if probs.shape != targets.shape:
        raise InputError("predictions and target distributions must have one shape, not "
                         f"{tuple(probs.shape)} and {tuple(targets.shape)}")
    return probs, targets


def confusion_matrix(probs: Array, labels: Array) -> Tensor:
    """Counts [classes, classes], int64: true classes in rows, predicted ones (argmax) in columns."""
    choices = _choices(probs)
    return _confusion(choices, _labels(labels, choices))


def _confusion(choices: _Choices, labels: Tensor) -> Tensor:
    classes = choices.classes
    return torch.bincount(labels * classes + choices.predicted, minlength=classes ** 2).view(classes, classes)


def top1(probs: Array, labels: Array) -> float:
    """The share of samples whose most probable class is the label; of equal classes the first counts."""
    return _top1(confusion_matrix(probs, labels))


def _top1(counts: Tensor) -> float:
    return counts.trace().item() / counts.sum().item()


def per_class_accuracy(probs: Array, labels: Array) -> list[float | None]:
    """Per class, the share of its samples that are recognised; None for a class without samples."""
    return _per_class_accuracy(confusion_matrix(probs, labels))


def _per_class_accuracy(counts: Tensor) -> list[float | None]:
    return [hits / total if total else None
            for hits, total in zip(counts.diagonal().tolist(), counts.sum(1).tolist())]


def macro_f1(probs: Array, labels: Array) -> float:
    """The mean of 2·TP / (2·TP + FP + FN) over the classes that occur among the labels or the predictions."""
    return _macro_f1(confusion_matrix(probs, labels))


def _macro_f1(counts: Tensor) -> float:
    occurrences = (counts.sum(0) + counts.sum(1)).double()
    occurs = occurrences > 0
    return (2 * counts.diagonal()[occurs] / occurrences[occurs]).mean().item()


def expected_calibration_error(probs: Array, labels: Array, bins: int = BINS) -> float:
    """ECE (Guo et al., ICML 2017): |accuracy − confidence| of bins ((b − 1)/bins, b/bins] of the highest
    probability, averaged with the bins' numbers of samples as weights."""
    if bins < 1:
        raise InputError(f"the calibration error needs at least one bin, not {bins}")
    choices = _choices(probs)
    return _calibration_error(choices, _labels(labels, choices), bins)


def _calibration_error(choices: _Choices, labels: Tensor, bins: int = BINS) -> float:
    gap = (choices.predicted == labels).double() - choices.confidence
    sums = torch.zeros(bins, dtype=torch.double).index_add_(0, _bins(choices, bins), gap)
    return (sums.abs().sum() / len(gap)).item()


def _bins(choices: _Choices, bins: int) -> Tensor:
    """The bin [n], from 0 on, of each image's highest probability."""
    return ((choices.confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def reliability(probs: Array, labels: Array) -> list[list[float]]:
    """What a reliability diagram shows, of each of the bins of `expected_calibration_error`: [images, how many of them
    are predicted rightly, the sum of their highest probabilities]. Such tables add up over runs."""
    choices = _choices(probs)
    return _reliability(choices, _labels(labels, choices))


def _reliability(choices: _Choices, labels: Tensor) -> list[list[float]]:
    right = (choices.predicted == labels).double()
    columns = torch.stack([torch.ones_like(right), right, choices.confidence], dim=1)
    sums = torch.zeros(BINS, 3, dtype=torch.double).index_add_(0, _bins(choices, BINS), columns)
    return [[int(images), int(hits), confidence] for images, hits, confidence in sums.tolist()]


def chebyshev(probs: Array, targets: Array) -> float:
    """max |p − t|; lower is better."""
    p, t = _pair(probs, targets)
    return (p - t).abs().amax(1).mean().item()


def _relative_differences(probs: Array, targets: Array) -> Tensor:
    """|p − t| / (p + t), [n, classes]; 0 where both are 0."""
    p, t = _pair(probs, targets)
    total = p + t
    return (p - t).abs() / total.where(total > 0, 1.0)


def clark(probs: Array, targets: Array, normalized: bool = False) -> float:
    """√Σ ((p − t) / (p + t))²; `normalized` divides by √classes, its greatest value; lower is better."""
    differences = _relative_differences(probs, targets)
    value = differences.square().sum(1).sqrt().mean().item()
    return value / differences.shape[1] ** 0.5 if normalized else value


def canberra(probs: Array, targets: Array, normalized: bool = False) -> float:
    """Σ |p − t| / (p + t); `normalized` divides by the classes, its greatest value; lower is better."""
    differences = _relative_differences(probs, targets)
    value = differences.sum(1).mean().item()
    return value / differences.shape[1] if normalized else value


def kl(probs: Array, targets: Array) -> float:
    """KL(t ‖ p) = Σ t · ln(t / p) in nats, with both raised to EPSILON in the logarithm; lower is better."""
    p, t = _pair(probs, targets)
    return (t * (t.clamp(min=EPSILON) / p.clamp(min=EPSILON)).log()).sum(1).mean().item()


def kl_by_temperature(probs: Array, targets: Array) -> list[float]:
    """`kl` of softmax(logits / T), that is of p^(1/T) normalised, for each T of TEMPERATURES.

    A classifier may be too sharp or too flat for distributions, whatever it has learnt of them: the least of these on
    one split tells the temperature at which to compare on another (temperature scaling, Guo et al., ICML 2017).
    """
    p, t = _pair(probs, targets)
    logits = p.clamp(min=EPSILON).log()
    return [kl((logits / temperature).softmax(1), t) for temperature in TEMPERATURES]


def cosine(probs: Array, targets: Array) -> float:
    """p · t / (‖p‖ ‖t‖); higher is better."""
    p, t = _pair(probs, targets)
    return ((p * t).sum(1) / (p.norm(dim=1) * t.norm(dim=1))).mean().item()


def intersection(probs: Array, targets: Array) -> float:
    """Σ min(p, t); higher is better."""
    p, t = _pair(probs, targets)
    return torch.minimum(p, t).sum(1).mean().item()


def classification_metrics(probs: Array, labels: Array) -> dict[str, float | list]:
    """top1, per_class_accuracy (a list in class order), macro_f1 and ece, all as fractions; the counts and sums of
    `reliability`; and, with up to CONFUSION_CLASSES classes, the counts of the confusion matrix."""
    choices = _choices(probs)
    return _classification_metrics(choices, _labels(labels, choices))


def _classification_metrics(choices: _Choices, labels: Tensor) -> dict[str, float | list]:
    counts = _confusion(choices, labels)
    metrics = {"top1": _top1(counts), "macro_f1": _macro_f1(counts), "ece": _calibration_error(choices, labels),
               "per_class_accuracy": _per_class_accuracy(counts), "reliability": _reliability(choices, labels)}
    if choices.classes <= CONFUSION_CLASSES:
        metrics["confusion_matrix"] = counts.tolist()
    return metrics


def distribution_metrics(probs: Array, targets: Array) -> dict[str, float]:
    """The six metrics of distribution learning; Clark and Canberra raw and normalised: papers differ."""
    return {"chebyshev": chebyshev(probs, targets), "clark": clark(probs, targets),
            "clark_normalized": clark(probs, targets, normalized=True), "canberra": canberra(probs, targets),
            "canberra_normalized": canberra(probs, targets, normalized=True), "kl": kl(probs, targets),
            "cosine": cosine(probs, targets), "intersection": intersection(probs, targets)}


def score(probabilities: Tensor, labels: Tensor, distributions: Tensor | None = None,
          reference: Tensor | None = None) -> dict[str, object]:
    """All metrics of a split, ready for JSON; and `predicted`, how many of its images each class is predicted for.

    Args:
        probabilities: predictions [n, classes].
        labels: [n]; images whose label is UNKNOWN are left out of the classification metrics. Where that is
            all of them, `confidence`, the mean of the highest probability, takes their place, and `agreement`.
        distributions: annotated distributions [n, classes], if there are any.
        reference: classes [n] that another model predicts; `agreement` is the share of images for which the most
            probable class is the same. It tells how far a model has moved from the reference, not which is right.
    """
    choices, known = _choices(probabilities), labels != UNKNOWN
    predicted = torch.bincount(choices.predicted.cpu(), minlength=probabilities.shape[1]).tolist()
    if known.any():
        chosen = choices._replace(predicted=choices.predicted[known], confidence=choices.confidence[known])
        metrics = _classification_metrics(chosen, _labels(labels[known], chosen))
    else:
        metrics = {"confidence": choices.confidence.mean().item()}
        if reference is not None:
            metrics["agreement"] = (choices.predicted == _labels(reference, choices)).double().mean().item()
    if distributions is not None:
        metrics |= distribution_metrics(probabilities, distributions)
        metrics["kl_by_temperature"] = kl_by_temperature(probabilities, distributions)
    return metrics | {"predicted": predicted}


ONE_SIDED = 0.95  # the share of a split's images from which one class takes nearly all


def one_sided(metrics: dict[str, object], least: int = 20) -> int | None:
    """The class that nearly all of a split's images are predicted as, by what `score` says of it; None where there is
    none, where the labels bear it out, or for fewer than `least` images."""
    counts = metrics.get("predicted", [])
    borne_out = metrics.get("top1", 0.0) >= ONE_SIDED - 0.05
    if len(counts) < 2 or sum(counts) < least or max(counts) < ONE_SIDED * sum(counts) or borne_out:
        return None
    return counts.index(max(counts))
