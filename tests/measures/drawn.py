"""Firings drawn from known models, and their brute-force counts."""

import math

import numpy as np

from metasae.measures.firing.firings import Firings


def firings_of(on, documents=None) -> Firings:
    """on: bool [T, n]. documents: int [T]; None: one document."""
    on = np.asarray(on, bool)
    rows, columns = np.nonzero(on)
    indptr = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64)
    documents = np.zeros(len(on), np.int32) if documents is None else np.asarray(documents, np.int32)
    place = np.arange(len(on), dtype=np.int32)
    return Firings(
        indptr, columns.astype(np.int32), np.ones(len(rows), np.float32), on.shape[1], documents, place, place
    )


def log_normal_rates(rng, n, l0, spread=1.0):
    p = np.exp(rng.normal(0, spread, n))
    return np.minimum(p * l0 / p.sum(), 0.6)


def independent(seed, n, n_tokens, l0):
    rng = np.random.default_rng(seed)
    return rng.random((n_tokens, n)) < log_normal_rates(rng, n, l0)


def rasch(seed, n, n_tokens, l0, spread):
    """logit pi_it = a_i + b_t: some tokens are busier than others, and nothing else ties latents together."""
    rng = np.random.default_rng(seed)
    p = log_normal_rates(rng, n, l0)
    logits = np.log(p / (1 - p)) + rng.normal(0, spread, n_tokens)[:, None]
    return rng.random((n_tokens, n)) < 1 / (1 + np.exp(-logits))


def topical(seed, n, n_documents, length, l0, topics, lift, spread=0.5):
    """Documents of one topic each; a latent fires `lift` times as often in its own topic. Rates do not depend on the
    topic drawn."""
    rng = np.random.default_rng(seed)
    p, home = log_normal_rates(rng, n, l0, spread), rng.integers(0, topics, n)
    topic = np.repeat(rng.integers(0, topics, n_documents), length)
    rate = p * np.where(topic[:, None] == home, lift, (topics - lift) / (topics - 1))
    return rng.random((n_documents * length, n)) < rate, np.repeat(np.arange(n_documents), length)


def pairs_of(on):
    """(i, j, N11, Ni, Nj) of latents that fire on some tokens but not on all, in Python integers."""
    on = np.asarray(on, bool)
    columns = [[int(value) for value in column] for column in on.T]
    kept = [i for i, column in enumerate(columns) if 0 < sum(column) < len(column)]
    for place, i in enumerate(kept):
        for j in kept[place + 1 :]:
            n11 = sum(a & b for a, b in zip(columns[i], columns[j], strict=True))
            yield i, j, n11, sum(columns[i]), sum(columns[j])


def root_of(total, ni, nj):
    return math.sqrt(ni * (total - ni) * nj * (total - nj))
