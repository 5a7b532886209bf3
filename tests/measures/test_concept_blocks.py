"""Scores of concepts without each block of documents, and probes that look at few tokens, against the plain way."""

import time

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse import csr_array
from test_concepts import bank_of

from metasae.data.concepts.labels import Bank, Concept
from metasae.data.split import Rows
from metasae.measures.truth import probe
from metasae.measures.truth.concepts import (
    BLENDED_SHARE,
    PROBED,
    RELATED_PHI,
    SERVES,
    halves_with,
    merged,
    score_concepts,
    score_set,
)
from metasae.measures.truth.few_latents import few_latents
from metasae.measures.truth.probe import directions, halves_of, probe_f1, probe_f1_of_split

T, C = 1200, 9


def f1_of(on, fires):
    return 2 * (on & fires).sum() / max(1, on.sum() + fires.sum())


def probe_fires(x, on, second):
    """The tokens on which a probe on dense columns fires, fitted on the first half."""
    mean, to_probe = directions(x[~second], csr_array(on[~second, None].astype(float)))
    scores = ((x - mean) @ to_probe)[:, 0]
    thresholds = np.unique(scores[~second])[::-1]
    f1 = [f1_of(on[~second], scores[~second] >= threshold) for threshold in thresholds]
    return scores >= thresholds[int(np.argmax(f1))]


def plain(on, acts, documents, kept):
    """The scores with everything chosen on the first half and judged on the kept tokens of the second, in loops."""
    second = halves_of(documents)
    judging = second & kept
    scores = {"best_f1": [], "best_recall": [], "best_precision": [], "probe5_f1": []}
    judged = [c for c in range(on.shape[1]) if on[~second, c].any() and on[second, c].any()]
    serving = set()
    for c in judged:
        first = np.array([f1_of(on[~second, c], acts[~second, i] > 0) for i in range(acts.shape[1])])
        latent = int(first.argmax())
        if first[latent] >= SERVES:
            serving.add(latent)
        best = np.argsort(-first, kind="stable")[:PROBED]
        few = probe_fires(acts[:, best], on[:, c], second)
        label, fires = on[judging, c], acts[judging, latent] > 0
        if not label.any():
            continue
        scores["best_f1"].append(f1_of(label, fires))
        scores["best_recall"].append((label & fires).sum() / label.sum())
        scores["best_precision"].append((label & fires).sum() / max(1, fires.sum()))
        scores["probe5_f1"].append(f1_of(label, few[judging]))
    out = {key: np.mean(values) if values else None for key, values in scores.items()}
    return out | {"blended": plain_blended(on[:, judged], acts, judging, sorted(serving))}


def plain_blended(on, acts, judging, serving):
    blended = []
    for latent in serving:
        fires, recall = acts[judging, latent] > 0, np.zeros(on.shape[1])
        for c in range(on.shape[1]):
            there = on[judging, c]
            # by chance it fires as often as on all other tokens
            by_chance = fires[~there].mean() if (~there).any() else 0.0
            recall[c] = max(0.0, fires[there].mean() - by_chance) if there.any() else 0.0
        share = recall / max(recall.sum(), 1e-300)
        main = int(share.argmax())
        others = [c for c in range(on.shape[1]) if c != main and not related(on[:, c], on[:, main])]
        blended.append(any(share[c] >= BLENDED_SHARE for c in others))
    return np.mean(blended) if blended else None


def related(one, other):
    return one.std() > 0 and other.std() > 0 and np.corrcoef(one, other)[0, 1] > RELATED_PHI


def world(kind):
    """(concepts bool [T, C], activations [T, n], documents [T]) of a kind."""
    rng = np.random.default_rng(len(kind))
    on = rng.random((T, C)) < np.linspace(0.01, 0.3, C)
    on[:, 1] &= on[:, 8]
    acts = np.where(rng.random((T, C)) < 0.7, on, rng.random((T, C)) < 0.05) * (0.1 + rng.random((T, C)))
    acts = np.hstack([acts, acts[:, :3] + acts[:, 3:6]])
    documents = np.arange(T) // 20
    if kind == "always on":
        acts[:, 2], acts[:, 5] = 0.5, 1 + rng.random(T)
    elif kind == "dead":
        acts[:, ::2] = 0
    elif kind == "all dead":
        acts[:] = 0
    elif kind == "dead in one half":
        acts[~halves_of(documents)] = 0
    elif kind == "one document":
        documents = np.zeros(T, int)
    elif kind == "two documents":
        documents = np.arange(T) // (T // 2)
    elif kind == "two latents":
        acts = acts[:, :2]
    elif kind == "rare concepts":
        on[:, 0] = on[:, 3] = False
        on[[5, 25], 0], on[7, 3] = True, True
    elif kind == "silent where on":
        acts[:, 4] = ~on[:, 4] * (1 + rng.random(T))
        acts[:, [0, 1, 2, 3, 5, 6, 7, 8]] = 0
    return on, acts, documents


