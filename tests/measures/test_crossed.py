import math

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp
from simulated import effects, left_out

from metasae.intervals.crossed import Covariance, covariance, jackknife, ratio_interval


def mean_squares(x):
    """Slow twin: the two-way analysis of variance of one quantity [S][B] in plain loops: seeds, blocks, both."""
    n, m = len(x), len(x[0])
    grand = sum(sum(row) for row in x) / (n * m)
    of_seed = [sum(row) / m for row in x]
    of_block = [sum(x[s][b] for s in range(n)) / n for b in range(m)]
    seeds = m * sum((value - grand) ** 2 for value in of_seed) / (n - 1)
    blocks = n * sum((value - grand) ** 2 for value in of_block) / (m - 1)
    both = sum((x[s][b] - of_seed[s] - of_block[b] + grand) ** 2 for s in range(n) for b in range(m)) / (
        (n - 1) * (m - 1)
    )
    return seeds, blocks, both


def variance(seeds, documents, n_seeds, n_blocks):
    """Of one quantity, in its two parts."""
    return Covariance(np.array([[seeds]]), np.array([[documents]]), np.zeros((1, 1)), n_seeds, n_blocks)


@pytest.mark.parametrize("seeds, blocks", [(2, 2), (3, 8), (5, 3)])
def test_analysis_of_variance_in_plain_loops(seeds, blocks):
    for x in effects(20, seeds, blocks, 1, text=0.3, both=0.3):
        spread = covariance(x.mean(1)[None], left_out(x)[None])
        expected = [square / (seeds * blocks) for square in mean_squares(x.tolist())]
        assert [spread.seeds[0, 0], spread.blocks[0, 0], spread.both[0, 0]] == pytest.approx(expected)


def test_two_seeds_and_two_blocks_by_hand():
    # rows are seeds: means 2 and 5; blocks: means 2 and 5; residuals +-1
    spread = covariance(np.array([[2.0, 5.0]]), left_out(np.array([[1.0, 3.0], [3.0, 7.0]]))[None])
    # seeds: (1.5^2 + 1.5^2) / (2 * 1); blocks: mean squares 2 * (1.5^2 + 1.5^2) / 1 over S B; both: 4 * 0.5^2 / 1 over
    # S B
    assert (spread.seeds[0, 0], spread.blocks[0, 0], spread.both[0, 0]) == pytest.approx((2.25, 2.25, 0.25))
    assert spread.documents == pytest.approx(2.0)


def test_the_parts_are_unbiased():
    # variances of the mean: seeds .5, text .2, both .3, which `seeds` holds too
    cases = effects(4000, 3, 8, 2, text=0.2, both=0.3)
    spread = [covariance(x.mean(1)[None], left_out(x)[None]) for x in cases]
    parts = np.array([[f.seeds[0, 0], f.blocks[0, 0], f.both[0, 0]] for f in spread]).mean(0)
    assert parts == pytest.approx([0.8, 0.5, 0.3], rel=0.05)


def test_the_jackknife_of_a_mean_is_its_variance():
    x = np.random.default_rng(3).normal(size=(1, 1, 8))
    assert jackknife(left_out(x))[0, 0] == pytest.approx(x.var(ddof=1) / 8)


def pigeonhole(numerator, denominator, n_resamples, seed):
    """Slow twin: seeds and blocks each drawn with replacement (Owen 2007) -> resampled mean over seeds of the ratio of
    sums."""
    rng = np.random.default_rng(seed)
    seeds, blocks = numerator.shape
    spread = np.empty(n_resamples)
    for place in range(n_resamples):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(blocks, size=blocks)
        spread[place] = (numerator[rows][:, columns].sum(1) / denominator[columns].sum()).mean()
    return spread


