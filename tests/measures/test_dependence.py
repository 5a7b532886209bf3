"""Dependence of firing against a slow twin, pair by pair and document by document, and what moves it."""

import json
import math

import numpy as np
import pytest
import torch
from drawn import firings_of, independent, topical

from metasae.measures.cofiring import dependence as module
from metasae.measures.cofiring.counts import counts_by_document
from metasae.measures.cofiring.dependence import dependence, squares_less_expected
from metasae.measures.cofiring.phi_sums import bands_of, matched_mean, rate_edges
from metasae.measures.firing.firings import document_blocks


def documents_in(on, documents):
    """The firings of each document of two tokens and more, as lists of lists of 0 and 1."""
    places = [np.flatnonzero(documents == document) for document in dict.fromkeys(documents.tolist())]
    return [on[place].astype(int).tolist() for place in places if len(place) > 1]


def twin(on, documents):
    """(value, {(band of the more frequent latent, band of the rarer): (sum of squares, sum of E)}) in plain Python."""
    parts = documents_in(on, documents)
    tokens = [token for part in parts for token in part]
    counts = [sum(token[i] for token in tokens) for i in range(on.shape[1])]
    live = [i for i, count in enumerate(counts) if 0 < count < len(tokens)]
    cells = {}
    for place, i in enumerate(live):
        for j in live[place + 1 :]:
            n11, expected, variance = 0, 0.0, 0.0
            for part in parts:
                t, a, b = len(part), sum(token[i] for token in part), sum(token[j] for token in part)
                n11 += sum(token[i] * token[j] for token in part)
                expected += a * b / t
                variance += a * (t - a) * b * (t - b) / (t * t * (t - 1))
            if not expected:
                assert n11 == 0
                continue
            square = ((n11 - expected) ** 2 - n11 * variance / expected) / expected
            bands = [int(bands_of(np.array([counts[latent] / len(tokens)]))[0]) for latent in (i, j)]
            cell = max(bands), min(bands)
            before = cells.get(cell, (0.0, 0.0))
            cells[cell] = before[0] + square, before[1] + expected
    squares, weights = (math.fsum(sums[side] for sums in cells.values()) for side in (0, 1))
    return (squares / weights if weights else None), cells


def drawn(seed, n=14, sizes=(40, 1, 25, 2, 60, 3, 1, 30)):
    """Topics, a duplicate, a dead latent, one that is always on, one on in a whole document, two that avoid each
    other."""
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(sizes)), sizes)
    rate = rng.uniform(0.02, 0.3, n) * rng.choice([0.2, 2.0], (len(sizes), n))[documents]
    on = rng.random(rate.shape) < rate
    on[:, 1], on[:, 2], on[:, 3], on[documents == 2, 4] = on[:, 0], False, True, True
    on[:, 6] = ~on[:, 5] & (rng.random(len(on)) < 0.2)
    return on, documents


def check(on, documents, **options):
    numbers = dependence(firings_of(on, documents), **options)
    value, cells = twin(on, documents)
    assert numbers["value"] == (None if value is None else pytest.approx(value, abs=1e-9))
    lists = numbers["rate_cells"]
    edges = rate_edges()
    assert list(zip(lists["frequent"], lists["rare"], strict=True)) == [
        (edges[frequent], edges[rare]) for frequent, rare in sorted(cells)
    ]
    wanted = [cells[cell] for cell in sorted(cells)]
    np.testing.assert_allclose(lists["expected"], [expected for _, expected in wanted])
    np.testing.assert_allclose(lists["dependence"], [square / expected for square, expected in wanted], atol=1e-9)
    json.dumps(numbers)
    return numbers


@pytest.mark.parametrize("tile,columns,dense", [(1, 2, 0.0), (3, 512, 1.0), (256, 5, 0.0), (256, 512, 1.0)])
def test_against_the_twin(tile, columns, dense, monkeypatch):
    monkeypatch.setattr(module, "COLUMNS", columns)
    monkeypatch.setattr(module, "DENSE", dense)
    for seed in range(3):
        on, documents = drawn(seed)
        numbers = check(on, documents, tile=tile)
        assert numbers["n_documents"] == 6 and numbers["n_tokens"] == 160
        assert numbers["excluded"]["always"] == 1 and numbers["excluded"]["never"] >= 1


ADVERSARIAL = {
    "no tokens": (np.zeros((0, 5)), np.zeros(0)),
    "no latents": (np.zeros((5, 0)), np.zeros(5)),
    "one token": (np.ones((1, 5)), np.zeros(1)),
    "one document": (np.random.default_rng(0).random((50, 6)) < 0.3, np.zeros(50)),
    "all documents of one token": (np.random.default_rng(1).random((30, 6)) < 0.3, np.arange(30)),
    "dead": (np.zeros((6, 4)), np.repeat([0, 1], 3)),
    "always on": (np.ones((6, 4)), np.repeat([0, 1], 3)),
    "one latent": (np.eye(4)[:, :1], np.zeros(4)),
    "duplicates": (np.repeat(np.random.default_rng(2).random((40, 1)) < 0.3, 5, axis=1), np.repeat([0, 1], 20)),
    "never in one document": (np.array([[1, 0], [0, 0], [0, 1], [0, 0]]), np.repeat([0, 1], 2)),
    "never at once": (np.kron(np.ones((2, 1)), np.eye(3)), np.repeat([0, 1], 3)),
    "on in whole documents": (np.repeat([[1, 1, 0], [0, 1, 1], [0, 0, 1]], 4, axis=0), np.repeat([0, 1, 2], 4)),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_what_is_no_ordinary_text(name):
    on, documents = (np.asarray(part) for part in ADVERSARIAL[name])
    with np.errstate(all="raise"):
        numbers = check(np.asarray(on, bool), documents.astype(np.int32))
    if name in ("one document", "duplicates", "never at once", "on in whole documents"):
        assert numbers["value"] is not None
        assert (abs(numbers["value"]) < 1e-12) == (name == "on in whole documents")
    else:
        assert numbers["value"] is None and not numbers["rate_cells"]["expected"]


def test_leaving_a_block_out_is_measuring_without_its_tokens():
    on, documents = drawn(5)
    # fires in the first document only, and on all tokens of all the others
    on[:, 7], on[:, 8] = documents == 0, documents > 0
    on[:3, 8] = on[5:8, 7] = True
    on[10:, 7] = False
    blocks = np.searchsorted([1, 3, 5], documents, side="right")
    numbers = dependence(firings_of(on, documents), blocks)
    assert numbers["value"] == pytest.approx(dependence(firings_of(on, documents))["value"], abs=1e-12)
    assert len(numbers["leave_one_out"]["value"]) == 4
    for block, value in enumerate(numbers["leave_one_out"]["value"]):
        rest = blocks != block
        assert value == pytest.approx(dependence(firings_of(on[rest], documents[rest]))["value"], abs=1e-10)


def test_counts_by_document_over_chunks():
    on, documents = drawn(1)
    latents = np.array([9, 0, 4])
    for chunk in (1, 7, 10_000):
        counts, sizes = counts_by_document(firings_of(on, documents), latents, (0, len(on)), chunk)
        assert sizes.tolist() == [40, 1, 25, 2, 60, 3, 1, 30]
        wanted = [on[documents == document][:, latents].sum(0) for document in range(8)]
        np.testing.assert_array_equal(counts.toarray(), wanted)


def test_the_mean_over_chance_is_nought_and_e_and_v_are_its_mean_and_variance():
    rng = np.random.default_rng(0)
    on, documents = drawn(2, sizes=(30, 12, 40))
    i, j = on[:, 0], on[:, 5]
    draws = []
    for _ in range(4000):
        order = np.concatenate([rng.permutation(np.flatnonzero(documents == document)) for document in range(3)])
        draws.append(int((i[order] & j).sum()))
    parts = [(len(i[documents == d]), i[documents == d].sum(), j[documents == d].sum()) for d in range(3)]
    expected = sum(a * b / t for t, a, b in parts)
    variance = sum(a * (t - a) * b * (t - b) / (t * t * (t - 1)) for t, a, b in parts)
    assert np.mean(draws) == pytest.approx(expected, abs=5 * math.sqrt(variance / 4000))
    assert np.var(draws) == pytest.approx(variance, rel=0.12)
    squares = expected + squares_less_expected(np.array(draws, float), np.full(4000, expected), np.full(4000, variance))
    assert abs(squares.mean()) < 5 * squares.std() / math.sqrt(4000)


def test_topics_alone_give_nothing_and_ties_within_documents_do():
    values, tied = [], []
    for seed in range(6):
        on, documents = topical(seed, 60, 60, 60, 4.0, topics=5, lift=4)
        values.append(dependence(firings_of(on, documents))["value"])
        # without its documents the same text is full of ties
        tied.append(dependence(firings_of(on))["value"])
    assert abs(np.mean(values)) < 0.02 and min(tied) > 0.2


def test_losing_firings_at_random_leaves_it():
    rng, kept = np.random.default_rng(2), []
    for seed in range(4):
        # ties of tokens: the topic changes from token to token within a document
        on, _ = topical(seed, 100, 8000, 1, 6.0, topics=5, lift=4)
        documents = np.arange(8000) // 400
        thin = on & (rng.random(on.shape) > 0.3)
        before, after = (dependence(firings_of(variant, documents))["value"] for variant in (on, thin))
        kept.append(after / before - 1)
    assert abs(np.mean(kept)) < 0.05, kept


def test_an_sae_through_json_and_back_is_at_its_own_rates():
    on, documents = drawn(3)
    numbers = dependence(firings_of(on, documents))
    cells = json.loads(json.dumps(numbers["rate_cells"]))
    both = matched_mean(cells, numbers["rate_cells"], "dependence", "expected")
    assert both == (pytest.approx(numbers["value"]), pytest.approx(numbers["value"]))


def test_the_number_of_threads_changes_nothing():
    on = independent(3, 60, 900, 6)
    documents = np.arange(900) // 50
    firings, threads = firings_of(on, documents), torch.get_num_threads()
    numbers = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            numbers.append(dependence(firings, document_blocks(documents), tile=7))
    finally:
        torch.set_num_threads(threads)
    assert numbers[0] == numbers[1]
