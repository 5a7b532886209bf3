"""Fakes: changes to a dictionary, its rows and its firings, that make no latent more atomic.

An honest measure must not read a fake as "more atomic". Every function takes a subject over any split, planted or of a
model, and returns a new one. What a fake does not name stays as it is. Latents that never fire are never paired.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from metasae.measures.truth.truth import as_firings, unit
from tools.subjects import Subject, in_fewer_documents, noisy, only, sae_of, table_of, thinned, twinned

# Junk latents are half as many as the latents that there are, dense ones a twentieth; a dense one is on at half of the
# tokens.
JUNK_SHARE, DENSE_SHARE, DENSE_RATE = 0.5, 0.05, 0.5


def merged_at_random(subject: Subject, seed: int) -> Subject:
    """All live latents are paired at random, and each pair becomes one latent; with an odd number one stays alone."""
    return _merged(subject, _pairs(subject.live, np.random.default_rng(seed)))


def merged_apart(subject: Subject, seed: int) -> Subject:
    """As `merged_at_random`, but only latents that never fire on the same token are paired.

    In a random order every latent takes a random one that is still free and that it never meets; those that find none
    stay alone.
    """
    live, rng = subject.live, np.random.default_rng(seed)
    fires = (subject.firings.csr[:, live] > 0).astype(np.float32)
    apart = (fires.T @ fires).toarray() == 0
    free, pairs = np.ones(len(live), bool), []
    for latent in rng.permutation(len(live)):
        partners = np.flatnonzero(free & apart[latent])
        if free[latent] and len(partners):
            partner = rng.choice(partners)
            free[[latent, partner]] = False
            pairs.append((live[latent], live[partner]))
    return _merged(subject, np.array(pairs, np.int64).reshape(-1, 2))


def _merged(subject: Subject, pairs: np.ndarray) -> Subject:
    """The first latent of each pair [p, 2] takes the second one in.

    Its row lies midway between both rows, it fires where either fires, and its strengths are summed.
    """
    n = len(subject.rows)
    kept = np.setdiff1d(np.arange(n), pairs[:, 1])
    into = np.empty(n, np.int64)
    into[kept] = np.arange(len(kept))
    into[pairs[:, 1]] = into[pairs[:, 0]]
    both = csr_array((np.ones(n), (into, np.arange(n))), shape=(len(kept), n))
    rows = both @ subject.rows.astype(np.float64)
    # two opposite rows have no midway
    gone = np.linalg.norm(rows, axis=1) < 1e-6
    rows[gone] = subject.rows[kept[gone]]
    firings = subject.firings
    table = table_of(subject.places, into[firings.indices], firings.values, firings.n_tokens, len(kept))
    sae = sae_of(unit(rows), both @ subject.columns, subject.sae.b_dec)
    return Subject(sae, as_firings(table, subject.split), subject.split)


def swapped_identities(subject: Subject, seed: int, share: float = 0.5) -> Subject:
    """Live latents are paired at random; in this share of the documents each fires where its partner did. Rows stay."""
    rng = np.random.default_rng(seed)
    pairs = _pairs(subject.live, rng)
    partner = np.arange(len(subject.rows))
    partner[pairs], firings = pairs[:, ::-1], subject.firings
    documents = np.unique(firings.documents)
    chosen = rng.permutation(documents)[: round(share * len(documents))]
    swaps = np.isin(firings.documents, chosen)[subject.places]
    latents = np.where(swaps, partner[firings.indices], firings.indices)
    table = table_of(subject.places, latents, firings.values, firings.n_tokens, firings.n_latents)
    return replace(subject, firings=as_firings(table, subject.split))


def with_false_firings(subject: Subject, share: float, seed: int) -> Subject:
    """With probability `share`, each firing is repeated, as strong, at a token drawn at random.

    Where the latent fires there already, nothing changes.
    """
    rng, firings = np.random.default_rng(seed), subject.firings
    again = np.flatnonzero(rng.random(len(firings.indices)) < share)
    where = rng.integers(max(firings.n_tokens, 1), size=len(again))
    return _added(subject, where, firings.indices[again], firings.values[again], subject.rows, subject.columns)


def with_junk(subject: Subject, count: int, seed: int) -> Subject:
    """`count` more latents with random rows, that fire at random: each as often as some live latent does."""
    rng, live = np.random.default_rng(seed), subject.live
    often = rng.choice(subject.firings.counts()[live], count) if len(live) else np.zeros(count, np.int64)
    return _with_random(subject, often, rng)


def with_dense(subject: Subject, count: int, rate: float, seed: int) -> Subject:
    """`count` more latents with random rows, each of which fires on a random `rate` of all tokens."""
    rng = np.random.default_rng(seed)
    return _with_random(subject, np.full(count, round(rate * subject.firings.n_tokens)), rng)


def _with_random(subject: Subject, often: np.ndarray, rng: np.random.Generator) -> Subject:
    """A new latent for each number of `often`, which is how many tokens it fires on.

    Strengths are drawn from all firings; 1 where there are none.
    """
    firings, count = subject.firings, len(often)
    fresh = unit(rng.standard_normal((count, subject.rows.shape[1])))
    tokens = [rng.choice(firings.n_tokens, int(times), replace=False) for times in often if times]
    where = np.concatenate([*tokens, np.zeros(0, np.int64)]).astype(np.int64)
    values = rng.choice(firings.values if len(firings.values) else np.ones(1, np.float32), len(where))
    latents = np.repeat(len(subject.rows) + np.arange(count), often)
    rows, columns = (np.concatenate([matrix, fresh]) for matrix in (subject.rows, subject.columns))
    return _added(subject, where, latents, values, rows, columns)


def _added(subject: Subject, where, latents, values, rows: np.ndarray, columns: np.ndarray) -> Subject:
    """More firings: token, latent and strength of each. A firing that is there already keeps its strength."""
    firings, n = subject.firings, len(rows)
    new = np.unique(where * n + latents, return_index=True)
    old = subject.places * n + firings.indices
    fresh = new[1][~np.isin(new[0], old)]
    table = table_of(
        np.concatenate([subject.places, where[fresh]]),
        np.concatenate([firings.indices, latents[fresh]]),
        np.concatenate([firings.values, values[fresh]]),
        firings.n_tokens,
        n,
    )
    return Subject(sae_of(rows, columns, subject.sae.b_dec), as_firings(table, subject.split), subject.split)


def rotated(subject: Subject, seed: int) -> Subject:
    """Live latents are paired at random; both rows of a pair turn by 45 degrees in their plane.

    (w_i, w_j) becomes ((w_i + w_j) / sqrt 2, (w_j - w_i) / sqrt 2), to unit length. Firings stay.
    """
    one, other = _pairs(subject.live, np.random.default_rng(seed)).T
    rows = subject.rows.astype(np.float64)
    turned = rows.copy()
    turned[one], turned[other] = rows[one] + rows[other], rows[other] - rows[one]
    # equal or opposite rows leave one of the two without a direction
    gone = np.linalg.norm(turned, axis=1) < 1e-6
    turned[gone] = rows[gone]
    return replace(subject, sae=sae_of(unit(turned), subject.columns, subject.sae.b_dec))


def without_rarest(subject: Subject, share: float) -> Subject:
    """This share of the live latents, those that fire most seldom, are taken out, and all that never fire."""
    live, counts = subject.live, subject.firings.counts()
    rising = live[np.argsort(counts[live], kind="stable")]
    kept = np.sort(rising[round(share * len(live)) :])
    table = csr_array(subject.firings.csr[:, kept])
    table.sort_indices()
    sae = sae_of(subject.rows[kept], subject.columns[kept], subject.sae.b_dec)
    return Subject(sae, as_firings(table, subject.split), subject.split)


def strongest(subject: Subject, share: float) -> Subject:
    """This share of all firings is kept, the strongest ones whatever their latent."""
    values = subject.firings.values
    kept = np.zeros(len(values), bool)
    kept[np.argsort(-values, kind="stable")[: round(share * len(values))]] = True
    return replace(subject, firings=only(subject.firings, kept))


def without_weakest(subject: Subject, share: float) -> Subject:
    """Every latent loses this share of its firings, its weakest ones; the number is rounded down."""
    latents, values = subject.firings.indices, subject.firings.values
    order = np.lexsort((values, latents))
    counts = subject.firings.counts()
    first = np.cumsum(counts) - counts
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first[latents[order]]
    # a hair more, as 0.3 * 10 may come out below 3
    return replace(subject, firings=only(subject.firings, rank >= np.floor(share * counts[latents] + 1e-9)))


def _pairs(latents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [p, 2]: the latents paired at random, each once."""
    shuffled = rng.permutation(latents)
    return shuffled[: len(shuffled) // 2 * 2].reshape(-1, 2)


def _share(subject: Subject, share: float) -> int:
    """So many latents as make this share of those there are, at least one."""
    return max(1, round(share * len(subject.rows)))


@dataclass(frozen=True)
class Fake:
    """make: subject, seed -> the changed subject. words: what it does, in a few words."""

    make: Callable[[Subject, int], Subject]
    words: str


FAKES = {
    "merged_at_random": Fake(merged_at_random, "random pairs of latents become one latent"),
    "merged_apart": Fake(merged_apart, "pairs of latents that never fire together become one latent"),
    "swapped_identities": Fake(swapped_identities, "in half of the documents latents fire for their partner"),
    "false_firings": Fake(lambda s, seed: with_false_firings(s, 0.2, seed), "20% more firings, at random tokens"),
    "junk_latents": Fake(
        lambda s, seed: with_junk(s, _share(s, JUNK_SHARE), seed), "half as many again, random in rows and firings"
    ),
    "dense_latents": Fake(
        lambda s, seed: with_dense(s, _share(s, DENSE_SHARE), DENSE_RATE, seed),
        "5% more latents, each on at a random half of the tokens",
    ),
    "rotated_rows": Fake(rotated, "the rows of random pairs turn by 45 degrees in their plane"),
    "noise_of_length_1": Fake(lambda s, seed: noisy(s, 1.0, seed), "a random vector of length 1 is added to each row"),
    "rarest_dropped": Fake(lambda s, seed: without_rarest(s, 0.5), "the rarer half of the latents is taken out"),
    "weakest_cut": Fake(lambda s, seed: without_weakest(s, 0.3), "every latent loses the weakest 30% of its firings"),
    "strongest_kept": Fake(lambda s, seed: strongest(s, 0.75), "the strongest 75% of all firings are kept"),
}
# Those that the planted worlds have as cases of their own.
MORE_FAKES = {
    "thinned": Fake(lambda s, seed: thinned(s, 0.1, seed), "10% of all firings are lost at random"),
    "narrower": Fake(
        lambda s, seed: in_fewer_documents(s, 0.5, seed), "each latent fires in a random half of the documents"
    ),
    "duplicated": Fake(
        lambda s, seed: twinned(s, np.arange(len(s.rows))), "every latent is there twice, both fire, half as strong"
    ),
    "duplicated_in_turns": Fake(
        lambda s, seed: twinned(s, np.arange(len(s.rows)), seed), "every latent is there twice, one of the two fires"
    ),
}
