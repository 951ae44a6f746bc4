"""How the layers of a vision transformer are divided into stages."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from fractions import Fraction

from .errors import ClipError

# 12 layers: {1-4}, {5-8}, {9-11}, {12}; 24 layers: {1-8}, {9-16}, {17-22}, {23-24}
DEFAULT_STAGE_ENDS = (Fraction(1, 3), Fraction(2, 3), Fraction(11, 12), Fraction(1))


def default_stages(layers: int) -> list[list[int]]:
    """0-based layer indices per stage in the default proportions; below four layers, one layer per stage."""
    if layers < len(DEFAULT_STAGE_ENDS):
        return [[layer] for layer in range(layers)]
    count, stages, start = len(DEFAULT_STAGE_ENDS), [], 0
    for stage, fraction in enumerate(DEFAULT_STAGE_ENDS):
        # every stage keeps at least one layer, those still to come included
        end = min(max(round(layers * fraction), start + 1), layers - (count - 1 - stage))
        stages.append(list(range(start, end)))
        start = end
    return stages


def check_stages(stages: Sequence[Sequence[int]], layers: int) -> list[list[int]]:
    """The stages as lists of ints; ClipError unless they are non-empty, in order, and cover 0 … layers-1 once."""
    try:
        stages = [[operator.index(layer) for layer in stage] for stage in stages]
    except (TypeError, ValueError) as error:
        raise ClipError(f"stages {stages!r} are no lists of layer indices, such as [[0, 1], [2, 3]]") from error
    flat = [layer for stage in stages for layer in stage]
    if not all(stages) or flat != list(range(layers)):
        raise ClipError(f"stages {stages} do not divide the {layers} layers: each stage needs at least one layer, and "
                        f"together they must list the 0-based indices 0 … {layers - 1} once, in order")
    return stages
