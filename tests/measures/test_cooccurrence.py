import math

import numpy as np
import pytest
import torch

from metasae.measures.cooccurrence import SHARES_ABOVE, CoFirings, pair_statistics, phi_edges
from metasae.measures.firings import Firings


def firings_of(on) -> Firings:
    """on: bool [T, n]."""
    on = np.asarray(on, bool)
    rows, columns = np.nonzero(on)
    indptr = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64)
    place = np.zeros(len(on), np.int32)
    return Firings(indptr, columns.astype(np.int32), np.ones(len(rows), np.float32), on.shape[1], place, place, place)


def oracle(on):
    """Every pair in Python integers: {(i, j): (N11, phi)}."""
    total = len(on)
    on = [[int(value) for value in column] for column in np.asarray(on).T]
    kept = [i for i, column in enumerate(on) if 0 < sum(column) < total]
    pairs = {}
    for place, i in enumerate(kept):
        for j in kept[place + 1 :]:
            n11 = sum(a & b for a, b in zip(on[i], on[j], strict=True))
            ni, nj = sum(on[i]), sum(on[j])
            pairs[i, j] = n11, (n11 * total - ni * nj) / math.sqrt(ni * (total - ni) * nj * (total - nj))
    return kept, pairs


def random_on(n_tokens, n, seed):
    rng = np.random.default_rng(seed)
    return rng.random((n_tokens, n)) < rng.uniform(0.01, 0.6, n)


@pytest.mark.parametrize("tile", [1, 3, 512])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_brute_force(tile, seed):
    on = random_on(80, 13, seed)
    on[:, 4] = False
    on[:, 7] = True
    on[:, 11] = on[:, 2]
    firings = firings_of(on)
    kept, pairs = oracle(on)

    seen = {}
    for start in range(0, len(kept), tile):
        counts = CoFirings(firings, np.asarray(kept)).tile(start, tile)
        assert counts.dtype == np.int64
        for r in range(len(counts)):
            for c in range(r + 1, counts.shape[1]):
                seen[kept[start + r], kept[start + c]] = int(counts[r, c])
    assert seen == {pair: n11 for pair, (n11, _) in pairs.items()}

    found = pair_statistics(firings, tile)
    phi = np.array([value for _, value in pairs.values()])
    assert found.n_pairs == len(phi) and (found.never, found.always) == (int((on.sum(0) == 0).sum()), int(on.all(0).sum()))
    assert found.mean_abs_phi == pytest.approx(np.abs(phi).mean(), abs=1e-12)
    assert found.mean_pos_phi == pytest.approx(phi[phi > 0].mean(), abs=1e-12)
    assert found.mean_neg_phi == pytest.approx(phi[phi < 0].mean(), abs=1e-12)
    assert found.share_pos == (phi > 0).mean() and found.share_neg == (phi < 0).mean()
    for limit in SHARES_ABOVE:
        assert found.shares_above[limit] == (phi > limit).mean()
    nearest = [max(value for pair, (_, value) in pairs.items() if i in pair) for i in kept]
    assert found.nearest_phi == pytest.approx(np.mean(nearest), abs=1e-12)
    assert found.floor == math.sqrt(2 / (math.pi * 80)) and found.l0_realised == on.sum() / 80
    assert found.histogram.sum() == len(phi)
    edges = np.append(found.edges[:-1], 1 + 1e-9)
    assert found.histogram.tolist() == np.histogram(phi, edges)[0].tolist()


def test_duplicates_have_phi_one_and_complements_minus_one():
    a = np.arange(10) % 3 == 0
    found = pair_statistics(firings_of(np.stack([a, a], 1)))
    assert found.mean_abs_phi == pytest.approx(1, abs=1e-12) and found.nearest_phi == pytest.approx(1, abs=1e-12)
    assert found.shares_above[0.3] == 1 and found.histogram[-1] == 1 and found.mean_neg_phi is None
    opposite = pair_statistics(firings_of(np.stack([a, ~a], 1)))
    assert opposite.mean_neg_phi == pytest.approx(-1, abs=1e-12) and opposite.mean_pos_phi is None and opposite.histogram[0] == 1


def test_by_hand():
    # N = 4, Ni = Nj = 2, N11 = 1: phi = (4 - 4) / 4 = 0; with N11 = 0: -4 / 4 = -1
    on = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    found = pair_statistics(firings_of(on))
    assert found.mean_abs_phi == pytest.approx(1 / 3) and found.mean_neg_phi == -1 and found.share_neg == 1 / 3
    assert found.nearest_phi == 0 and found.share_pos == 0


@pytest.mark.parametrize("on", [np.ones((1, 5)), np.zeros((6, 5)), np.zeros((0, 5)), np.eye(3)[:, :1]])
def test_no_pairs(on):
    found = pair_statistics(firings_of(on))
    assert found.n_pairs == 0 and found.mean_abs_phi is None and found.nearest_phi is None
    assert found.never + found.always == on.shape[1] - (1 if on.shape == (3, 1) else 0)
    assert all(value is None for value in found.quantiles.values())


def test_counts_beyond_sixteen_bits_and_products_beyond_fifty_three():
    # 140,000 tokens: N11 is above 65,504, where half precision ends
    n_tokens = 140_000
    on = np.zeros((n_tokens, 2), bool)
    on[:70_001, 0] = on[:70_000, 1] = True
    firings = firings_of(on)
    counts = CoFirings(firings, np.arange(2)).tile(0, 2)
    assert counts[0, 1] == 70_000
    n1, n2 = 70_001, 70_000
    exact = (70_000 * n_tokens - n1 * n2) / math.sqrt(n1 * (n_tokens - n1) * n2 * (n_tokens - n2))
    assert pair_statistics(firings).mean_abs_phi == pytest.approx(exact, abs=1e-12)


def test_quantiles_are_within_a_bin():
    on = random_on(3000, 60, 5)
    phi = np.sort([value for _, value in oracle(on)[1].values()])
    found = pair_statistics(firings_of(on))
    for q, value in found.quantiles.items():
        exact = np.quantile(phi, q)
        assert abs(value - exact) <= 0.06 * abs(exact) + 3e-4, q


def test_edges_are_symmetric_and_rise():
    edges = phi_edges()
    assert np.all(np.diff(edges) > 0) and edges[0] == -1 and edges[-1] == 1
    assert np.array_equal(edges, -edges[::-1])


def test_as_dict_names():
    found = pair_statistics(firings_of(random_on(50, 6, 0))).as_dict()
    assert {"mean_abs_phi", "share_above_0.05", "share_above_0.1", "share_above_0.3", "nearest_phi", "l0_realised", "n_tokens"} <= set(found)
    assert set(found["excluded"]) == {"never", "always"}


def test_the_number_of_threads_changes_nothing():
    firings, threads = firings_of(random_on(300, 40, 2)), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(pair_statistics(firings, 7).as_dict())
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(found[0].items(), found[1].items(), strict=True):
        np.testing.assert_equal(one, other)
