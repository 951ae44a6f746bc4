"""Distances on the emotion circles, pair by pair, and the distributions made from them."""

import math

import pytest
import torch

from utils.emotion_circle import circular_distances, class_distances, strategy1
from utils.errors import InputError

MIKELS = ["fear", "excitement", "awe", "contentment", "amusement", "anger", "disgust", "sadness"]
EMOTION6 = ["anger", "disgust", "fear", "sadness", "surprise", "joy"]
PAIRS = {
    ("fear", "excitement"): 1, ("fear", "awe"): 2, ("fear", "contentment"): 3, ("fear", "amusement"): 4,
    ("fear", "anger"): 3, ("fear", "disgust"): 2, ("fear", "sadness"): 1,
    ("excitement", "awe"): 1, ("excitement", "contentment"): 2, ("excitement", "amusement"): 3,
    ("excitement", "anger"): 4, ("excitement", "disgust"): 3, ("excitement", "sadness"): 2,
    ("awe", "contentment"): 1, ("awe", "amusement"): 2, ("awe", "anger"): 3, ("awe", "disgust"): 4,
    ("awe", "sadness"): 3,
    ("contentment", "amusement"): 1, ("contentment", "anger"): 2, ("contentment", "disgust"): 3,
    ("contentment", "sadness"): 4,
    ("amusement", "anger"): 1, ("amusement", "disgust"): 2, ("amusement", "sadness"): 3,
    ("anger", "disgust"): 1, ("anger", "sadness"): 2,
    ("disgust", "sadness"): 1,
}


def test_the_28_distances_of_mikels_wheel():
    assert len(PAIRS) == 28
    classes = sorted(MIKELS)  # another order than the circle's
    distances = class_distances(classes, MIKELS)
    for (first, second), steps in PAIRS.items():
        i, j = classes.index(first), classes.index(second)
        assert distances[i, j] == distances[j, i] == steps, (first, second)
    assert distances.diagonal().tolist() == [0] * 8


def test_circle_of_six():
    assert circular_distances(6).tolist() == [
        [0, 1, 2, 3, 2, 1], [1, 0, 1, 2, 3, 2], [2, 1, 0, 1, 2, 3],
        [3, 2, 1, 0, 1, 2], [2, 3, 2, 1, 0, 1], [1, 2, 3, 2, 1, 0]]


@pytest.mark.parametrize("num, expected", [(1, [[0]]), (2, [[0, 1], [1, 0]]),
                                           (3, [[0, 1, 1], [1, 0, 1], [1, 1, 0]])])
def test_small_circles(num, expected):
    assert circular_distances(num).tolist() == expected


def test_some_of_the_circles_classes():
    distances = class_distances(["sadness", "fear", "contentment"], MIKELS)
    assert distances.tolist() == [[0, 1, 4], [1, 0, 3], [4, 3, 0]]


def test_classes_off_the_circle_are_named():
    with pytest.raises(InputError, match="'neutral' is not on the circle anger, disgust"):
        class_distances(["anger", "neutral"], EMOTION6)
    with pytest.raises(InputError, match="twice"):
        class_distances(["anger"], ["anger", "joy", "anger"])
    with pytest.raises(InputError):
        circular_distances(0)


# By hand: the normal density at 0, 1, 2, 3, 4 is .3989423, .2419707, .0539910, .0044318, .0001338.
# Eight classes share .1 as .0125 each; the sum is .3989423 + 2 (.2419707 + .0539910 + .0044318) + .0001338 +
# .1 = 1.0998629.
def test_strategy1_on_mikels_wheel():
    by_steps = [0.3740850, 0.2313659, 0.0604538, 0.0153945, 0.0114867]
    got = strategy1(torch.tensor([MIKELS.index("awe")]), class_distances(MIKELS, MIKELS))
    torch.testing.assert_close(got, torch.tensor([[by_steps[step] for step in (2, 1, 0, 1, 2, 3, 4, 3)]]),
                               atol=1e-6, rtol=0)


# Six classes: .0166667 each; the sum is .3989423 + 2 (.2419707 + .0539910) + .0044318 + .1 = 1.0952974.
def test_strategy1_on_emotion6():
    by_steps = [0.3794486, 0.2361344, 0.0645101, 0.0192628]
    got = strategy1(torch.tensor([EMOTION6.index("joy"), EMOTION6.index("fear")]),
                    class_distances(EMOTION6, EMOTION6))
    expected = [[by_steps[step] for step in steps] for steps in ((1, 2, 3, 2, 1, 0), (2, 1, 0, 1, 2, 3))]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=0)


def test_strategy1_with_other_settings():
    """Three classes, σ = 2, ε = 0: the density's factor cancels, and exp(−1/8) remains for the neighbours."""
    near = math.exp(-1 / 8)
    got = strategy1(torch.tensor([1]), circular_distances(3), sigma=2.0, epsilon=0.0)
    expected = torch.tensor([[near, 1.0, near]]) / (1 + 2 * near)
    torch.testing.assert_close(got, expected)


def test_strategy1_keeps_the_order_of_the_labels_and_sums_to_one():
    labels = torch.tensor([5, 0, 5, 3])
    distances = circular_distances(8)
    got = strategy1(labels, distances)
    assert got.argmax(1).tolist() == labels.tolist()
    torch.testing.assert_close(got.sum(1), torch.ones(4))
    for row, label in zip(got, labels):
        torch.testing.assert_close(row[None], strategy1(label[None], distances))


@pytest.mark.parametrize("change, reason", [
    ({"sigma": 0.0}, "sigma is 0.0"), ({"sigma": -1.0}, "sigma is -1.0"), ({"sigma": math.nan}, "sigma"),
    ({"epsilon": -0.1}, "epsilon is -0.1"), ({"label_index": torch.tensor([0, -1])}, "reach from -1 to 0"),
    ({"label_index": torch.tensor([8])}, "0 … 7"),
])
def test_strategy1_refuses(change, reason):
    arguments = {"label_index": torch.tensor([0]), "circle_distance_matrix": circular_distances(8)} | change
    with pytest.raises(InputError, match=reason):
        strategy1(**arguments)
