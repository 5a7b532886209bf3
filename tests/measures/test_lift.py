import json
import math

import numpy as np
import pytest
import torch
from drawn import firings_of, independent, log_normal_rates, pairs_of, rasch, topical

from metasae.measures.cofiring import lift
from metasae.measures.cofiring.dependence import dependence
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.lift import FDR, cut_bin, lift_statistics, log_lift, p_edges, two_sided_p


def p_of(n11, expected, draws):
    return float(two_sided_p(np.array([n11]), np.array([float(expected)]), np.array([draws]))[0])


def test_shrunk_lift_by_hand():
    statistics = log_lift(np.array([0, 8, 5, 3]), np.array([8.0, 8.0, 1.0, 0.01]))
    np.testing.assert_allclose(statistics, [-math.log(9), 0, math.log(3), math.log(4 / 1.01)])


def test_p_by_hand():
    # three tosses at 1/3: P(X = 3) = 1/27, P(X = 0) = 8/27
    assert p_of(3, 1, 3) == pytest.approx(2 / 27) and p_of(0, 1, 3) == pytest.approx(16 / 27) and p_of(1, 1, 3) == 1
    # no chance to meet at all, and none to miss
    assert p_of(1, 0, 4) == 0 and p_of(0, 0, 4) == 1 and p_of(4, 4, 4) == 1 and p_of(3, 4, 4) == 0
    assert p_of(100, 1.0, 100) == pytest.approx(2e-200, rel=1e-6) and 0 <= p_of(200, 2.0, 200) < 1e-300


@pytest.mark.parametrize("draws,expected", [(30, 2.5), (30, 29.0), (400, 17.3), (7, 3.5)])
def test_tails_against_the_sum_of_binomial_terms(draws, expected):
    share = expected / draws
    law = [math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(draws + 1)]
    for n11 in range(draws + 1):
        tail = math.fsum(law[n11:]) if n11 > expected else math.fsum(law[: n11 + 1])
        assert p_of(n11, expected, draws) == pytest.approx(min(1, 2 * tail), rel=1e-8, abs=1e-150)


@pytest.mark.parametrize(
    "total,ni,nj,ratio",
    [(20_000, 20, 30, 1.2), (20_000, 200, 150, 1.3), (20_000, 200, 6000, 1.4), (20_000, 4000, 5000, 100)],
)
def test_tails_are_never_below_those_of_independent_latents(total, ni, nj, ratio):
    from scipy.stats import hypergeom

    law, mean = hypergeom(total, ni, nj), ni * nj / total
    for n11 in range(int(max(mean - 6 * law.std(), 0)), int(min(mean + 6 * law.std() + 3, ni))):
        exact = min(1, 2 * (law.sf(n11 - 1) if n11 > mean else law.cdf(n11)))
        if abs(n11 - mean) >= 1 and exact > 1e-8:
            assert exact * (1 - 1e-6) <= p_of(n11, mean, min(ni, nj)) <= exact * ratio


def test_the_cut_is_at_most_a_bin_below_the_exact_one():
    rng = np.random.default_rng(0)
    for n_planted in (0, 3, 40, 2000):
        p = np.concatenate([rng.random(10_000), 10.0 ** -rng.uniform(3, 20, n_planted)])
        ordered = np.sort(p)
        passes = np.flatnonzero(ordered <= FDR * np.arange(1, len(p) + 1) / len(p))
        exact = ordered[passes[-1]] if len(passes) else 0.0
        bins = np.searchsorted(p_edges(), p, side="left")
        cut = cut_bin(np.bincount(bins, minlength=len(p_edges()) + 1)[:-1], len(p))
        edge = 0.0 if cut is None else p_edges()[cut]
        called, wanted = (p <= edge).sum(), (p <= exact).sum()
        assert wanted * 0.98 - 1 <= called <= wanted and called >= 0.95 * n_planted * (n_planted > 3)
        assert edge == 0 or edge * len(p) <= FDR * called


def test_the_grid_of_p_ends_at_the_rate():
    edges = p_edges()
    assert edges[0] == 1e-14 and edges[-1] == pytest.approx(FDR, rel=1e-12) and np.all(np.diff(edges) > 0)
    bins = lift._p_bins(np.array([0.0, 1e-14, 1.01e-14, 0.0099, 0.0101, 1.0]))
    assert bins.tolist() == [0, 0, 1, len(edges) - 1, len(edges), len(edges)]


