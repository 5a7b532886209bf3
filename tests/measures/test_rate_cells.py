import json

import numpy as np
import pytest

from metasae.measures.cofiring.rate_cells import RateCells, bands_of, matched_mean, rate_edges


def cells_of(**found):
    """cells_of(frequent=[...], rare=[...], pairs=[...], mean_abs_phi=[...])."""
    return RateCells.from_dict(found)


def test_bands_are_quarter_decades_and_hold_every_rate():
    edges = rate_edges()
    rates = np.concatenate([edges[:-1], np.geomspace(1e-8, 0.999, 1000)])
    bands = bands_of(rates)
    assert np.all(edges[bands] <= rates) and np.all(rates < edges[bands + 1])
    assert bands_of(np.array([1e-12, 0.9999]))[[0, 1]].tolist() == [0, len(edges) - 2]
    assert edges[4] / edges[0] == pytest.approx(10)


def test_through_json_and_back():
    rng = np.random.default_rng(0)
    pairs = np.tril(rng.integers(0, 3, (32, 32)))
    cells = RateCells(pairs, np.where(pairs > 0, rng.random((32, 32)), np.nan))
    back = RateCells.from_dict(json.loads(json.dumps(cells.as_dict())))
    np.testing.assert_array_equal(back.pairs, cells.pairs)
    np.testing.assert_array_equal(back.mean_abs_phi, cells.mean_abs_phi)


def test_matched_mean_by_hand():
    a = cells_of(frequent=[0.1, 0.01], rare=[0.1, 0.01], pairs=[30, 10], mean_abs_phi=[0.2, 0.02])
    b = cells_of(frequent=[0.1, 0.01, 0.1], rare=[0.1, 0.01, 0.001], pairs=[10, 30, 60], mean_abs_phi=[0.2, 0.02, 0.5])
    found = matched_mean(a, b)
    # both have the same mean in each shared cell, so they are equal at equal rates; the plain means are 0.155 and 0.326
    assert found.a == found.b == pytest.approx((40 * 0.2 + 40 * 0.02) / 80) and found.percent == 0
    assert (found.n_cells, found.share_a, found.share_b) == (2, 1.0, 0.4)
    assert matched_mean(
        a, cells_of(frequent=[0.1], rare=[0.1], pairs=[5], mean_abs_phi=[0.1])
    ).percent == pytest.approx(100)


def test_nothing_shared():
    a = cells_of(frequent=[0.1], rare=[0.1], pairs=[3], mean_abs_phi=[0.2])
    b = cells_of(frequent=[0.1], rare=[0.01], pairs=[3], mean_abs_phi=[0.2])
    found = matched_mean(a, b)
    assert found.a is found.b is found.percent is None and (found.n_cells, found.share_a) == (0, 0.0)
    empty = cells_of(frequent=[], rare=[], pairs=[], mean_abs_phi=[])
    assert matched_mean(a, empty).share_b is None


def sampled_cells(spread: float, seed: int) -> tuple[RateCells, float]:
    """Pairs of one lift whatever their rates, |phi| = 0.5 sqrt(p q), with log-normal rates: its cells and plain mean."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(-5, spread, 1500)).clip(1e-7, 0.5)
    rates.sort()
    high, low = np.tril_indices(len(rates), -1)
    phi, bands = 0.5 * np.sqrt(rates[high] * rates[low]), bands_of(rates)
    pairs, sums = np.zeros((32, 32), np.int64), np.zeros((32, 32))
    np.add.at(pairs, (bands[high], bands[low]), 1)
    np.add.at(sums, (bands[high], bands[low]), phi)
    return RateCells(pairs, np.divide(sums, pairs, out=np.full((32, 32), np.nan), where=pairs > 0)), phi.mean()


def test_a_wider_spread_of_rates_alone_moves_the_plain_mean_but_hardly_the_matched_one():
    (wide, plain_wide), (narrow, plain_narrow) = sampled_cells(1.15, 0), sampled_cells(1.0, 1)
    found = matched_mean(wide, narrow)
    assert abs(plain_wide / plain_narrow - 1) > 0.05 and abs(found.percent) < 0.7 and found.share_b > 0.95
