import json
import math

import numpy as np
import pytest
import torch
from firing_tables import firings_of, random_on

from metasae.files import json_safe
from metasae.measures.cofiring.cooccurrence import OVER_MAX_ABOVE, SHARES_ABOVE, pair_statistics
from metasae.measures.cofiring.counts import CoFirings
from metasae.measures.cofiring.phi_sums import bands_of
from metasae.measures.firing.firings import document_blocks


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


@pytest.mark.parametrize("tile", [1, 3, 512])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_brute_force(tile, seed):
    on = random_on(80, 13, seed)
    firings = firings_of(on)
    kept, pairs = oracle(on)

    statistics = pair_statistics(firings, tile=tile)
    phi = np.array([value for _, value in pairs.values()])
    assert statistics["n_pairs"] == len(phi) and statistics["excluded"] == {
        "never": int((on.sum(0) == 0).sum()),
        "always": int(on.all(0).sum()),
    }
    assert statistics["mean_abs_phi"] == pytest.approx(np.abs(phi).mean(), abs=1e-12)
    assert statistics["mean_pos_phi"] == pytest.approx(phi[phi > 0].mean(), abs=1e-12)
    assert statistics["mean_neg_phi"] == pytest.approx(phi[phi < 0].mean(), abs=1e-12)
    assert statistics["share_pos"] == (phi > 0).mean() and statistics["share_neg"] == (phi < 0).mean()
    for limit in SHARES_ABOVE:
        assert statistics[f"share_above_{limit:g}"] == (phi > limit).mean()
    nearest = [max(value for pair, (_, value) in pairs.items() if i in pair) for i in kept]
    assert statistics["nearest_phi"] == pytest.approx(np.mean(nearest), abs=1e-12)
    assert statistics["floor"] == math.sqrt(2 / (math.pi * 80)) and statistics["l0_realised"] == on.sum() / 80
    assert statistics["histogram"]["counts"].sum() == len(phi)
    edges = np.append(statistics["histogram"]["edges"][:-1], 1 + 1e-9)
    assert statistics["histogram"]["counts"].tolist() == np.histogram(phi, edges)[0].tolist()

    rates = on.mean(0)
    over_max, of_cell = [], {}
    for (i, j), (_, value) in pairs.items():
        p, q = min(rates[i], rates[j]), max(rates[i], rates[j])
        if value > 0:
            over_max.append(value / math.sqrt(p * (1 - q) / (q * (1 - p))))
        of_cell.setdefault((*bands_of(np.array([q, p])),), []).append(abs(value))
    assert statistics["mean_over_max"] == pytest.approx(np.mean(over_max), abs=1e-12)
    for limit in OVER_MAX_ABOVE:
        assert statistics[f"over_max_above_{limit:g}"] == np.mean(np.array(over_max) > limit)
    cells = statistics["rate_cells"]
    assert sum(cells["pairs"]) == len(phi) and len(cells["pairs"]) == len(of_cell)
    frequent, rare = (bands_of(1.01 * np.array(cells[side])).tolist() for side in ("frequent", "rare"))
    places = {cell: place for place, cell in enumerate(zip(frequent, rare, strict=True))}
    for cell, values in of_cell.items():
        assert cells["pairs"][places[cell]] == len(values)
        assert cells["mean_abs_phi"][places[cell]] == pytest.approx(np.mean(values), abs=1e-12)


def test_duplicates_have_phi_one_and_complements_minus_one():
    a = np.arange(10) % 3 == 0
    statistics = pair_statistics(firings_of(np.stack([a, a], 1)))
    assert statistics["mean_abs_phi"] == pytest.approx(1, abs=1e-12) and statistics["nearest_phi"] == pytest.approx(
        1, abs=1e-12
    )
    assert (
        statistics["share_above_0.3"] == 1
        and statistics["histogram"]["counts"][-1] == 1
        and statistics["mean_neg_phi"] is None
    )
    opposite = pair_statistics(firings_of(np.stack([a, ~a], 1)))
    assert (
        opposite["mean_neg_phi"] == pytest.approx(-1, abs=1e-12)
        and opposite["mean_pos_phi"] is None
        and opposite["histogram"]["counts"][0] == 1
    )


def test_by_hand():
    # N = 4, Ni = Nj = 2, N11 = 1: phi = (4 - 4) / 4 = 0; with N11 = 0: -4 / 4 = -1
    on = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    statistics = pair_statistics(firings_of(on))
    assert (
        statistics["mean_abs_phi"] == pytest.approx(1 / 3)
        and statistics["mean_neg_phi"] == -1
        and statistics["share_neg"] == 1 / 3
    )
    assert statistics["nearest_phi"] == 0 and statistics["share_pos"] == 0


