import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from metasae.measures.words.sense_scores import (
    atomicity,
    blended,
    coverage_f1,
    detection_f1,
    firings_per_sense,
    prior_free_shares,
    standing_out,
    weighted_mean,
)

SIZES = np.array([8, 4, 2])


def random_acts(tokens=60, latents=9, seed=0):
    """Adversarial: a dead latent, one that is always on with one value, duplicates, a latent on a single token, tied
    values."""
    rng = np.random.default_rng(seed)
    acts = np.where(rng.random((tokens, latents)) < 0.3, rng.integers(1, 4, size=(tokens, latents)), 0).astype(
        np.float32
    )
    acts[:, 0], acts[:, 1], acts[:, 2], acts[:, 3] = 0, 0.7, acts[:, 4], 0
    acts[17, 3] = 5
    return acts


def plain_counts(acts, sense, n_senses):
    return [
        [sum(acts[t, i] > 0 and sense[t] == s for t in range(len(acts))) for s in range(n_senses)]
        for i in range(acts.shape[1])
    ]


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_the_loops(seed):
    acts = random_acts(seed=seed)
    sense = np.random.default_rng(seed).integers(4, size=60)
    kept = csr_array(acts)
    kept.data[:3] = 0
    scores = firings_per_sense(kept, sense, 4)
    assert scores.dtype == np.int64 and scores.tolist() == plain_counts(kept.toarray(), sense, 4)
    assert firings_per_sense(csr_array((0, 5)), np.zeros(0, int), 2).tolist() == [[0, 0]] * 5


def test_shares_and_atomicity_by_hand():
    counts = np.array([[8, 4, 2], [8, 0, 0], [4, 2, 0], [1, 0, 0], [0, 0, 0], [6, 1, 0]])
    q = prior_free_shares(counts, SIZES)
    assert q[:4].tolist() == [pytest.approx([1 / 3] * 3), [1, 0, 0], [0.5, 0.5, 0], [1, 0, 0]] and np.isnan(q[4]).all()
    assert q[5].tolist() == [0.75, 0.25, 0]
    scores = atomicity(counts, SIZES)
    assert scores[:4].tolist() == pytest.approx([0, 1, 1 - math.log(2) / math.log(3), 1], abs=1e-12) and math.isnan(
        scores[4]
    )
    assert blended(counts, SIZES).tolist()[:4] == [1, 0, 1, 0] and math.isnan(blended(counts, SIZES)[4])
    # a second share of exactly 1/4 is a blend
    assert blended(counts, SIZES)[5] == 1 and blended(np.array([[31, 5, 0]]), np.array([31, 15, 1]))[0] == 1


def test_rare_senses_weigh_as_common_ones():
    sizes = np.array([1000, 10])
    assert atomicity(np.array([[500, 5]]), sizes)[0] == pytest.approx(0)
    assert atomicity(np.array([[500, 0]]), sizes)[0] == 1 == atomicity(np.array([[0, 1]]), sizes)[0]


def plain_coverage(acts, sense, n_senses, halves):
    scores = []
    for half in halves:
        for chosen_on in (0, 1):
            per_sense = []
            for s in range(n_senses):
                best, score = 0, -1.0
                for part in ("choose", "score"):
                    rows = [t for t in range(len(acts)) if (half[t] == chosen_on) == (part == "choose")]
                    f1 = []
                    for i in range(acts.shape[1]):
                        hits = sum(acts[t, i] > 0 and sense[t] == s for t in rows)
                        said, true = sum(acts[t, i] > 0 for t in rows), sum(sense[t] == s for t in rows)
                        f1.append(2 * hits / max(said + true, 1))
                    if part == "choose":
                        best = f1.index(max(f1))
                    else:
                        score = f1[best]
                per_sense.append(score)
            scores.append(sum(per_sense) / n_senses)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(3))
def test_coverage_equals_the_loops(seed):
    rng = np.random.default_rng(seed)
    acts, sense, halves = random_acts(seed=seed), rng.integers(3, size=60), rng.integers(2, size=(4, 60))
    assert coverage_f1(csr_array(acts), sense, 3, halves) == pytest.approx(
        plain_coverage(acts, sense, 3, halves), abs=1e-12
    )


def test_coverage_is_scored_on_sentences_it_was_not_chosen_on():
    rng = np.random.default_rng(0)
    sense = np.repeat([0, 1], 100)
    half = np.tile([0, 1], 100)
    # of 3000 latents that fire at random on a tenth of the tokens, the best in-sample looks good; held out it must not
    acts = csr_array((rng.random((200, 3000)) < 0.1).astype(np.float32))
    in_sample = detection_f1(firings_per_sense(acts, sense, 2), np.array([100, 100])).max(0).mean()
    assert coverage_f1(acts, sense, 2, half[None]) < in_sample - 0.05
    perfect = csr_array(np.stack([sense == 0, sense == 1], axis=1).astype(np.float32))
    assert coverage_f1(perfect, sense, 2, half[None]) == 1
    assert coverage_f1(csr_array((200, 0)), sense, 2, half[None]) == 0


def test_detection_f1_by_hand():
    # latent 0 fires on all 14 tokens, latent 1 on half of sense 1, latent 2 never
    scores = detection_f1(np.array([[8, 4, 2], [0, 2, 0], [0, 0, 0]]), SIZES)
    assert scores.tolist() == [pytest.approx([16 / 22, 8 / 18, 4 / 16]), pytest.approx([0, 4 / 6, 0]), [0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_what_stands_out_equals_the_loops(seed):
    acts = random_acts(seed=seed)
    mean = acts.astype(np.float64).mean(0)
    plain = []
    for row in acts.astype(np.float64):
        above = [a - m if a - m > 1e-12 else 0.0 for a, m in zip(row, mean, strict=True)]
        plain.append(above.index(max(above)) if max(above) > 0 else -1)
    assert standing_out(csr_array(acts)).tolist() == plain


def test_a_latent_that_is_always_on_alike_stands_out_nowhere():
    acts = np.full((7, 2), 0.1, np.float32)
    acts[3, 1] = 0.3
    assert standing_out(csr_array(acts)).tolist() == [-1, -1, -1, 1, -1, -1, -1]
    assert standing_out(csr_array((4, 3), dtype=np.float32)).tolist() == [-1] * 4


def test_weighted_means_leave_out_what_does_not_exist():
    assert weighted_mean(np.array([1.0, np.nan, 4.0, 9.0]), np.array([3.0, 5.0, 1.0, 0.0])) == pytest.approx(7 / 4)
    assert weighted_mean(np.array([np.nan, 2.0]), np.array([1.0, 0.0])) is None
    assert weighted_mean(np.zeros(0), np.zeros(0)) is None
