import json

import numpy as np
import pytest
import torch
from drawn import firings_of, independent, topical

from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.shift import document_shifts, shift_null


def null_of(on, documents, seed=0, **options):
    firings = firings_of(on, documents)
    return shift_null(firings, pair_statistics(firings)["mean_abs_phi"], seed, **options)


def test_no_token_meets_one_of_its_own_document():
    documents = np.repeat([4, 9, 2, 7, 5], [3, 1, 4, 2, 3])
    shifts = document_shifts(documents)
    # starts 0, 3, 4, 8, 10; the longest document has 4 tokens, the text 13
    assert shifts.tolist() == [4, 8]
    for shift in shifts:
        assert np.all(documents != np.roll(documents, -shift))


@pytest.mark.parametrize("lengths", [[], [5], [3, 4], [9, 1, 1]])
def test_where_no_shift_keeps_documents_apart(lengths):
    documents = np.repeat(np.arange(len(lengths)), lengths)
    assert len(document_shifts(documents)) == 0
    null = null_of(independent(0, 8, sum(lengths), 3), documents)
    assert null["n_possible"] == 0 and null["n_documents"] == len(lengths)
    assert (
        null["null_abs_phi"] is None
        and null["excess_abs_phi"] is None
        and null["spread"] is None
        and null["values"] == []
    )
    json.dumps(null)


def test_documents_of_equal_length():
    assert document_shifts(np.repeat([0, 1], [6, 6])).tolist() == [6]


def oracle(on, shift):
    """Mean |phi| of latent i and latent j read `shift` tokens later, over all i != j."""
    on, total = np.asarray(on, bool), len(on)
    kept = [i for i in range(on.shape[1]) if 0 < on[:, i].sum() < total]
    later = np.roll(on, -shift, axis=0)
    values = [abs(np.corrcoef(on[:, i], later[:, j])[0, 1]) for i in kept for j in kept if i != j]
    return np.mean(values), len(values)


@pytest.mark.parametrize("tile", [1, 3, 256])
def test_against_the_brute_force(tile):
    rng = np.random.default_rng(1)
    on = independent(1, 11, 60, 4)
    on[:, 4], on[:, 7] = False, True
    documents = np.sort(rng.integers(0, 9, 60))
    null = null_of(on, documents, shifts=4, tile=tile)
    assert (
        len(null["shifts"]) == len(set(null["shifts"])) == min(4, null["n_possible"])
        and null["excluded"]["always"] == 1
    )
    for shift, value in zip(null["shifts"], null["values"], strict=True):
        mean, n_ordered = oracle(on, shift)
        assert (
            shift in document_shifts(documents)
            and value == pytest.approx(mean, abs=1e-12)
            and null["n_pairs"] == n_ordered / 2
        )
    assert null["null_abs_phi"] == pytest.approx(np.mean(null["values"]), abs=1e-15)
    assert null["spread"] == pytest.approx(np.std(null["values"], ddof=1), abs=1e-15)
    assert null["excess_abs_phi"] == pytest.approx(
        pair_statistics(firings_of(on))["mean_abs_phi"] - null["null_abs_phi"], abs=1e-15
    )


def test_the_seed_draws_the_shifts():
    on, documents = independent(2, 10, 400, 3), np.arange(400) // 4
    first, again, other = (null_of(on, documents, seed) for seed in (0, 0, 1))
    assert first == again and first["shifts"] != other["shifts"] and len(first["shifts"]) == 3
    assert len(null_of(on, np.arange(400) // 100, shifts=9)["shifts"]) == 3


def test_no_excess_without_documents_that_matter():
    excess, spreads = [], []
    for seed in range(6):
        null = null_of(independent(seed, 100, 3000, 8), np.arange(3000) // 30)
        excess.append(null["excess_abs_phi"] / null["null_abs_phi"])
        spreads.append(null["spread"] / null["null_abs_phi"])
    assert abs(np.mean(excess)) < 3 * np.mean(spreads) and max(map(abs, excess)) < 0.03


def bursty(seed, n, n_documents, length):
    """Each latent is on in some documents, for all their tokens but a few, and knows nothing of the others."""
    rng = np.random.default_rng(seed)
    rate = np.where(rng.random((n_documents, n)) < 0.15, 0.8, 0.01)
    return rng.random((n_documents * length, n)) < np.repeat(rate, length, axis=0), np.repeat(
        np.arange(n_documents), length
    )


def test_bursts_within_documents_are_in_the_null():
    null, floors = [], []
    for seed in range(4):
        on, documents = bursty(seed, 60, 100, 30)
        null.append(null_of(on, documents))
        floors.append(pair_statistics(firings_of(on, documents))["floor"])
    # the floor of independent tokens is far too low for such text, and the fixed marginals do not know of it either
    assert all(one["null_abs_phi"] > 3 * floor for one, floor in zip(null, floors, strict=True))
    assert abs(np.mean([one["excess_abs_phi"] / one["null_abs_phi"] for one in null])) < 0.05
    assert excess_phi(firings_of(on, documents))["excess_abs_phi"] > null[-1]["null_abs_phi"] / 3


def test_shared_topics_are_in_excess():
    on, documents = topical(0, 80, 120, 25, l0=6, topics=8, lift=5)
    null = null_of(on, documents)
    assert null["excess_abs_phi"] > 10 * null["spread"] and null["excess_abs_phi"] > 0.2 * null["null_abs_phi"]


def test_no_pairs():
    null = null_of(np.ones((12, 3)), np.arange(12) // 3)
    assert (
        null["n_pairs"] == 0
        and null["null_abs_phi"] is None
        and null["excluded"]["always"] == 3
        and null["n_possible"] == 3
    )


def test_the_number_of_threads_changes_nothing():
    on, threads = independent(3, 40, 300, 6), torch.get_num_threads()
    null = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            null.append(null_of(on, np.arange(300) // 10, tile=7))
    finally:
        torch.set_num_threads(threads)
    assert null[0] == null[1]