def oracle(on, expected_of, cut):
    """The statistics of `Lift` pair by pair, with everything called that has p <= cut."""
    total, counts = len(on), np.asarray(on).sum(0)
    partners = {"positive": set(), "negative": set(), "contained": set()}
    positive, negative, wide, ratios, ratios_called, small = [], [], [0, 0], [], [], 0
    for i, j, n11, ni, nj in pairs_of(on):
        if min(ni, nj) < 10:
            continue
        expected, apart = expected_of(i, j), ni * nj / total
        value, p = math.log((n11 + 1) / (expected + 1)), p_of(n11, expected, min(ni, nj))
        ratio = (n11 - apart) / (min(ni, nj) - apart)
        small += expected < 5
        if n11 > apart:
            ratios.append(ratio)
        if p > cut:
            continue
        (positive if value > 0 else negative).append(value)
        if abs(value) > math.log(3):
            wide[value < 0] += 1
            partners["positive" if value > 0 else "negative"] |= {i, j}
        if value > 0:
            ratios_called.append(max(ratio, 0))
            if ratio > 0.5:
                partners["contained"] |= {i, j}
    n = int(np.sum((counts >= 10) & (counts < total)))
    n_pairs = n * (n - 1) // 2
    return {
        "share_with_positive": len(partners["positive"]) / n,
        "share_with_negative": len(partners["negative"]) / n,
        "share_with_partner": len(partners["positive"] | partners["negative"]) / n,
        "share_contained": len(partners["contained"]) / n,
        "share_pairs_positive": len(positive) / n_pairs,
        "share_pairs_negative": len(negative) / n_pairs,
        "share_pairs_wide_positive": wide[0] / n_pairs,
        "share_pairs_wide_negative": wide[1] / n_pairs,
        "phi_over_max": np.mean(ratios),
        "phi_over_max_called": np.mean(ratios_called),
        "share_expected_below_5": small / n_pairs,
    }, (positive, negative)


