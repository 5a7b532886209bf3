import itertools
import math

import numpy as np
import pytest

from metasae.measures.words.sense_scores import adjusted_mutual_information, expected_mutual_information


def plain_mutual_information(u, v):
    """Straight from the definition, in loops."""
    total, sum_ = len(u), 0.0
    for a in set(u):
        for b in set(v):
            both = sum(x == a and y == b for x, y in zip(u, v, strict=True))
            if both:
                sum_ += both / total * math.log(total * both / (list(u).count(a) * list(v).count(b)))
    return sum_


@pytest.mark.parametrize(
    ("u", "v"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]),
        ([0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 4]),
        ([0, 0, 0, 0], [1, 1, 0, 0]),
        ([0, 1, 2], [2, 1, 0]),
    ],
)
def test_the_expectation_is_the_mean_over_all_pairings(u, v):
    over_all = [plain_mutual_information(u, pairing) for pairing in itertools.permutations(v)]
    assert expected_mutual_information(np.bincount(u), np.bincount(v)) == pytest.approx(np.mean(over_all), abs=1e-12)


def test_equal_and_independent_labellings():
    rng = np.random.default_rng(0)
    u = rng.integers(3, size=400)
    assert adjusted_mutual_information(u, np.array(["x", "y", "z"])[u]) == pytest.approx(1)
    many_clusters = [adjusted_mutual_information(rng.permutation(u), rng.integers(150, size=400)) for _ in range(200)]
    assert abs(np.mean(many_clusters)) < 3 * np.std(many_clusters) / 200**0.5 + 1e-3
    assert adjusted_mutual_information(u, np.zeros(400)) == pytest.approx(0, abs=1e-12)


def test_where_nothing_could_be_shared_there_is_no_number():
    assert adjusted_mutual_information(np.zeros(0), np.zeros(0)) is None
    assert adjusted_mutual_information(np.zeros(5), np.ones(5)) is None
    assert adjusted_mutual_information(np.arange(5), np.arange(5)) is None


def test_it_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for total, r, c in [(7, 2, 3), (50, 4, 30), (600, 6, 200), (600, 2, 2), (3000, 5, 60)]:
        u, v = rng.integers(r, size=total), np.minimum(rng.geometric(0.1, size=total), c)
        v = np.where(rng.random(total) < 0.3, u, v)
        assert adjusted_mutual_information(u, v) == pytest.approx(metrics.adjusted_mutual_info_score(u, v), abs=1e-9)
