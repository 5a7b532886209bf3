"""Small tables of who fires when, bool [T, n], for measures that read firings."""

import numpy as np

from metasae.measures.firing.firings import Firings


def firings_of(on, document_length: int = 9) -> Firings:
    """on: bool [T, n]; documents of `document_length` tokens."""
    on = np.asarray(on, bool)
    rows, columns = np.nonzero(on)
    indptr = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64)
    place = np.arange(len(on), dtype=np.int32)
    return Firings(
        indptr,
        columns.astype(np.int32),
        np.ones(len(rows), np.float32),
        on.shape[1],
        place // document_length,
        place,
        place,
    )


def random_on(n_tokens: int, n: int, seed: int) -> np.ndarray:
    """With a dead latent, one that is always on, a duplicate and, besides that one, a token without firings."""
    rng = np.random.default_rng(seed)
    on = rng.random((n_tokens, n)) < rng.uniform(0.01, 0.7, n)
    on[n_tokens // 2] = False
    on[:, 1], on[:, 3], on[:, 5] = False, True, on[:, 2]
    return on


def phi_of(a, b) -> float | None:
    """phi of two columns in Python integers; None when one of them never or always fires."""
    a, b = [int(x) for x in a], [int(x) for x in b]
    total, na, nb = len(a), sum(a), sum(b)
    if not (0 < na < total and 0 < nb < total):
        return None
    n11 = sum(x & y for x, y in zip(a, b, strict=True))
    return (n11 * total - na * nb) / (na * (total - na) * nb * (total - nb)) ** 0.5
