"""Numbers that take two seeds' SAEs: their intervals against plain loops and by coverage, and which seeds a stored
number is of."""

import math

import numpy as np
import pytest

from metasae.compare.catalogue import CATALOGUE
from metasae.compare.compare import of_both, of_names, seeds_behind
from metasae.intervals.crossed import over_shared_seeds
from metasae.intervals.statistics import is_clear, mean_interval, paired_difference

CASES = 600
QUANTITY = {quantity.key: quantity for quantity in CATALOGUE}


def ring(seeds):
    return {seed: {seed, (seed + 1) % seeds} for seed in range(seeds)}


def by_seed(values):
    return dict(enumerate(np.asarray(values, float).tolist()))


def slow_jackknife(values, members):
    """Of the mean of one quantity: every seed left out with all numbers that it is in."""
    left = []
    for unit in range(members.shape[1]):
        kept = [value for value, of in zip(values, members, strict=True) if not of[unit]]
        left.append(sum(kept) / len(kept))
    mean = sum(left) / len(left)
    return (len(left) - 1) / len(left) * sum((seed_pair - mean) ** 2 for seed_pair in left)


@pytest.mark.parametrize("seeds, missing", [(3, 0), (4, 0), (4, 1), (5, 0), (7, 2)])
def test_the_jackknife_over_seeds_in_plain_loops(seeds, missing):
    of = list(ring(seeds).values())[: seeds - missing]
    members = np.array([[unit in seed_pair for unit in range(seeds)] for seed_pair in of])
    full = np.random.default_rng(seeds).normal(size=(2, len(of)))
    difference = over_shared_seeds(full, members)
    for quantity in (0, 1):
        assert difference.seeds[quantity, quantity] == pytest.approx(slow_jackknife(full[quantity], members))
    both = slow_jackknife(full.sum(axis=0), members)
    assert difference.seeds.sum() == pytest.approx(both) and difference.n_seeds == len(of) and difference.n_blocks == 0


def test_three_seeds_in_a_ring_by_hand():
    # without seed 0 the number of seed 1 is left, 3; without 1 that of 2, and without 2 that of 0: variance 2/3 (1 + 1
    # + 0)
    difference = paired_difference({0: 11.0, 1: 13.0, 2: 12.0}, dict.fromkeys(range(3), 10.0), between=ring(3))
    half = 4.302652729911275 * math.sqrt(4 / 3)
    assert (
        difference.difference == 2
        and difference.ci95 == pytest.approx((2 - half, 2 + half))
        and difference.se_seeds == pytest.approx(math.sqrt(4 / 3))
    )
    # t = 2 / sqrt(4/3), two degrees of freedom
    assert difference.p == pytest.approx(1 - math.sqrt(3 / 5)) and difference.n_seeds == 3 and difference.note == ""
    alone = paired_difference({0: 11.0, 1: 13.0, 2: 12.0}, dict.fromkeys(range(3), 10.0))
    assert difference.se_seeds == pytest.approx(2 * alone.se_seeds)
    own = mean_interval({0: 11.0, 1: 13.0, 2: 12.0}, between=ring(3))
    assert own.ci95 == pytest.approx((12 - half, 12 + half))


def test_numbers_of_their_own_seed_are_as_before():
    a, b = {0: 1.0, 1: 2.0, 4: 4.5}, {0: 0.5, 1: 0.6, 4: 0.9}
    assert paired_difference(a, b, between={seed: {seed} for seed in a}) == paired_difference(a, b)
    full = np.random.default_rng(0).normal(size=(2, 5))
    difference = over_shared_seeds(full, np.eye(5, dtype=bool))
    assert difference.seeds == pytest.approx(np.cov(full) / 5)