def test_the_pigeonhole_bootstrap_has_the_variance_that_its_theory_gives_these_parts():
    # resampling leaves (n - 1) / n of each effect, and counts what is in both factors three times
    x = effects(1, 4, 8, 4, text=0.3, both=0.4)[0]
    spread = covariance(x.mean(1)[None], left_out(x)[None])
    seeds, blocks, both = (float(part[0, 0]) for part in (spread.seeds, spread.blocks, spread.both))
    expected = seeds * 3 / 4 + blocks * 7 / 8 + both * 3 * 7 / 32
    assert pigeonhole(x, np.ones(8), 8000, 4).var() == pytest.approx(expected, rel=0.08)


def test_the_interval_of_a_ratio_of_sums_is_that_of_the_pigeonhole_bootstrap():
    # many seeds and blocks, little of both: there the bootstrap's own bias is small
    rng = np.random.default_rng(5)
    denominator = rng.lognormal(0, 0.5, 30)
    numerator = denominator * (0.2 + 0.02 * effects(1, 30, 30, 5, text=0.5, both=0.02)[0])
    full = numerator.sum(1) / denominator.sum()
    without = (numerator.sum(1, keepdims=True) - numerator) / (denominator.sum() - denominator)
    half = covariance(full[None], without[None]).half_width()
    low, high = np.quantile(pigeonhole(numerator, denominator, 4000, 5), [0.025, 0.975])
    assert half == pytest.approx((high - low) / 2, rel=0.15)
    assert [full.mean() - half, full.mean() + half] == pytest.approx([low, high], rel=0.03)


def test_text_never_makes_an_interval_narrower_and_without_it_it_is_students():
    for x in effects(200, 3, 8, 6, text=0.2):
        variance = covariance(x.mean(1)[None], left_out(x)[None])
        alone = covariance(x.mean(1)[None])
        assert (
            variance.half_width()
            >= alone.half_width()
            == pytest.approx(t.ppf(0.975, 2) * x.mean(1).std(ddof=1) / math.sqrt(3))
        )


def test_p_is_where_the_interval_just_reaches():
    for seeds, documents in ((1.0, 0.5), (1e-9, 1.0), (1.0, 1e-12), (1.0, 0.0)):
        one = variance(seeds, documents, 3, 8)
        for distance in (1e-3, 1.0, -4.0, 50.0, 1e8):
            assert one.half_width(one.p_value(distance)) == pytest.approx(abs(distance))
    values = [0.3, 0.1, 0.4]
    assert covariance(np.array([values])).p_value(np.mean(values)) == pytest.approx(ttest_1samp(values, 0).pvalue)


def test_p_without_distance_or_without_variance():
    assert variance(1.0, 1.0, 3, 8).p_value(0.0) == 1 and variance(0.0, 0.0, 3, 8).p_value(0.0) == 1
    assert variance(0.0, 0.0, 3, 8).p_value(0.1) == 0 and variance(0.0, 0.0, 3, 0).half_width() == 0


@pytest.mark.parametrize("text, both", [(0.0, 0.0), (0.3, 0.4), (0.9, 0.0)])
def test_fiellers_interval_holds_the_ratios_that_the_difference_cannot_tell_apart(text, both):
    unbounded = 0
    for place, (top, bottom) in enumerate(
        zip(effects(100, 3, 8, 7, text, both), effects(100, 3, 8, 8, text, both), strict=True)
    ):
        x = np.stack([top + 3, bottom + 5])
        full, without = x.mean(2), left_out(x)
        means = full.mean(1)
        spread = ratio_interval(*means, covariance(full, without))

        def zero_within(ratio, full=full, without=without):
            rest = covariance((full[0] - ratio * full[1])[None], (without[0] - ratio * without[1])[None])
            return abs((full[0] - ratio * full[1]).mean()) <= rest.half_width()

        if spread is None:
            unbounded += 1
            assert zero_within(1e7) or zero_within(-1e7)
            continue
        low, high = spread
        step = 1e-6 * (high - low)
        assert zero_within(low + step) and zero_within(high - step) and zero_within(means[0] / means[1]), place
        assert not zero_within(low - step) and not zero_within(high + step), place
        assert (low <= 0 <= high) == zero_within(0)
    assert 0 < unbounded < 100