KINDS = [
    "random", "always on", "dead", "all dead", "dead in one half", "one document", "two documents", "two latents",
    "rare concepts", "silent where on",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_blocks", [2, 8])
def test_each_block_left_out_against_loops(kind, n_blocks):
    on, acts, documents = world(kind)
    acts = acts.astype(np.float32).astype(np.float64)
    _, blocks = np.unique(documents * n_blocks // (documents.max() + 1), return_inverse=True)
    scores = score_concepts(bank_of(on), csr_array(acts.astype(np.float32)), documents, blocks=blocks)
    without = scores["leave_one_out"]
    keys = ("best_f1", "best_recall", "best_precision", "probe5_f1", "blended")
    assert set(without) == set(keys)
    n = blocks.max() + 1
    for key in keys:
        assert scores[key] == pytest.approx(plain(on, acts, documents, np.ones(T, bool))[key], nan_ok=True), key
        assert len(without[key]) == (n if n > 1 else 0)
    for block in range(n if n > 1 else 0):
        wanted = plain(on, acts, documents, blocks != block)
        assert {key: without[key][block] for key in keys} == pytest.approx(wanted), block


def test_by_hand():
    """One concept, one latent, two documents a half: 2 of 3 tokens found, 1 false firing in the half that counts."""
    on = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)[:, None]
    fires = np.array([1, 0, 1, 0, 0, 1, 1, 1], bool)[:, None]
    documents = np.arange(8) // 2
    scores = score_concepts(bank_of(on), csr_array(fires * 1.0), documents, blocks=np.arange(8) // 4)
    # judged on documents 1 and 3: on at 2, 3 and 6; fires at 2, 6 and 7
    assert scores["best_f1"] == pytest.approx(4 / 6) and scores["best_recall"] == pytest.approx(2 / 3)
    assert scores["best_precision"] == pytest.approx(2 / 3) and scores["blended"] == 0 and scores["n"] == 1
    # without the first block only document 3 is left, without the second only document 1
    assert scores["leave_one_out"]["best_f1"] == pytest.approx([2 / 3, 2 / 3])
    assert scores["leave_one_out"]["best_recall"] == [1, 0.5] and scores["leave_one_out"]["best_precision"] == [0.5, 1]
    assert scores["ceiling_f1"] is None and list(scores["by_family"]) == ["token"]


def test_a_set_without_concepts_adds_nothing():
    on, acts, documents = world("random")
    halves, firings = halves_with(documents, documents % 4), csr_array(acts.astype(np.float32))
    one, nothing = score_set(bank_of(on), firings, halves), score_set(bank_of(on[:, :0]), firings, halves)
    assert merged([one, nothing]) == merged([one]) and merged([nothing])["n"] == 0
    assert merged([nothing])["best_f1"] is None and merged([nothing])["leave_one_out"]["blended"] == [None] * 4
    twice = merged([one, one])
    assert twice["n"] == 2 * merged([one])["n"] and twice["best_f1"] == pytest.approx(merged([one])["best_f1"])


@pytest.mark.parametrize("kind", ["random", "always on", "silent where on"])
def test_a_probe_on_few_latents_is_that_on_dense_columns(kind):
    on, acts, documents = world(kind)
    halves = halves_with(documents, documents % 3)
    few = np.array([4, 2, 10])
    for concept in on.T:
        fires, hits = few_latents(csr_array(acts).tocsc(), few, concept, halves)
        wanted = probe_fires(acts[:, few], concept, halves.second)
        for block in range(3):
            here = halves.second & (documents % 3 == block)
            assert fires[block] == wanted[here].sum() and hits[block] == (wanted & concept)[here].sum()


@pytest.mark.slow
def test_two_hundred_concepts_on_two_hundred_thousand_tokens():
    """6,144 latents, 32 of which fire on each token, in under 20 s of one core."""
    rng, n_tokens, n_latents = np.random.default_rng(0), 200_000, 6144
    rates = np.sort(rng.lognormal(0, 1.2, n_latents))
    latents = np.sort(rng.choice(n_latents, (n_tokens, 32), p=rates / rates.sum()).astype(np.int32), axis=1)
    new = np.ones(latents.shape, bool)
    new[:, 1:] = latents[:, 1:] != latents[:, :-1]
    indptr = np.concatenate([[0], np.cumsum(new.sum(1))])
    firings = csr_array((rng.random(new.sum(), np.float32), latents[new], indptr), shape=(n_tokens, n_latents))
    labels = csr_array(sparse.random(n_tokens, 200, density=0.03, random_state=0, format="csr", dtype=np.float32))
    documents = np.arange(n_tokens) // 300
    bank = Bank([Concept(str(number), "token") for number in range(200)], labels)
    start = time.process_time()
    scores = score_concepts(bank, firings, documents, blocks=documents // 84)
    assert time.process_time() - start < 20 and scores["n"] == 200 and len(scores["leave_one_out"]["best_f1"]) == 8


@pytest.mark.parametrize("scores", [1 << 26, 2 * T])
def test_a_ceiling_read_in_pieces(monkeypatch, scores):
    """Far from 0, as some dimensions of a model's activations are."""
    monkeypatch.setattr(probe, "SCORES", scores)
    monkeypatch.setattr(probe, "BATCH", 250)
    on, _, documents = world("random")
    on[:, 4] &= halves_of(documents)
    rng = np.random.default_rng(0)
    x = on @ rng.standard_normal((C, 12)) + rng.standard_normal((T, 12)) + 100 * (np.arange(12) == 3)
    labels = csr_array(on.astype(np.float32))
    whole = probe_f1(x, labels, documents)
    in_pieces = probe_f1_of_split(Rows(torch.from_numpy(x).float()), labels, documents)
    assert np.isnan(whole[4]) and np.isnan(in_pieces[4])
    np.testing.assert_allclose(in_pieces, whole, atol=0.03)
    assert np.isnan(probe_f1_of_split(Rows(torch.zeros(T, 2)), labels, np.zeros(T))).all()
