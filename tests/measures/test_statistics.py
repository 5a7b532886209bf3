import math

import pytest

from metasae.measures.statistics import paired_difference, t_interval


def test_three_seeds_by_hand():
    found = paired_difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 2.0})
    # differences 1, 3, 2: mean 2, s = 1, t(2 df) = 4.3027, half = 4.3027 / sqrt(3)
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.a, found.b, found.difference, found.percent, found.n_seeds) == (4, 2, 2, 100, 3)
    assert found.ci95 == pytest.approx((2 - half, 2 + half)) and found.percent_ci95 == pytest.approx((100 - 50 * half, 100 + 50 * half))
    assert not found.clear and found.note == ""


def test_two_seeds_are_wide():
    found = paired_difference({0: 1.1, 1: 1.3}, {0: 1.0, 1: 1.0})
    # s = .2 / sqrt(2), t(1 df) = 12.706, half = 12.706 * .1
    assert found.ci95 == pytest.approx((0.2 - 1.2706204736, 0.2 + 1.2706204736))


def test_one_seed_has_no_interval():
    found = paired_difference({4: 1.0}, {4: 2.0})
    assert found.ci95 is None and found.percent == -50 and found.note == "1 seed, no interval" and not found.clear
    assert t_interval([1.0]) is None and t_interval([]) is None


def test_pairs_not_means_make_the_interval():
    # large spread between seeds, the same step in each: the pairing removes the spread
    found = paired_difference({0: 11.0, 1: 21.0, 2: 31.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found.ci95 == pytest.approx((1, 1)) and found.clear


def test_unpaired_seeds_and_missing_numbers_are_named():
    found = paired_difference({0: 1.0, 1: 2.0, 2: None}, {1: 1.0, 2: 4.0, 3: 5.0})
    assert found.n_seeds == 1 and found.a == 2 and found.note == "1 seed, no interval; no pair for seed 0, 2, 3"
    assert paired_difference({}, {}).difference is None


def test_zero_and_negative_baselines():
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}).percent is None
    found = paired_difference({0: -1.0, 1: -1.0}, {0: -2.0, 1: -2.0})
    assert found.percent == 50 and found.ci95 == (1, 1)


def test_identical_arms():
    found = paired_difference({0: 0.1, 1: 0.2}, {0: 0.1, 1: 0.2})
    assert found.difference == 0 and found.ci95 == (0, 0) and not found.clear