def simulated(seeds, share, seed):
    """Differences of a ring whose truth is 0; `share` of the variance belongs to the SAEs."""
    rng = np.random.default_rng(seed)
    of_sae = rng.normal(size=(CASES, seeds)) * math.sqrt(share / 2)
    return of_sae + np.roll(of_sae, -1, axis=1) + rng.normal(size=(CASES, seeds)) * math.sqrt(1 - share)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_coverage_of_a_ring_whatever_belongs_to_the_saes(seeds, share):
    five = dict.fromkeys(range(seeds), 5.0)
    difference = [
        paired_difference(by_seed(5 + seed_pair), five, between=ring(seeds))
        for seed_pair in simulated(seeds, share, 20 + seeds)
    ]
    share_covered = np.mean([entry.ci95[0] <= 0 <= entry.ci95[1] for entry in difference])
    assert 0.915 <= share_covered <= 0.998, f"covers {share_covered:.1%} of {CASES} cases"
    assert all(
        is_clear(entry.as_dict()) == (entry.p < 0.05) == (not entry.percent_ci95[0] <= 0 <= entry.percent_ci95[1])
        for entry in difference
    )


def test_as_if_independent_a_ring_would_be_far_too_sure():
    five = dict.fromkeys(range(3), 5.0)
    intervals = [paired_difference(by_seed(5 + seed_pair), five).ci95 for seed_pair in simulated(3, 1.0, 23)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) < 0.88


def test_what_has_no_interval_says_why():
    one = paired_difference({0: 1.0, 1: None}, {0: 2.0, 1: None}, between={0: {0, 1}})
    assert one.ci95 is None and one.p is None and one.difference == -1 and one.note == "1 pair of seeds, no interval"
    # of three seeds, one number is left
    assert (
        paired_difference({0: 1.0, 1: None, 2: None}, {0: 2.0}, between={0: {0, 1}}).note
        == "1 pair of seeds, no interval; no pair for seed 1, 2"
    )
    two = paired_difference({0: 1.0, 1: 3.0, 2: None}, {0: 2.0, 1: 2.0, 2: None}, between=ring(3))
    assert (
        two.ci95 is None
        and two.n_seeds == 2
        and two.note == "no pair for seed 2; no interval, as every number takes seed 1"
    )
    unknown = paired_difference({0: 1.0, 1: 3.0}, {0: 2.0, 1: 2.0}, between={0: {0, 1}, 1: None})
    assert (
        unknown.ci95 is None
        and unknown.difference == 0
        and unknown.note == "no interval, as it is not recorded which seeds each number takes"
    )
    assert mean_interval({0: 1.0, 1: 3.0}, between={}).note == unknown.note
    assert paired_difference({0: 1.0}, {0: 2.0}, between={}).note == "1 seed, no interval"
    assert mean_interval({}, between={}).note == "no seeds"


def test_identical_arms_in_a_ring():
    x = by_seed(np.random.default_rng(2).normal(size=4))
    difference = paired_difference(x, x, between=ring(4))
    assert (
        difference.ci95 == (0, 0) and difference.p == 1 and not is_clear(difference.as_dict()) and difference.note == ""
    )


def test_shared_seeds_with_document_blocks_are_an_error():
    a, blocks = {0: 1.0, 1: 2.0, 2: 3.0}, {seed: [1.0, 2.0] for seed in range(3)}
    with pytest.raises(ValueError, match="no document blocks"):
        paired_difference(a, a, blocks, blocks, ring(3))


def test_which_seeds_a_stored_number_is_of():
    measures = {
        "seeds": {"mean_r": 0.5, "with": "joint-s3"},
        "splits": {"mean_score": 0.1, "with": "my-arm-s2"},
        "merges": {"mean_score": 0.1},
        "interp": {"scores": {"sense_intruder": {"parents": "solo-s1", "children": "solo-s12"}}},
    }
    keys = {
        "seeds.mean_r": {1, 3}, "splits.mean_score": {1, 2}, "merges.mean_score": None, "fidelity.fvu": {1},
        "interp.scores.sense_intruder.parts.all.estimate": {1, 12},
        "interp.scores.embedding.parts.random.estimate": {1},
    }  # fmt: skip
    assert {key: seeds_behind(measures, QUANTITY[key], 1) for key in keys} == keys
    assert (
        of_names(2, ["joint-s2", "joint-s10"]) == {2, 10} and of_names(2, ["joint"]) is None and of_names(2, []) == {2}
    )
    assert of_both({0: frozenset({0}), 1: None, 2: frozenset({2})}, {0: frozenset({0, 1}), 1: frozenset({1})}) == {
        0: {0, 1},
        1: None,
    }
