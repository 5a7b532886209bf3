import numpy as np
import pytest

from metasae.sweep.pareto import front, layers, nearest_to_ideal, survivors


def slow_front(costs):
    """By the words of the definition."""
    on = []
    for own in costs:
        beaten = any(
            all(a <= b for a, b in zip(other, own, strict=True)) and any(a < b for a, b in zip(other, own, strict=True))
            for other in costs
        )
        on.append(not beaten and all(np.isfinite(own)))
    return on


@pytest.mark.parametrize("seed", range(6))
def test_the_front_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    # few distinct values, so that ties and duplicates are common
    costs = rng.integers(0, 4, (25, 1 + seed % 3)).astype(float)
    assert front(costs).tolist() == slow_front(costs.tolist())
    numbers = layers(costs)
    for layer in range(numbers.max() + 1):
        left = costs[numbers >= layer]
        assert sorted(map(tuple, left[front(left)])) == sorted(map(tuple, costs[numbers == layer]))


def test_by_hand():
    costs = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0], [np.nan, 0.0]])
    assert front(costs).tolist() == [True, True, True, False, True, False]
    assert layers(costs).tolist() == [0, 0, 0, 1, 0, -1]
    assert nearest_to_ideal(costs) == 1
    assert front(np.empty((0, 2))).tolist() == []


def test_one_cell_is_its_own_front():
    assert front(np.array([[5.0, 5.0]])).tolist() == [True] and nearest_to_ideal(np.array([[5.0, 5.0]])) == 0


def test_half_go_on_and_no_layer_is_cut():
    costs = {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0], "d": [4.0, 4.0], "failed": None}
    assert survivors(costs) == ["a", "b"]
    assert survivors({"a": [1.0, 4.0], "b": [2.0, 3.0], "c": [3.0, 2.0], "d": [4.0, 1.0]}) == ["a", "b", "c", "d"]
    assert survivors({"failed": None}) == []
