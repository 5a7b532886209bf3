"""How the latents of an SAE divide the senses of one word: the scores, from counts of firings per latent and sense.

c_is: tokens of sense s on which latent i fires. n_s: tokens of sense s. S: senses.

    recall           r_is = c_is / n_s
    prior-free share q_is = r_is / sum_u r_iu
    atomicity        A_i  = 1 - H(q_i) / ln S            1: one sense only, 0: all senses alike
    blended               second largest q_is >= 1/4

A_i is biased where a latent fires rarely; `matched` judges latents on equally many firings (below).

Adjusted mutual information (AMI) between two labellings of the same items is 0 for labellings that are independent and
1 for equal ones.

    AMI = (MI - E[MI]) / ((H(u) + H(v)) / 2 - E[MI])

where E[MI] is over all pairings of the two labellings with their cluster sizes kept. Source: Vinh, Epps and Bailey,
Information Theoretic Measures for Clusterings Comparison, JMLR 11 (2010).

Matched atomicity is judged on equally many firings: rarefaction, as ecologists compare samples of unequal size. A
latent's atomicity A is biased where it fires rarely: on one token it is 1, and where one sense is common a few firings
miss the others. So of each latent the expectation A(m) of A over m of its firings is taken, drawn without replacement,
with one m for all latents of a word. A_0(m) is the same over m of all the word's tokens, which is what random firing
gives; and

    matched atomicity = (A(m) - A_0(m)) / (1 - A_0(m))

In expectation a latent that fires at random has 0, however few its firings are; one that fires on one sense only has 1;
and one that fires on a random part of another latent's tokens has the other latent's value, as a random sample of a
random sample is itself a random sample. m is the smallest at which A_0(m) <= 5%; below it, a few firings on a rare
sense would decide. Latents with fewer firings are not judged. Source of rarefaction: Sanders (1968), Hurlbert (1971).
Expectations are means over draws.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import product

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

    The strongest latents of a word fire on all its senses alike, as they stand for the word. After their means are
    subtracted, what sets this token apart is left. No label is used. acts: csr_array [T, l], latents rising within a
    token. Ties go to the lower latent.
    """
    per_token = np.diff(acts.indptr)
    above = acts.data - (np.asarray(acts.sum(axis=0, dtype=np.float64)).ravel() / max(len(per_token), 1))[acts.indices]
    standing, some = np.full(len(per_token), NONE, np.int64), np.flatnonzero(per_token)
    if not len(some):
        return standing
    largest = np.maximum.reduceat(above, acts.indptr[some])
    # rounding of the mean must not put a value above it
    highest = np.flatnonzero((above == np.repeat(largest, per_token[some])) & (above > 1e-12 * acts.data))
    token, first = np.unique(np.repeat(some, per_token[some])[highest], return_index=True)
    standing[token] = acts.indices[highest[first]]
    return standing


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Over the entries that exist and have weight; None where there are none."""
    kept = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[kept], weights=weights[kept])) if kept.any() else None


def adjusted_mutual_information(u: np.ndarray, v: np.ndarray) -> float | None:
    """AMI of two labellings. u, v: labels of any kind, [T]. None where it does not exist: no items, or nothing that the
    labellings could share.
    """
    if not len(u):
        return None
    _, rows = np.unique(u, return_inverse=True)
    _, columns = np.unique(v, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    a, b = table.sum(1), table.sum(0)
    expected = expected_mutual_information(a, b)
    possible = (_entropy(a) + _entropy(b)) / 2 - expected
    if possible < 1e-12:
        return None
    mutual = _entropy(a) + _entropy(b) - _entropy(table.ravel())
    return float((mutual - expected) / possible)


def expected_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mean MI in nats over all pairings of labellings with cluster sizes a [r] and b [c], which have the same sum.

    sum over i, j and overlaps n of (n/T) ln(T n / (a_i b_j)) P(n), with P hypergeometric.
    """
    from scipy.special import gammaln

    total = int(a.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    expected = 0.0
    # equal sizes give equal terms, and most clusters are small
    for (size_a, many_a), (size_b, many_b) in product(Counter(a.tolist()).items(), Counter(b.tolist()).items()):
        n = np.arange(max(1, size_a + size_b - total), min(size_a, size_b) + 1)
        log_p = (
            log_factorial[size_a]
            + log_factorial[size_b]
            + log_factorial[total - size_a]
            + log_factorial[total - size_b]
            - log_factorial[total]
            - log_factorial[n]
            - log_factorial[size_a - n]
            - log_factorial[size_b - n]
            - log_factorial[total - size_a - size_b + n]
        )
        terms = n / total * np.log(total * n / (size_a * size_b)) * np.exp(log_p)
        expected += many_a * many_b * float(terms.sum())
    return expected


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


AT_CHANCE = 0.05
DRAWS_AT_RANDOM = 4000
DRAWS = 200
STEP = 1.1


@dataclass(frozen=True)
class Draw:
    """How the latents of one word are judged.

    size: m. atomicity: A_0(m). blend: the chance that m of all tokens look blended.
    """

    size: int
    atomicity: float
    blend: float


def draw_for(sizes: np.ndarray, rng: np.random.Generator) -> Draw:
    """Finds m for one word. sizes: tokens of each sense, int [S], none 0. m grows in steps of 10%; the search ends at
    all T tokens at the latest, as A_0(T) = 0.
    """
    size, total = 2, int(sizes.sum())
    while True:
        size = min(size, total)
        at_chance, blend = _expected(draws(sizes[None], size, DRAWS_AT_RANDOM, rng), sizes)[0].tolist()
        if at_chance <= AT_CHANCE or size == total:
            return Draw(size, at_chance, blend)
        size = int(np.ceil(size * STEP))


def matched(
    counts: np.ndarray, sizes: np.ndarray, draw: Draw, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(matched atomicity, chance that a draw looks blended), float64 [l] each, from c int [l, S] and n [S]; NaN below
    draw.size firings."""
    enough = counts.sum(1) >= draw.size
    expected = np.full((len(counts), 2), np.nan)
    expected[enough] = _expected(draws(counts[enough], draw.size, DRAWS, rng), sizes)
    return (expected[:, 0] - draw.atomicity) / (1 - draw.atomicity), expected[:, 1]


def draws(counts: np.ndarray, size: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` times `size` of each latent's firings without replacement: firings per sense, int64 [l, number, S], from
    c [l, S].

    Sense after sense: how many of the drawn are of this sense is hypergeometric, given how many are left.
    """
    drawn = np.zeros((len(counts), number, counts.shape[1]), np.int64)
    wanted = np.full((len(counts), number), size, np.int64)
    others = counts.sum(1)
    for sense in range(counts.shape[1]):
        others = others - counts[:, sense]
        drawn[..., sense] = rng.hypergeometric(counts[:, sense, None], others[:, None], wanted)
        wanted -= drawn[..., sense]
    return drawn


def _expected(drawn: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean atomicity and blend flag over the draws: int [l, number, S] -> float64 [l, 2]."""
    flat = drawn.reshape(-1, drawn.shape[2])
    return np.stack([judge(flat, sizes).reshape(drawn.shape[:2]).mean(1) for judge in (atomicity, blended)], axis=1)
