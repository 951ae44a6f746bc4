"""Student's t against the printed tables, and intervals by hand."""

from __future__ import annotations

import math

import pytest

from utils.report.intervals import mean_interval, t_probability, t_quantile


@pytest.mark.parametrize("freedom, t", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262),
                                        (30, 2.042), (100, 1.984)])
def test_the_tables_of_t(freedom, t):
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=5e-4)
    assert t_probability(t_quantile(0.99, freedom), freedom) == pytest.approx(0.99, abs=1e-12)


def test_t_has_closed_forms_for_one_and_two_degrees():
    assert t_probability(1, 1) == pytest.approx(0.5)  # Cauchy's quartiles
    assert t_probability(3, 2) == pytest.approx(3 / math.sqrt(11))  # t / √(2 + t²)


def test_interval_by_hand():
    """Mean 3, s = √7, n = 3."""
    mean, low, high = mean_interval([1, 2, 6])
    assert mean == 3 and high - mean == pytest.approx(4.3027 * math.sqrt(7 / 3), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([4.0])[0] == 4 and all(math.isnan(end) for end in mean_interval([4.0])[1:])
