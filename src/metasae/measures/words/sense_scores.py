"""How the latents of an SAE divide the senses of one word: the scores, from counts of firings per latent and sense.

c_is: tokens of sense s on which latent i fires. n_s: tokens of sense s. S: senses.

    recall           r_is = c_is / n_s
    prior-free share q_is = r_is / sum_u r_iu
    atomicity        A_i  = 1 - H(q_i) / ln S            1: one sense only, 0: all senses alike
    blended               second largest q_is >= 1/4

A_i is biased where a latent fires rarely; `sense_draws.py` judges latents on equally many firings.
"""

import numpy as np
from scipy.sparse import csr_array

BLEND_SHARE = 0.25
NONE = -1


def firings_per_sense(acts: csr_array, sense: np.ndarray, n_senses: int) -> np.ndarray:
    """c int64 [l, S] from csr_array [T, l] and sense int [T]. Stored zeros are no firings."""
    latents, tokens = acts.indices, np.repeat(np.arange(acts.shape[0]), np.diff(acts.indptr))
    flat = latents.astype(np.int64) * n_senses + sense[tokens]
    return np.bincount(flat[acts.data > 0], minlength=acts.shape[1] * n_senses).reshape(acts.shape[1], n_senses)


def prior_free_shares(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """q float64 [l, S] from c [l, S] and n [S]; NaN where a latent never fires."""
    recall = counts / np.maximum(sizes, 1)
    with np.errstate(invalid="ignore"):
        return recall / recall.sum(1, keepdims=True)


def atomicity(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """A float64 [l] in [0, 1]; NaN where a latent never fires."""
    q = prior_free_shares(counts, sizes)
    return 1 + (q * np.log(np.where(q > 0, q, 1.0))).sum(1) / np.log(counts.shape[1])


def blended(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """1.0 where the second largest prior-free share is at least 1/4, else 0.0; NaN where a latent never fires.

    float64 [l].
    """
    second = np.partition(prior_free_shares(counts, sizes), -2, axis=1)[:, -2]
    # a share of exactly 1/4 counts, also where it is a rounding error below
    return np.where(np.isnan(second), np.nan, second >= BLEND_SHARE - 1e-12)


def coverage_f1(acts: csr_array, sense: np.ndarray, n_senses: int, halves: np.ndarray) -> float:
    """Macro F1 of the best latent per sense, chosen on one half of the sentences and scored on the other.

    The detector of a sense is one latent, and it says yes where it fires: F1 = 2 c_is / (firings of i + n_s). Mean over
    senses, over both directions and over the splits. Ties go to the lower latent. 0 where no latent fires.
    """
    if not acts.shape[1]:
        return 0.0
    scores = []
    for half in halves:
        counts = firings_per_sense(acts, sense + n_senses * half, 2 * n_senses)
        sizes = np.bincount(sense + n_senses * half, minlength=2 * n_senses)
        f1 = [detection_f1(counts[:, part], sizes[part]) for part in (slice(None, n_senses), slice(n_senses, None))]
        for chosen_on, scored_on in (f1, f1[::-1]):
            scores.append(scored_on[chosen_on.argmax(0), np.arange(n_senses)].mean())
    return float(np.mean(scores))


def detection_f1(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """F1 of every latent as a detector of every sense: float64 [l, S] from c [l, S] and n [S]."""
    return 2 * counts / np.maximum(counts.sum(1, keepdims=True) + sizes, 1)


def standing_out(acts: csr_array) -> np.ndarray:
    """The latent that stands out on each token: largest a_ti - mean_t a_ti over the tokens given; -1 where none is
    above its mean. int64 [T].

    The strongest latents of a word fire on all its senses alike, as they stand for the word; less their means, what
    sets this token apart is left. No label is used. acts: csr_array [T, l], latents rising within a token. Ties go to
    the lower latent.
    """
    per_token = np.diff(acts.indptr)
    above = acts.data - (np.asarray(acts.sum(axis=0, dtype=np.float64)).ravel() / max(len(per_token), 1))[acts.indices]
    standing, some = np.full(len(per_token), NONE, np.int64), np.flatnonzero(per_token)
    if not len(some):
        return standing
    largest = np.maximum.reduceat(above, acts.indptr[some])
    # the rounding of a mean lifts nothing above it
    highest = np.flatnonzero((above == np.repeat(largest, per_token[some])) & (above > 1e-12 * acts.data))
    token, first = np.unique(np.repeat(some, per_token[some])[highest], return_index=True)
    standing[token] = acts.indices[highest[first]]
    return standing


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Over the entries that exist and have weight; None where there are none."""
    kept = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[kept], weights=weights[kept])) if kept.any() else None
