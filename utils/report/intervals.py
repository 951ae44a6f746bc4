"""Means of few values with what they leave open: Student's t, in closed form, and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def t_probability(t: float, freedom: int) -> float:
    """P(|T| ≤ t) for Student's T with an integer number of degrees of freedom (Abramowitz & Stegun, 26.7.3–4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cos2 * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total)
    term, total = 1.0, 0.0
    for k in range(0, freedom - 1, 2):
        total += term
        term *= cos2 * (k + 1) / (k + 2)
    return math.sin(angle) * total


def t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| ≤ t) = `confidence`, by bisection."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < confidence else (low, middle)
    return high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, lower, upper end of the t-interval); for differences of pairs this is the paired t-interval. One value
    alone has no interval: both ends are NaN."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    reach = t_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach
