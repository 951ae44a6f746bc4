"""Emotion distributions from single labels: emotions stand on a circle, and near ones are felt together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError


def circular_distances(num: int) -> Tensor:
    """Steps [num, num] between the places of a circle, the shorter way round: min(|i − j|, num − |i − j|)."""
    if num < 1:
        raise InputError(f"a circle of {num} emotions has no distances")
    places = torch.arange(num)
    steps = (places[:, None] - places[None, :]).abs()
    return torch.minimum(steps, num - steps)


def class_distances(classnames: Sequence[str], circle: Sequence[str]) -> Tensor:
    """Distances [classes, classes] on the circle between classes, in whatever order and number they come.

    Raises InputError for a class that is not on the circle or an emotion that is on it twice.
    """
    if len(set(circle)) != len(circle):
        raise InputError(f"the emotion circle (DATASET.CIRCLE) names an emotion twice: {', '.join(circle)}")
    for name in classnames:
        if name not in circle:
            raise InputError(f"class {name!r} is not on the circle {', '.join(circle)} (DATASET.CIRCLE)")
    places = torch.tensor([list(circle).index(name) for name in classnames], dtype=torch.long)
    return circular_distances(len(circle))[places[:, None], places[None, :]]


def strategy1(label_index: Tensor, circle_distance_matrix: Tensor, sigma: float = 1.0,
              epsilon: float = 0.1) -> Tensor:
    """The distributions [n, classes] of single labels, in rows that sum to 1.

    l_j ∝ exp(−d² / (2σ²)) / (√(2π) σ) + ε / classes, where d is the distance from the label to j.

    Args:
        label_index: class indices [n].
        circle_distance_matrix: [classes, classes], from `class_distances`.
        sigma: σ > 0, in steps on the circle.
        epsilon: ε ≥ 0, the mass that all classes share before normalisation.

    Raises InputError for values out of these ranges and for labels that are no class.
    """
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma is {sigma}; it must be above 0 (DATASET.SIGMA_CONF)")
    if not 0 <= epsilon < math.inf:
        raise InputError(f"epsilon is {epsilon}; it must not be negative (DATASET.EPSILON)")
    classes = len(circle_distance_matrix)
    if ((label_index < 0) | (label_index >= classes)).any():
        raise InputError(f"labels must lie in 0 … {classes - 1}; these reach from {label_index.min()} to "
                         f"{label_index.max()}")
    distances = circle_distance_matrix[label_index].to(torch.float32)
    density = torch.exp(-distances ** 2 / (2 * sigma ** 2)) / (math.sqrt(2 * math.pi) * sigma)
    scores = density + epsilon / classes
    return scores / scores.sum(-1, keepdim=True)
