"""Firings from dense tables."""

import numpy as np

from metasae.measures.firing.firings import Firings


def firings_from(on, values, documents, tokens, positions) -> Firings:
    """on: bool [T, n]; values: float [T, n]."""
    rows, columns = np.nonzero(on)
    indptr = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64)
    entries = columns.astype(np.int32), values[rows, columns].astype(np.float32)
    return Firings(indptr, *entries, on.shape[1], documents, tokens, positions)
