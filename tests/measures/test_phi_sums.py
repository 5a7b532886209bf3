import numpy as np
import pytest

from metasae.measures.cofiring.phi_sums import AllSums, PhiSums, bands_of, phi_bins, phi_edges, upper


def test_bins_are_those_of_a_search():
    rng = np.random.default_rng(0)
    for edges in (phi_edges(), phi_edges(1e-3, 7)):
        values = rng.uniform(-1, 1, 20_000) * 10 ** rng.uniform(-9, 0, 20_000)
        around = np.concatenate(
            [edges, np.nextafter(edges, 2), np.nextafter(edges, -2), values, [0.0, -0.0, 1e-300, -1e-300]]
        ).clip(-1, 1)
        expected = np.minimum(np.searchsorted(edges, around, side="right") - 1, len(edges) - 2)
        np.testing.assert_array_equal(phi_bins(around, edges), expected)


def test_edges_are_symmetric_and_rise():
    edges = phi_edges()
    assert np.all(np.diff(edges) > 0) and edges[0] == -1 and edges[-1] == 1
    assert np.array_equal(edges, -edges[::-1])


def symmetric(n, seed):
    phi = np.random.default_rng(seed).uniform(-1, 1, (n, n))
    return np.tril(phi, -1) + np.tril(phi, -1).T


@pytest.mark.parametrize("strip", [1, 4, 9])
def test_strips_add_up_to_all_pairs(strip):
    n = 9
    phi = symmetric(n, strip)
    counts = np.sort(np.random.default_rng(1).integers(1, 99, n))[::-1]
    odds, bands = np.sqrt(counts / (100 - counts)), bands_of(counts / 100)
    sums = AllSums(odds, bands, (0.3,), (0.5,))
    for start in range(0, n, strip):
        part = AllSums(odds, bands, (0.3,), (0.5,))
        part.add_strip(upper(phi[start : start + strip, start:].copy()), start)
        sums.merge(part)

    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    values = np.array([phi[i, j] for i, j in pairs])
    means = sums.means(len(pairs))
    assert means["mean_abs_phi"] == pytest.approx(np.abs(values).mean(), abs=1e-13)
    assert means["mean_pos_phi"] == pytest.approx(values[values > 0].mean(), abs=1e-13)
    assert means["mean_neg_phi"] == pytest.approx(values[values < 0].mean(), abs=1e-13)
    assert means["share_above_0.3"] == np.mean(values > 0.3)
    nearest = [max(phi[i, j] for j in range(n) if j != i) for i in range(n)]
    np.testing.assert_array_equal(sums.nearest, nearest)
    assert sums.histogram.sum() == len(pairs) and sums.histogram.min() >= 0
    np.testing.assert_array_equal(sums.histogram, np.histogram(values, phi_edges())[0])
    ratios = [
        phi[i, j] / np.sqrt(counts[j] * (100 - counts[i]) / (counts[i] * (100 - counts[j])))
        for i, j in pairs
        if phi[i, j] > 0
    ]
    assert sums.over_max_means()["mean_over_max"] == pytest.approx(np.mean(ratios), rel=1e-12)
    assert sums.over_max_means()["over_max_above_0.5"] == np.mean(np.array(ratios) > 0.5)
    of_cell = {}
    for i, j in pairs:
        of_cell.setdefault((bands[i], bands[j]), []).append(abs(phi[i, j]))
    assert np.count_nonzero(sums.cells) == len(of_cell)
    for cell, phis in of_cell.items():
        assert sums.cells[cell] == pytest.approx(np.sum(phis), abs=1e-13)


def test_chosen_places_only():
    """Latents 1 and 3 of four take no part: their nearest partner is none."""
    sums = PhiSums(4, ())
    sums.add(upper(np.array([[0.0, -0.4]])), np.array([0]), np.array([0, 2]))
    sums.add(upper(np.array([[0.0]])), np.array([2]), np.array([2]))
    assert sums.nearest.tolist() == [-0.4, -np.inf, -0.4, -np.inf] and sums.means(1)["nearest_phi"] == -0.4
