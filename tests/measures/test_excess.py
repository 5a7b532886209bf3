import functools
import json
import math

import numpy as np
import pytest
import torch
from drawn import firings_of, independent, pairs_of, rasch, root_of

from metasae.measures.cofiring import excess
from metasae.measures.cofiring.excess import SHARES_ABOVE, excess_phi, mean_abs_deviation
from metasae.measures.cofiring.marginals import fit


def deviation(mean, variance):
    return float(mean_abs_deviation(np.array([mean]), np.array([variance]))[0])


def exact_deviation(chances):
    """E|X - mean| of the sum of independent coin tosses, by convolution."""
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])
    return float(np.abs(np.arange(len(law)) - chances.sum()) @ law)


@pytest.mark.parametrize(
    "chances",
    [
        np.full(500, 0.002),
        np.linspace(0, 0.02, 200),
        np.linspace(0, 1, 200),
        np.linspace(0, 0.5, 400),
        np.full(300, 0.4),
        np.repeat([0.001, 0.6], 150),
    ],
)
def test_deviation_against_sums_of_unlike_coin_tosses(chances):
    numbers = deviation(chances.sum(), (chances * (1 - chances)).sum())
    assert numbers == pytest.approx(exact_deviation(chances), rel=2e-3)


@pytest.mark.parametrize(
    "total,ni,nj", [(2000, 20, 30), (2000, 600, 700), (2000, 3, 5), (2000, 1000, 1000), (20000, 300, 6000), (200, 5, 5)]
)
def test_deviation_against_the_hypergeometric(total, ni, nj):
    from scipy.stats import hypergeom

    law = hypergeom(total, ni, nj)
    mean = ni * nj / total
    exact = float(np.abs(np.arange(min(ni, nj) + 1) - mean) @ law.pmf(np.arange(min(ni, nj) + 1)))
    assert deviation(mean, law.var()) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("mean", [1e-6, 0.3, 1.0, 1.5, 20.0, 400.0])
def test_deviation_of_a_poisson_and_close_to_one(mean):
    from scipy.stats import poisson

    counts = np.arange(int(mean + 20 * math.sqrt(mean)) + 30)
    exact = float(np.abs(counts - mean) @ poisson.pmf(counts, mean))
    assert deviation(mean, mean) == pytest.approx(exact, rel=1e-9)
    # a variance a little above the mean or a little below it makes no jump
    for variance in (mean * (1 + 1e-3), mean * (1 - 0.9e-5), mean * (1 - 1.1e-5)):
        assert deviation(mean, variance) == pytest.approx(exact, rel=2e-5)


def test_deviation_of_what_cannot_vary():
    with np.errstate(all="raise"):
        assert deviation(0.0, 0.0) == 0 and deviation(3.0, 0.0) == 0 and deviation(0.4, 0.0) == 0
        assert mean_abs_deviation(np.zeros(0), np.zeros(0)).shape == (0,)


def oracle(on):
    """excess_abs_phi and its company, pair by pair and token by token."""
    on = np.asarray(on, bool)
    model, total = fit(on.sum(0), on.sum(1)), len(on)
    deviations, expected, phi0 = [], [], []
    for i, j, n11, ni, nj in pairs_of(on):
        mean = sum(
            size * (model.pi[i, g] * model.pi[j, g] - model.repulsion[i, g] * model.repulsion[j, g])
            for g, size in enumerate(model.sizes.tolist())
        )
        variance = float(model.pair_moments(np.array([i]), np.array([j]))[1][0, 0])
        root = root_of(total, ni, nj)
        deviations.append((n11 - mean) * total / root)
        cell = min(mean, ni - mean, nj - mean, total - ni - nj + mean)
        expected.append(deviation(max(cell, 0.0), variance) * total / root)
        phi0.append((mean * total - ni * nj) / root)
    return np.array(deviations), np.array(expected), np.array(phi0)


@pytest.mark.parametrize("tile", [1, 3, 512])
@pytest.mark.parametrize("chunk", [2, 2048])
def test_against_the_brute_force(tile, chunk, monkeypatch):
    monkeypatch.setattr(excess, "COLUMNS", chunk)
    on = rasch(0, 14, 90, 4, 0.8)
    on[:, 4], on[:, 7], on[:, 11] = False, True, on[:, 2]
    deviations, expected, phi0 = oracle(on)
    numbers = excess_phi(firings_of(on), tile=tile)
    assert (
        numbers["n_pairs"] == len(deviations)
        and numbers["excluded"]["never"] >= 1
        and numbers["excluded"]["always"] == 1
        and numbers["fit"]["converged"]
    )
    assert numbers["excess_abs_phi"] == pytest.approx((np.abs(deviations) - expected).mean(), abs=1e-10)
    assert numbers["null_abs_phi"] == pytest.approx(expected.mean(), abs=1e-10)
    assert numbers["signed_phi"] == pytest.approx(deviations.mean(), abs=1e-10)
    assert numbers["mean_phi0"] == pytest.approx(phi0.mean(), abs=1e-10)
    assert numbers["excess_pos"] == pytest.approx((np.maximum(deviations, 0) - expected / 2).mean(), abs=1e-10)
    assert numbers["excess_pos"] + numbers["excess_neg"] == pytest.approx(numbers["excess_abs_phi"], abs=1e-12)
    for limit in SHARES_ABOVE:
        assert numbers[f"share_above_{limit:g}"] == (deviations > limit).mean()


