import json

import numpy as np
import pytest

from metasae.measures.cofiring.phi_sums import bands_of, matched_mean, rate_cells, rate_edges


def test_bands_are_quarter_decades_and_hold_every_rate():
    edges = rate_edges()
    rates = np.concatenate([edges[:-1], np.geomspace(1e-8, 0.999, 1000)])
    bands = bands_of(rates)
    assert np.all(edges[bands] <= rates) and np.all(rates < edges[bands + 1])
    assert bands_of(np.array([1e-12, 0.9999]))[[0, 1]].tolist() == [0, len(edges) - 2]
    assert edges[4] / edges[0] == pytest.approx(10)


def test_an_sae_through_json_and_back_is_at_its_own_rates():
    rng = np.random.default_rng(0)
    bands = np.sort(rng.integers(0, 32, 40))[::-1]
    cells = rate_cells(bands, np.tril(rng.random((32, 32))))
    assert sum(cells["pairs"]) == 40 * 39 // 2
    mean = np.average(cells["mean_abs_phi"], weights=cells["pairs"])
    assert matched_mean(json.loads(json.dumps(cells)), cells) == (pytest.approx(mean), pytest.approx(mean))


def test_matched_mean_by_hand():
    a = dict(frequent=[0.1, 0.01], rare=[0.1, 0.01], pairs=[30, 10], mean_abs_phi=[0.2, 0.02])
    b = dict(frequent=[0.1, 0.01, 0.1], rare=[0.1, 0.01, 0.001], pairs=[10, 30, 60], mean_abs_phi=[0.2, 0.02, 0.5])
    # both have the same mean in each shared cell, so they are equal at equal rates; the plain means are 0.155 and 0.326
    of_a, of_b = matched_mean(a, b)
    assert of_a == of_b == pytest.approx((40 * 0.2 + 40 * 0.02) / 80)
    half = dict(frequent=[0.1], rare=[0.1], pairs=[5], mean_abs_phi=[0.1])
    assert matched_mean(a, half) == (pytest.approx(0.2), pytest.approx(0.1))


def test_nothing_shared():
    a = dict(frequent=[0.1], rare=[0.1], pairs=[3], mean_abs_phi=[0.2])
    b = dict(frequent=[0.1], rare=[0.01], pairs=[3], mean_abs_phi=[0.2])
    empty = dict(frequent=[], rare=[], pairs=[], mean_abs_phi=[])
    assert matched_mean(a, b) == matched_mean(a, empty) == (None, None)


def sampled_cells(spread: float, seed: int) -> tuple[dict, float]:
    """Pairs of one lift whatever their rates, |phi| = 0.5 sqrt(p q), with log-normal rates: its cells and plain
    mean."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(-5, spread, 1500)).clip(1e-7, 0.5)
    rates.sort()
    high, low = np.tril_indices(len(rates), -1)
    phi, bands = 0.5 * np.sqrt(rates[high] * rates[low]), bands_of(rates)
    sums = np.zeros((32, 32))
    np.add.at(sums, (bands[high], bands[low]), phi)
    return rate_cells(bands, sums), phi.mean()


def test_a_wider_spread_of_rates_alone_moves_the_plain_mean_but_hardly_the_matched_one():
    (wide, plain_wide), (narrow, plain_narrow) = sampled_cells(1.15, 0), sampled_cells(1.0, 1)
    of_wide, of_narrow = matched_mean(wide, narrow)
    assert abs(plain_wide / plain_narrow - 1) > 0.05 and abs(of_wide / of_narrow - 1) < 0.007
