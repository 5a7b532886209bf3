import itertools
from math import comb

import numpy as np
import pytest

from metasae.measures.words import sense_scores
from metasae.measures.words.sense_scores import AT_CHANCE, Draw, atomicity, blended, draw_for, draws, matched

EVEN, SKEWED = np.array([200, 200, 200]), np.array([3455, 502, 372])


def exact(counts, sizes, size, judge):
    """The expectation over all ways to draw `size` of the firings, each outcome with its hypergeometric probability."""
    sum_ = 0.0
    for outcome in itertools.product(*(range(min(c, size) + 1) for c in counts)):
        if sum(outcome) == size:
            ways = np.prod([float(comb(int(c), k)) for c, k in zip(counts, outcome, strict=True)])
            sum_ += ways / comb(int(sum(counts)), size) * judge(np.array([outcome]), sizes)[0]
    return sum_


@pytest.mark.parametrize("counts", [[5, 3, 2], [9, 1, 0], [4, 4, 4], [30, 2, 1], [6, 0, 0]])
def test_draws_follow_the_hypergeometric_distribution(counts):
    size, number = 6, 60_000
    drawn = draws(np.array([counts, counts]), size, number, np.random.default_rng(0))
    assert (
        drawn.shape == (2, number, 3)
        and (drawn.sum(2) == size).all()
        and (drawn <= counts).all()
        and (drawn >= 0).all()
    )
    for judge in (atomicity, blended):
        expected = exact(counts, EVEN, size, judge)
        assert judge(drawn[1], EVEN).mean() == pytest.approx(expected, abs=5 / number**0.5)


def test_expectations_equal_the_sum_over_all_outcomes(monkeypatch):
    monkeypatch.setattr(sense_scores, "DRAWS", 40_000)
    sizes, draw = np.array([40, 12, 9]), Draw(7, 0.2, 0.5)
    counts = np.array([[20, 6, 5], [9, 0, 1], [0, 0, 7], [3, 2, 1], [0, 0, 0]])
    means, blends = matched(counts, sizes, draw, np.random.default_rng(0))
    for latent in range(3):
        assert means[latent] == pytest.approx((exact(counts[latent], sizes, 7, atomicity) - 0.2) / 0.8, abs=0.01)
        assert blends[latent] == pytest.approx(exact(counts[latent], sizes, 7, blended), abs=0.01)
    assert means[2] == 1 and np.isnan(means[3:]).all() and np.isnan(blends[3:]).all()


@pytest.mark.parametrize(
    "sizes", [EVEN, SKEWED, np.array([361, 66, 178, 496, 1240]), np.array([2000, 40]), np.array([3, 2])]
)
def test_a_draw_is_the_smallest_where_chance_is_low(sizes):
    draw = draw_for(sizes, np.random.default_rng(0))
    assert draw.atomicity <= AT_CHANCE and 2 <= draw.size <= sizes.sum()
    at_random = draws(sizes[None], draw.size, 20_000, np.random.default_rng(1))[0]
    assert atomicity(at_random, sizes).mean() == pytest.approx(draw.atomicity, abs=0.01)
    if draw.size < sizes.sum():
        smaller = draws(sizes[None], int(draw.size / 1.25), 20_000, np.random.default_rng(2))[0]
        assert atomicity(smaller, sizes).mean() > AT_CHANCE


def firings(sizes, per_sense, n_latents, rng):
    """Latents that fire on a random part of each sense: counts [l, S]."""
    return rng.binomial(sizes, np.broadcast_to(per_sense, (n_latents, len(sizes))))


def thin(counts, kept, rng):
    return rng.binomial(counts, kept)


@pytest.mark.parametrize("sizes", [EVEN, SKEWED])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.03])
def test_latents_that_fire_at_random_have_nothing_however_narrow(sizes, share):
    rng = np.random.default_rng(0)
    draw = draw_for(sizes, rng)
    # exactly m of all tokens: what shuffling the senses of the word's tokens gives
    m = max(round(share * sizes.sum()), draw.size)
    counts = rng.multivariate_hypergeometric(sizes, m, size=400)
    means, blends = matched(counts, sizes, draw, rng)
    error = means.std() / len(means) ** 0.5
    assert abs(means.mean()) < 4 * error + 0.005
    assert blends.mean() == pytest.approx(draw.blend, abs=0.03)
    if m == draw.size:
        # by the raw number they would have passed for a little atomic
        assert atomicity(counts, sizes).mean() > 0.03


@pytest.mark.parametrize("sizes", [EVEN, SKEWED])
@pytest.mark.parametrize(
    "profile", [[0.9, 0.9, 0.0], [0.9, 0.0, 0.9], [0.9, 0.3, 0.3], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.9, 0.9]]
)
def test_narrower_latents_with_the_same_blend_do_not_look_more_or_less_atomic(sizes, profile):
    rng = np.random.default_rng(1)
    draw = draw_for(sizes, rng)
    whole = firings(sizes, profile, 300, rng)
    means = matched(whole, sizes, draw, rng)[0]
    for kept in (0.9, 0.4):
        narrow = matched(thin(whole, kept, rng), sizes, draw, rng)[0]
        judged = ~np.isnan(narrow)
        assert judged.mean() > 0.9
        error = np.hypot(means[judged].std(), narrow[judged].std()) / judged.sum() ** 0.5
        assert abs(narrow[judged].mean() - means[judged].mean()) < 4 * error + 0.003


@pytest.mark.parametrize("sizes", [EVEN, SKEWED])
def test_one_sense_only_is_1_and_purer_is_more(sizes):
    rng = np.random.default_rng(2)
    draw = draw_for(sizes, rng)
    assert (matched(firings(sizes, [0.8, 0, 0], 20, rng), sizes, draw, rng)[0] == 1).all()
    common_first = [[0.8, 0.8, 0.8], [0.8, 0.4, 0.2], [0.8, 0.2, 0.0], [0.8, 0.0, 0.0]]
    rare_first = [[0.5, 0.5, 0.5], [0.2, 0.8, 0.4], [0.05, 0.8, 0.0], [0.0, 0.8, 0.0]]
    for rising in (common_first, rare_first):
        values = [matched(firings(sizes, profile, 60, rng), sizes, draw, rng)[0].mean() for profile in rising]
        assert values == sorted(values) and values[0] == pytest.approx(0, abs=0.02)


def test_the_same_seed_gives_the_same_numbers():
    counts, draw = np.array([[50, 20, 9], [80, 2, 0]]), Draw(30, 0.05, 0.9)
    first, second = (matched(counts, EVEN, draw, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