@pytest.mark.parametrize("on", [np.ones((1, 5)), np.zeros((6, 5)), np.zeros((0, 5)), np.eye(3)[:, :1]])
def test_no_pairs(on):
    statistics = pair_statistics(firings_of(on))
    assert statistics["n_pairs"] == 0 and statistics["mean_abs_phi"] is None and statistics["nearest_phi"] is None
    assert sum(statistics["excluded"].values()) == on.shape[1] - (1 if on.shape == (3, 1) else 0)
    assert all(value is None for value in statistics["quantiles"].values())


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
    assert pair_statistics(firings)["mean_abs_phi"] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("tile", [2, 64])
def test_leaving_a_block_out_is_measuring_without_its_documents(tile):
    on = random_on(90, 12, 8)
    blocks = document_blocks(firings_of(on).documents, 5)
    # 7 fires in one block only, 8 everywhere but there: without that block neither makes pairs
    on[:, 7], on[:, 8] = (blocks == 2) & (np.arange(90) % 2 == 0), blocks != 2
    statistics = pair_statistics(firings_of(on), blocks, tile)["leave_one_out"]
    for block in range(5):
        without = pair_statistics(firings_of(on[blocks != block]))
        assert without["n_pairs"] < pair_statistics(firings_of(on))["n_pairs"] or block != 2
        for name, values in statistics.items():
            assert len(values) == 5 and values[block] == pytest.approx(without[name], abs=1e-12), name


def test_blocks_change_nothing_else_and_a_single_one_leaves_nothing():
    firings = firings_of(random_on(40, 8, 1))
    with_blocks, without = (
        json_safe(pair_statistics(firings, blocks)) for blocks in (document_blocks(firings.documents, 3), None)
    )
    assert without.pop("leave_one_out") == {name: [] for name in with_blocks.pop("leave_one_out")}
    assert with_blocks == without
    alone = pair_statistics(firings, np.zeros(40, np.int8))["leave_one_out"]
    names = ("mean_abs_phi", "mean_pos_phi", "nearest_phi", "share_above_0.1")
    assert alone == {name: [None] for name in names}


def test_phi_over_its_maximum_by_hand():
    # N = 8; latent 1 (2 tokens) always fires within latent 0 (4 tokens): phi is as large as it can be, sqrt(1/3)
    on = np.zeros((8, 3), bool)
    on[:4, 0] = on[:2, 1] = on[4:, 2] = True
    statistics = pair_statistics(firings_of(on))
    assert statistics["mean_pos_phi"] == pytest.approx(math.sqrt(1 / 3)) and statistics[
        "mean_over_max"
    ] == pytest.approx(1)
    assert statistics["share_pos"] == 1 / 3 and all(
        statistics[f"over_max_above_{limit}"] == 1 for limit in (0.1, 0.3, 0.5)
    )


def test_quantiles_are_within_a_bin():
    rng = np.random.default_rng(5)
    on = rng.random((3000, 60)) < rng.uniform(0.01, 0.6, 60)
    phi = np.sort([value for _, value in oracle(on)[1].values()])
    statistics = pair_statistics(firings_of(on))
    for q, value in statistics["quantiles"].items():
        exact = np.quantile(phi, float(q))
        assert abs(value - exact) <= 0.06 * abs(exact) + 3e-4, q


def test_as_dict_names():
    statistics = pair_statistics(firings_of(random_on(50, 6, 0)))
    assert {
        "mean_abs_phi",
        "share_above_0.05",
        "share_above_0.1",
        "share_above_0.3",
        "nearest_phi",
        "l0_realised",
        "n_tokens",
    } <= set(statistics)
    assert set(statistics["excluded"]) == {"never", "always"}


def test_the_number_of_threads_and_the_memory_change_nothing():
    firings, threads = firings_of(random_on(300, 40, 2)), torch.get_num_threads()
    statistics = []
    try:
        for count, memory in ((1, 2**30), (3, 2**30), (3, 0)):
            torch.set_num_threads(count)
            statistics.append(json.dumps(json_safe(pair_statistics(firings, tile=7, memory=memory))))
    finally:
        torch.set_num_threads(threads)
    assert statistics[0] == statistics[1] == statistics[2]
