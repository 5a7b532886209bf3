"""Scores of a bank of concepts: by hand, against a loop, and with oracles that are damaged on purpose."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from metasae.data.concepts.labels import Bank, Concept
from metasae.measures.truth.concepts import score_concepts
from metasae.measures.truth.probe import directions, halves_of, threshold_f1


def bank_of(columns, families=None):
    families = families or ["token"] * columns.shape[1]
    concepts = [Concept(f"concept {number}", family) for number, family in enumerate(families)]
    return Bank(concepts, csr_array(columns.astype(np.float32)))


@pytest.fixture(scope="module")
def world():
    """20 concepts of 3% each on 6,000 tokens in documents of 30, and activations that show them."""
    rng = np.random.default_rng(0)
    on = rng.random((6000, 20)) < 0.03
    rows = rng.standard_normal((20, 12))
    return on, on @ rows * 2 + rng.standard_normal((6000, 12)), np.arange(6000) // 30


def scored(on, acts, documents, x=None, families=None):
    return score_concepts(bank_of(on, families), csr_array(acts.astype(np.float32)), documents, x)


def test_latents_that_are_the_concepts(world):
    on, x, documents = world
    scores = scored(on, on * 2.0, documents, x)
    assert scores["best_f1"] == scores["best_recall"] == scores["best_precision"] == 1 and scores["probe5_f1"] == 1
    assert scores["blended"] == 0 and scores["n"] == 20 and 0.2 < scores["ceiling_f1"] < 1


def test_best_f1_against_a_loop(world):
    on, _, documents = world
    rng = np.random.default_rng(1)
    acts = np.where(rng.random(on.shape) < 0.6, on, rng.random(on.shape) < 0.02) * rng.random(on.shape)
    second, families = halves_of(documents), ["one"] * 8 + ["two"] * 12

    def f1(label, fires):
        return 2 * (label & fires).sum() / max(1, label.sum() + fires.sum())

    wanted = []
    for concept in on.T:
        on_first = [f1(concept[~second], latent[~second] > 0) for latent in acts.T]
        wanted.append(f1(concept[second], acts[second, int(np.argmax(on_first))] > 0))
    scores = scored(on, acts, documents, families=families)
    assert scores["best_f1"] == pytest.approx(np.mean(wanted))
    assert scores["by_family"]["one"]["best_f1"] == pytest.approx(np.mean(wanted[:8]))
    assert scores["by_family"]["two"]["n"] == 12 and scores["ceiling_f1"] is None


def test_damaged_oracles(world):
    """Merged, thinned, noisy and swapped latents, each against what it must do."""
    on, _, documents = world
    rng = np.random.default_rng(2)
    merged = scored(on, on[:, ::2] | on[:, 1::2], documents)
    assert merged["best_f1"] < 0.75 and merged["blended"] > 0.9 and merged["best_recall"] == 1
    thinned = scored(on, on & (rng.random(on.shape) < 0.5), documents)
    assert thinned["best_precision"] == 1 and thinned["best_recall"] == pytest.approx(0.5, abs=0.05)
    assert thinned["best_f1"] == pytest.approx(2 / 3, abs=0.05) and thinned["blended"] == 0
    noisy = scored(on, on | (rng.random(on.shape) < 0.2), documents)
    assert noisy["best_f1"] < 0.4
    junk = scored(on, np.hstack([on, rng.random((len(on), 100)) < 0.03]), documents)
    assert junk["best_f1"] == 1 and junk["blended"] == 0
    swapped = np.where((documents % 4 < 2)[:, None], on, np.roll(on, 1, axis=1))
    assert scored(on, swapped, documents)["best_f1"] < 0.7


def test_a_concept_within_another_is_no_blend(world):
    on, _, documents = world
    nested = np.column_stack([on[:, 0], on[:, 0] & (documents % 3 == 0)])
    assert scored(nested, nested[:, :1], documents)["blended"] == 0
    assert scored(on[:, :2], (on[:, 0] | on[:, 1])[:, None], documents)["blended"] == 1


def test_five_latents_find_what_is_spread_over_them(world):
    on, _, documents = world
    rng = np.random.default_rng(3)
    pieces = on[:, :1] & (rng.integers(0, 5, len(on))[:, None] == np.arange(5))
    scores = scored(on[:, :1], pieces, documents)
    assert scores["best_f1"] < 0.5 and scores["probe5_f1"] > 0.95


def test_a_concept_that_one_half_lacks_is_left_out(world):
    on, _, documents = world
    half = on & halves_of(documents)[:, None]
    scores = scored(half, on, documents)
    assert scores["n"] == 0 and scores["best_f1"] is None and scores["blended"] is None


def test_the_threshold_takes_all_tokens_of_one_score():
    scores, on = np.array([2.0, 1, 1, 1, 0, 2, 1, 1, 1, 0]), np.array([1, 1, 0, 0, 0] * 2, bool)
    second = np.arange(10) >= 5
    # at 2: F1 = 2 / 3; at 1: 2 * 2 / (4 + 2), the same, and the higher cut wins
    assert threshold_f1(scores, on, second) == pytest.approx(2 / 3)
    assert np.isnan(threshold_f1(scores, on & second, second))


def test_a_probe_on_rows_of_a_subspace():
    x = np.outer(np.arange(10.0), [1.0, 2.0])
    mean, to_probe = directions(x, csr_array((np.arange(10) > 7)[:, None].astype(float)))
    assert np.isfinite(to_probe).all() and ((x - mean) @ to_probe)[-1, 0] > 0
