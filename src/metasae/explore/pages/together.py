"""How few latents fire together, exact from their lists of tokens, and windows of text that show them side by side.

phi(a, b) = (N n_ab - n_a n_b) / sqrt(n_a (N - n_a) n_b (N - n_b)), over N tokens.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np

from metasae.explore.store.blobs import short
from metasae.explore.store.stored_text import StoredText
from metasae.explore.store.window_blobs import BEFORE, LENGTH

# (tokens int [c] rising, values float [c]) of one latent
Fired = tuple[np.ndarray, np.ndarray]


def phi(n_ab: int, n_a: int, n_b: int, n_tokens: int) -> float | None:
    """None where a latent fires on no token or on all."""
    below = n_a * (n_tokens - n_a) * n_b * (n_tokens - n_b)
    return (n_tokens * n_ab - n_a * n_b) / math.sqrt(below) if below > 0 else None


def phi_table(fired: Sequence[Fired], n_tokens: int) -> list[list[float | None]]:
    """Of every two of the latents."""
    table: list[list[float | None]] = [[None] * len(fired) for _ in fired]
    for (i, (one, _)), (j, (other, _)) in combinations_with_replacement(enumerate(fired), 2):
        table[i][j] = table[j][i] = phi(int(is_in(one, other).sum()), len(one), len(other), n_tokens)
    return table


def is_in(tokens: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [c]: which of the rising tokens are among the rising others."""
    if not len(others):
        return np.zeros(len(tokens), bool)
    place = np.searchsorted(others, tokens)
    return others[np.minimum(place, len(others) - 1)] == tokens


def apart(places: np.ndarray, strength: np.ndarray, count: int) -> list[int]:
    """Up to `count` places, the strongest first (the first of equals), no two within half a window of each other.

    places: int [c], rising. strength: float [c], finite.
    """
    left, kept = strength.astype(np.float64), []
    while len(kept) < count and np.max(left, initial=-np.inf) > -np.inf:
        place = int(places[left.argmax()])
        kept.append(place)
        low, high = np.searchsorted(places, np.array([place - BEFORE + 1, place + BEFORE], places.dtype))
        left[low:high] = -np.inf
    return kept


def window(text: StoredText, peak: int, fired: Sequence[Fired]) -> dict:
    """The window round a token: document, start in it, place, peak, tokens, and under `values` those of each latent."""
    begin, end = text.stretch(peak)
    start = max(min(peak - BEFORE, end - LENGTH), begin)
    end = min(start + LENGTH, end)
    document, position = text.where(start)
    values = []
    for tokens, strengths in fired:
        row: list[float] = [0] * (end - start)
        # of one type with what is searched, which numpy would copy else
        low, high = np.searchsorted(tokens, np.array([start, end], tokens.dtype))
        for token, value in zip(tokens[low:high].tolist(), strengths[low:high].tolist(), strict=True):
            row[token - start] = short(value)
        values.append(row)
    return {
        "document": document,
        "start": position,
        "place": start,
        "peak": peak - start,
        "tokens": text.strings(start, end),
        "values": values,
    }
