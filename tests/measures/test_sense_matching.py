from itertools import pairwise

import numpy as np
import pytest

from metasae.measures.words.sense_matching import RECALL_BINS, matched_recall, recall_profile
from metasae.measures.words.sense_scores import draw_for, matched

SIZES = np.array([3000, 500, 400])


def senses_of(words):
    """word -> (counts, energy): the part of measures.json that a comparison reads."""
    means = {}
    for word, (counts, energy) in words.items():
        rng = np.random.default_rng(0)
        atomicity, _ = matched(counts, SIZES, draw_for(SIZES, rng), rng)
        means[word] = {
            "n_per_sense": {"A": 3000, "B": 500, "C": 400},
            "by_recall": recall_profile(atomicity, counts, SIZES, energy),
        }
    return {"words": means}


def population(n, seed, widths=(0.1, 1.0)):
    """Latents that blend two senses in many degrees and have many recalls; energy goes with the firings."""
    rng = np.random.default_rng(seed)
    profile = np.zeros((n, 3))
    two = np.array([rng.permutation(3)[:2] for _ in range(n)])
    width = rng.uniform(*widths, size=n)
    profile[np.arange(n), two[:, 0]], profile[np.arange(n), two[:, 1]] = width, width * rng.uniform(0.2, 1, size=n)
    counts = rng.binomial(SIZES, profile)
    return counts, counts.sum(1).astype(float)


def test_a_profile_by_hand():
    counts = np.array([[3000, 0, 0], [150, 0, 0], [151, 50, 0], [0, 0, 4], [0, 0, 0]])
    profile = recall_profile(
        np.array([1.0, 0.5, 0.25, np.nan, np.nan]), counts, SIZES, np.array([6.0, 3.0, 2.0, 1.0, 0.0])
    )
    assert [(entry["from"], entry["to"]) for entry in profile] == list(pairwise(RECALL_BINS))
    # recalls 1, .05 (the end of a bin belongs to it) and max(.0503, .1)
    assert [entry["n_latents"] for entry in profile] == [1, 1, 0, 0, 0, 0, 1]
    assert [entry["atomicity_matched"] for entry in profile] == [0.5, 0.25, None, None, None, None, 1.0]
    assert [entry["energy"] for entry in profile] == pytest.approx([3 / 12, 2 / 12, 0, 0, 0, 0, 6 / 12])


def test_weights_are_common_and_lone_bins_are_left_out():
    low, high, empty = ({"from": f, "to": f + 1} for f in (0, 1, 2))

    def side(*entries):
        bins = [
            {**place, "energy": e, "atomicity_matched": v}
            for place, (e, v) in zip((low, high, empty), entries, strict=True)
        ]
        return {"words": {"w": {"n_per_sense": {}, "by_recall": bins}}}

    means = matched_recall(side((0.2, 0.5), (0.6, 0.1), (0.2, 1.0)), side((0.4, 0.4), (0.5, 0.2), (0.0, None)))
    weights = np.array([0.3, 0.55])
    assert means == (
        pytest.approx(np.average([0.5, 0.1], weights=weights)),
        pytest.approx(np.average([0.4, 0.2], weights=weights)),
    )
    nothing = matched_recall(side((0.0, None), (1.0, 0.5), (0.0, None)), side((1.0, 0.4), (0.0, None), (0.0, None)))
    assert nothing == (None, None)


def test_an_sae_against_itself_differs_by_nothing():
    words = {"w": population(50, 0), "v": population(80, 1)}
    one, other = matched_recall(senses_of(words), senses_of(words))
    assert one == other and 0 < one < 1


@pytest.mark.parametrize("kept", [0.9, 0.4])
def test_latents_thinned_at_random_gain_nothing(kept):
    rng = np.random.default_rng(5)
    gains = []
    for seed in range(6):
        counts, _ = population(400, seed)
        narrow = rng.binomial(counts, kept)
        thinned = senses_of({"w": (narrow, narrow.sum(1) * 1.0)})
        after, before = matched_recall(thinned, senses_of({"w": population(400, seed + 100)}))
        gains.append(after - before)
    assert abs(np.mean(gains)) < 4 * np.std(gains) / 6**0.5 + 0.01


def test_latents_that_drop_their_second_sense_gain():
    counts, energy = population(200, 3)
    pure = np.where(counts / SIZES == (counts / SIZES).max(1, keepdims=True), counts, 0)
    after, before = matched_recall(senses_of({"w": (pure, pure.sum(1) * 1.0)}), senses_of({"w": (counts, energy)}))
    # they fire less, but keep what they find of their best sense, so they meet latents of the same recall
    assert after == 1 and after - before > 0.3


def test_only_the_same_words_and_sentences_are_compared():
    a = senses_of({"w": population(20, 0)})
    with pytest.raises(ValueError, match="on different words"):
        matched_recall(a, senses_of({"v": population(20, 0)}))
    b = senses_of({"w": population(20, 0)})
    b["words"]["w"]["n_per_sense"] = {"A": 1}
    with pytest.raises(ValueError, match="different sentences of 'w'"):
        matched_recall(a, b)
    b["words"]["w"] = {**a["words"]["w"], "by_recall": a["words"]["w"]["by_recall"][1:]}
    with pytest.raises(ValueError, match="different bins"):
        matched_recall(a, b)
