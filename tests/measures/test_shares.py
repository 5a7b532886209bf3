"""Shares of things that are counted have at least a binomial error."""

import math

import numpy as np
import pytest

from metasae.intervals.crossed import covariance
from metasae.intervals.shares import at_least_binomial
from metasae.intervals.statistics import is_clear, paired_difference


def by_seed(values):
    return dict(enumerate(values))


def test_one_latent_more_in_each_of_three_seeds_is_not_clear():
    a, b, of = by_seed([1 / 3072] * 3), by_seed([0.0] * 3), by_seed([3072] * 3)
    assert is_clear(paired_difference(a, b).as_dict())
    with_error = paired_difference(a, b, shares_of=(of, of))
    p = 1 / 6144
    assert with_error.se_seeds == pytest.approx(math.sqrt(2 * p * (1 - p) / 3072 / 3))
    assert not is_clear(with_error.as_dict()) and with_error.p > 0.2


def test_a_spread_that_is_larger_stays():
    a, b, of = by_seed([0.2, 0.4, 0.9]), by_seed([0.1, 0.5, 0.2]), by_seed([1000] * 3)
    assert paired_difference(a, b, shares_of=(of, of)).se_seeds == paired_difference(a, b).se_seeds


def test_the_error_is_that_of_simulated_shares():
    rng = np.random.default_rng(0)
    a, b = rng.binomial(24, 0.3, (4000, 3)) / 24, rng.binomial(24, 0.3, (4000, 3)) / 24
    nothing = covariance(np.zeros((2, 3)))
    spread = at_least_binomial(nothing, [0.3] * 3, [0.3] * 3, [24] * 3, [24] * 3).seeds
    simulated = np.cov(np.stack([(a - b).mean(1), b.mean(1)]))
    assert spread == pytest.approx(simulated, rel=0.1)


def test_shares_of_nothing_and_all_are_left_alone():
    of = by_seed([10, 10])
    assert paired_difference(by_seed([0.0, 0.0]), by_seed([0.0, 0.0]), shares_of=(of, of)).difference == 0
    assert paired_difference(by_seed([1.0, 1.0]), by_seed([1.0, 1.0]), shares_of=(of, of)).difference == 0
