"""Metrics of classification and of distribution learning.

All take probabilities [n, classes] (torch or numpy, rows that sum to 1) and compute in double precision on
the CPU. Distribution metrics are means over the samples of a distance or similarity of prediction p and
target t; a term 0/0 counts as 0. Wrong shapes, empty input and values that are no probabilities raise
InputError.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .data import UNKNOWN
from .errors import InputError

EPSILON = 1e-12  # the least probability inside KL's logarithm
CONFUSION_CLASSES = 128  # with more classes the confusion matrix is too large for a record with a row per epoch

Array = Tensor | np.ndarray


def _probabilities(values: Array, what: str = "predictions") -> Tensor:
    table = (values if isinstance(values, Tensor) else torch.tensor(values)).detach().cpu().double()
    if table.ndim != 2 or not table.numel():
        raise InputError(f"{what} must be [samples, classes] and not empty, not {tuple(table.shape)}")
    # half precision rounds a row's sum by some thousandths
    if not torch.isfinite(table).all() or (table < 0).any() or ((table.sum(1) - 1).abs() > 1e-2).any():
        raise InputError(f"{what} must be probabilities: finite, not negative, each row with the sum 1")
    return table


def _classified(probs: Array, labels: Array) -> tuple[Tensor, Tensor]:
    probs = _probabilities(probs)
    labels = (labels if isinstance(labels, Tensor) else torch.tensor(labels)).detach().cpu()
    if labels.shape != probs.shape[:1] or labels.is_floating_point():
        raise InputError(f"labels must be {len(probs)} integers, not {labels.dtype} {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise InputError(f"labels must lie in 0 … {probs.shape[1] - 1}; these reach from {labels.min()} to "
                         f"{labels.max()}")
    return probs, labels.long()


def _pair(probs: Array, targets: Array) -> tuple[Tensor, Tensor]:
    probs, targets = _probabilities(probs), _probabilities(targets, "target distributions")
    if probs.shape != targets.shape:
        raise InputError("predictions and target distributions must have one shape, not "
                         f"{tuple(probs.shape)} and {tuple(targets.shape)}")
    return probs, targets


def confusion_matrix(probs: Array, labels: Array) -> Tensor:
    """Counts [classes, classes], int64: true classes in rows, predicted ones (argmax) in columns."""
    probs, labels = _classified(probs, labels)
    classes = probs.shape[1]
    return torch.bincount(labels * classes + probs.argmax(1), minlength=classes ** 2).view(classes, classes)


def top1(probs: Array, labels: Array) -> float:
    """The share of samples whose most probable class is the label; of equal classes the first counts."""
    counts = confusion_matrix(probs, labels)
    return counts.trace().item() / counts.sum().item()


def per_class_accuracy(probs: Array, labels: Array) -> list[float | None]:
    """Per class, the share of its samples that are recognised; None for a class without samples."""
    counts = confusion_matrix(probs, labels)
    return [hits / total if total else None
            for hits, total in zip(counts.diagonal().tolist(), counts.sum(1).tolist())]


def macro_f1(probs: Array, labels: Array) -> float:
    """The mean of 2·TP / (2·TP + FP + FN) over the classes that occur among the labels or the predictions."""
    counts = confusion_matrix(probs, labels).double()
    occurrences = counts.sum(0) + counts.sum(1)
    occurs = occurrences > 0
    return (2 * counts.diagonal()[occurs] / occurrences[occurs]).mean().item()


def expected_calibration_error(probs: Array, labels: Array, bins: int = 15) -> float:
    """ECE (Guo et al., ICML 2017): |accuracy − confidence| of bins ((b − 1)/bins, b/bins] of the highest
    probability, averaged with the bins' numbers of samples as weights."""
    if bins < 1:
        raise InputError(f"the calibration error needs at least one bin, not {bins}")
    probs, labels = _classified(probs, labels)
    confidence, predicted = probs.max(1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = (predicted == labels).double() - confidence
    return (torch.zeros(bins, dtype=torch.double).index_add_(0, place, gap).abs().sum() / len(gap)).item()


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


def cosine(probs: Array, targets: Array) -> float:
    """p · t / (‖p‖ ‖t‖); higher is better."""
    p, t = _pair(probs, targets)
    return ((p * t).sum(1) / (p.norm(dim=1) * t.norm(dim=1))).mean().item()


def intersection(probs: Array, targets: Array) -> float:
    """Σ min(p, t); higher is better."""
    p, t = _pair(probs, targets)
    return torch.minimum(p, t).sum(1).mean().item()


def classification_metrics(probs: Array, labels: Array) -> dict[str, float | list]:
    """top1, per_class_accuracy (a list in class order), macro_f1 and ece, all as fractions; and, with up to
    CONFUSION_CLASSES classes, the counts of the confusion matrix."""
    metrics = {"top1": top1(probs, labels), "macro_f1": macro_f1(probs, labels),
               "ece": expected_calibration_error(probs, labels),
               "per_class_accuracy": per_class_accuracy(probs, labels)}
    if probs.shape[1] <= CONFUSION_CLASSES:
        metrics["confusion_matrix"] = confusion_matrix(probs, labels).tolist()
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
    known = labels != UNKNOWN
    predicted = torch.bincount(probabilities.argmax(1).cpu(), minlength=probabilities.shape[1]).tolist()
    if known.any():
        metrics = classification_metrics(probabilities[known], labels[known])
    else:
        metrics = {"confidence": _probabilities(probabilities).amax(1).mean().item()}
        if reference is not None:
            metrics["agreement"] = top1(probabilities, reference)
    if distributions is not None:
        metrics |= distribution_metrics(probabilities, distributions)
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