def structured(seed, n=40, n_tokens=1500):
    """Topics, a duplicate, a part and a whole, two that avoid each other, one rare, one dead and one that always
    fires."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 4, n_tokens)
    p = log_normal_rates(rng, n, 5)
    on = rng.random((n_tokens, n)) < np.minimum(p * np.where(topic[:, None] == rng.integers(0, 4, n), 3.2, 0.27), 0.9)
    on[:, 1] = on[:, 0] = rng.random(n_tokens) < 0.05
    on[:, 3] = on[:, 2] & (rng.random(n_tokens) < 0.5)
    on[:, 4] = rng.random(n_tokens) < 0.4
    on[:, 5] = ~on[:, 4] & (rng.random(n_tokens) < 0.5)
    on[:, 6], on[:, 7], on[:, 8] = False, False, True
    on[20:26, 7] = True
    return on


@pytest.mark.parametrize("tile,chunk", [(1, 2048), (7, 3), (256, 2048)])
def test_against_the_brute_force(tile, chunk, monkeypatch):
    monkeypatch.setattr(lift, "COLUMNS", chunk)
    on = structured(0)
    counts = on.sum(0)
    statistics = lift_statistics(firings_of(on), tile=tile)
    assert statistics["p_cut"] is not None
    wanted, (positive, negative) = oracle(on, lambda i, j: counts[i] * counts[j] / len(on), statistics["p_cut"])
    for name, value in wanted.items():
        assert statistics[name] == pytest.approx(value, rel=1e-9), name
    width = math.log(3) / 22
    assert abs(statistics["median_positive"] - np.median(positive)) <= width
    assert abs(statistics["median_negative"] - np.median(negative)) <= width
    rare = int(((counts > 0) & (counts < 10)).sum())
    assert statistics["excluded"] == {"never": 1 + int((counts[9:] == 0).sum()), "rare": rare, "always": 1}
    assert statistics["null"] == "independence"


def test_few_false_calls_on_independent_latents():
    called = [lift_statistics(firings_of(independent(seed, 60, 1500, 6))) for seed in range(40)]
    # a rate of 1% with nothing to find: in one of a hundred texts is anything called
    assert sum(statistics["p_cut"] is not None for statistics in called) <= 2
    assert all(
        statistics["share_with_partner"] == 0 and statistics["median_positive"] is None
        for statistics in called
        if statistics["p_cut"] is None
    )


def test_busy_tokens_are_called_against_independence():
    called = [lift_statistics(firings_of(rasch(seed, 60, 1500, 6, 1.0)))["share_pairs_positive"] for seed in range(8)]
    assert min(called) > 0.05


def planted(seed):
    """30 independent latents and 10 pairs: five partners with lift 8, five that never meet; the true pairs."""
    rng = np.random.default_rng(seed)
    on = independent(seed, 50, 4000, 4)
    for first in range(0, 10, 2):
        on[:, first] = rng.random(4000) < 0.04
        on[:, first + 1] = rng.random(4000) < np.where(on[:, first], 0.32, 0.0283)
    for first in range(10, 20, 2):
        on[:, first] = rng.random(4000) < 0.1
        on[:, first + 1] = ~on[:, first] & (rng.random(4000) < 0.1)
    return on


def test_planted_partners_are_found_and_little_else():
    n_pairs, extra = 50 * 49 / 2, 0
    for seed in range(10):
        statistics = lift_statistics(firings_of(planted(seed)))
        scale = n_pairs if statistics["n_latents"] == 50 else statistics["n_pairs"]
        assert (
            statistics["share_pairs_wide_positive"] * scale >= 5 - 1e-6
            and statistics["share_pairs_wide_negative"] * scale >= 5 - 1e-6
        )
        extra += (statistics["share_pairs_positive"] + statistics["share_pairs_negative"]) * scale - 10
    # 100 true calls in all; at 1% about one false one
    assert extra <= 4


def test_duplicates_and_parts_are_contained():
    on = independent(1, 30, 3000, 3)
    before = lift_statistics(firings_of(on))
    on[:, 1] = on[:, 0] = np.arange(3000) % 20 == 0
    after = lift_statistics(firings_of(on))
    assert before["share_contained"] == 0 and after["share_contained"] * after["n_latents"] == 2
    assert after["phi_over_max_called"] == pytest.approx(1)


@pytest.mark.parametrize("changed", [{"l0": 6.0}, {"spread": 0.9}])
def test_rates_move_phi_and_leave_the_lift(changed):
    moved, kept = [], []
    for seed in range(3):
        # the topic changes from token to token of one document
        before, after = (
            firings_of(topical(seed, 200, 6000, 1, topics=5, lift=4, **{"l0": 8.0, "spread": 0.3} | variant)[0])
            for variant in ({}, changed)
        )
        moved.append(excess_phi(after)["excess_abs_phi"] / excess_phi(before)["excess_abs_phi"] - 1)
        kept.append(dependence(after)["value"] / dependence(before)["value"] - 1)
    # fewer firings, or the same number spread less evenly over latents, with the same lifts
    assert np.mean(moved) < -0.15 and abs(np.mean(kept)) < 0.06, (moved, kept)


def test_losing_firings_moves_phi_and_leaves_the_lift():
    rng, moved, kept = np.random.default_rng(2), [], []
    for seed in range(4):
        on = structured(seed, n=80, n_tokens=6000)[:, 9:]
        thin = on & (rng.random(on.shape) > 0.3)
        before, after = (firings_of(variant) for variant in (on, thin))
        moved.append(excess_phi(after)["excess_abs_phi"] / excess_phi(before)["excess_abs_phi"] - 1)
        kept.append(dependence(after)["value"] / dependence(before)["value"] - 1)
    # a random loss of 30% of all firings makes no latent more atomic
    assert np.mean(moved) < -0.25 and abs(np.mean(kept)) < 0.05


@pytest.mark.parametrize(
    "on", [np.ones((30, 5)), np.zeros((6, 5)), np.zeros((0, 5)), np.zeros((5, 0)), np.eye(3)[:, :1]]
)
def test_no_pairs(on):
    statistics = lift_statistics(firings_of(on))
    assert statistics["n_pairs"] == 0 and statistics["share_with_partner"] is None and statistics["p_cut"] is None
    assert sum(statistics["excluded"].values()) + statistics["n_latents"] == on.shape[1]
    json.dumps(statistics)


def test_the_number_of_threads_changes_nothing():
    firings, threads = firings_of(structured(3)), torch.get_num_threads()
    statistics = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            statistics.append(lift_statistics(firings, tile=7))
    finally:
        torch.set_num_threads(threads)
    assert statistics[0] == statistics[1]