def jackknife_interval(values):
    """Half-width of the 95% interval from leave-one-out values."""
    from scipy.stats import t

    values = np.array(values)
    return float(
        t.ppf(0.975, len(values) - 1)
        * math.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
    )


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: independent(seed, 100, 2000, 10),
        lambda seed: rasch(seed, 100, 2000, 10, 0.5),
        lambda seed: rasch(seed, 100, 1000, 10, 1.0),
    ],
)
def test_no_excess_where_only_rates_and_token_counts_matter(draw):
    inside, shares = 0, []
    for seed in range(6):
        on = draw(seed)
        numbers = excess_phi(firings_of(on), blocks=np.arange(len(on)) * 8 // len(on))
        inside += abs(numbers["excess_abs_phi"]) <= jackknife_interval(numbers["leave_one_out"]["excess_abs_phi"])
        shares.append(
            [
                numbers["excess_abs_phi"] / numbers["null_abs_phi"],
                numbers["signed_phi"] / numbers["null_abs_phi"],
            ]
        )
    assert inside >= 5
    assert np.all(np.abs(np.mean(shares, 0)) < 0.01)


def test_busy_tokens_alone_look_like_co_occurrence_without_the_null():
    numbers = excess_phi(firings_of(rasch(0, 150, 2000, 10, 1.0)))
    assert (
        numbers["mean_phi0"] > 2 * numbers["null_abs_phi"]
        and abs(numbers["excess_abs_phi"]) < 0.02 * numbers["null_abs_phi"]
    )


def test_latents_that_go_together_or_avoid_each_other_are_in_excess():
    rng = np.random.default_rng(3)
    on = independent(3, 60, 3000, 5)
    plain = excess_phi(firings_of(on))
    on[:, 1] = on[:, 0] ^ (rng.random(3000) < 0.002)
    together = excess_phi(firings_of(on))
    assert (
        together["excess_pos"] > plain["excess_pos"] + 0.5 / together["n_pairs"]
        and together["share_above_0.3"] == 1 / together["n_pairs"]
    )
    on = independent(4, 150, 3000, 8)
    on[:, :40] = rng.random((3000, 40)) < 0.15
    plain = excess_phi(firings_of(on))
    on[:, 1:40:2] = ~on[:, 0:40:2] & (rng.random((3000, 20)) < 0.15 / 0.85)
    apart = excess_phi(firings_of(on))
    # 20 pairs of latents never meet: phi = -0.18. As the tokens' counts are held, others meet more often than the null
    # says
    assert apart["excess_abs_phi"] > plain["excess_abs_phi"] + 20 * 0.15 / apart["n_pairs"]
    assert apart["excess_neg"] > plain["excess_neg"] + 20 * 0.05 / apart["n_pairs"]


def test_leaving_a_block_out_is_measuring_without_its_tokens():
    on = rasch(5, 25, 240, 4, 0.7)
    blocks = np.repeat([0, 1, 2], [100, 60, 80])
    # one latent fires in the first block only, and so has no phi without it
    on[:, 6] = False
    on[3:9, 6] = True
    numbers = excess_phi(firings_of(on), blocks)
    for block in range(3):
        without = excess_phi(firings_of(on[blocks != block]))
        for name, values in numbers["leave_one_out"].items():
            assert values[block] == pytest.approx(without[name], abs=1e-10)
    plain = excess_phi(firings_of(on))
    assert {**numbers, "leave_one_out": 0, "fit": 0} == {**plain, "leave_one_out": 0, "fit": 0}
    assert plain["leave_one_out"] == {"excess_abs_phi": []}


@pytest.mark.parametrize("on", [np.ones((1, 5)), np.zeros((6, 5)), np.zeros((0, 5)), np.eye(3)[:, :1]])
def test_no_pairs(on):
    numbers = excess_phi(firings_of(on), blocks=np.arange(len(on)))
    assert numbers["n_pairs"] == 0 and numbers["fit"]["converged"]
    assert numbers["excess_abs_phi"] is None and numbers["share_above_0.1"] is None
    json.dumps(numbers)


def test_nested_firings_have_no_excess():
    on = np.linspace(0, 1, 40)[:, None] * 12 > np.arange(12)
    numbers = excess_phi(firings_of(on))
    assert numbers["excess_abs_phi"] == pytest.approx(0, abs=1e-5) and numbers["mean_phi0"] > 0.1


def test_a_fit_that_fails_gives_no_number(monkeypatch):
    monkeypatch.setattr(excess, "fit", functools.partial(fit, max_steps=0))
    numbers = excess_phi(firings_of(rasch(0, 30, 200, 5, 1.0)), blocks=np.arange(200) // 100)
    assert not numbers["fit"]["converged"] and numbers["fit"]["error"] > 1e-6 and numbers["n_pairs"] > 0
    assert numbers["excess_abs_phi"] is None and numbers["null_abs_phi"] is None and numbers["share_above_0.1"] is None
    assert numbers["leave_one_out"]["excess_abs_phi"] == [None, None]


def test_the_number_of_threads_changes_nothing():
    firings, threads = firings_of(rasch(2, 40, 300, 6, 0.5)), torch.get_num_threads()
    numbers = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            numbers.append(excess_phi(firings, tile=7))
    finally:
        torch.set_num_threads(threads)
    assert numbers[0] == numbers[1]
