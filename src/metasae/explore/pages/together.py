"""How few latents fire together, exact from their lists of tokens, and windows of text that show them side by side.

phi(a, b) = (N n_ab - n_a n_b) / sqrt(n_a (N - n_a) n_b (N - n_b)), over N tokens.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from metasae.explore.store.stored_text import StoredText
from metasae.explore.store.window_blobs import BEFORE, LENGTH, short

FEW = 1024
# (tokens int [c] rising, values float [c]) of one latent
Fired = tuple[np.ndarray, np.ndarray]


def phi(n_ab: int, n_a: int, n_b: int, n_tokens: int) -> float | None:
    """None where a latent fires on no token or on all."""
    below = n_a * (n_tokens - n_a) * n_b * (n_tokens - n_b)
    return (n_tokens * n_ab - n_a * n_b) / math.sqrt(below) if below > 0 else None


def phi_table(fired: Sequence[Fired], n_tokens: int) -> list[list[float | None]]:
    table: list[list[float | None]] = [[None] * len(fired) for _ in fired]
    for i, (one, _) in enumerate(fired):
        for j, (other, _) in enumerate(fired[: i + 1]):
            both = int(is_in(one, other).sum()) if i != j else len(one)
            table[i][j] = table[j][i] = phi(both, len(one), len(other), n_tokens)
    return table


def is_in(tokens: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [c]: which of the rising tokens are among the rising others."""
    if not len(others):
        return np.zeros(len(tokens), bool)
    place = np.searchsorted(others, tokens)
    return others[np.minimum(place, len(others) - 1)] == tokens


def patterns(parent: np.ndarray, children: Sequence[np.ndarray]) -> np.ndarray:
    """bool [children, c]: on which of the parent's firings each child is on."""
    return np.stack([is_in(parent, child) for child in children]) if children else np.zeros((0, len(parent)), bool)


def apart(places: np.ndarray, strength: np.ndarray, count: int) -> list[int]:
    """Up to `count` places, the strongest first (the first of equals), no two within half a window of each other."""
    kept: list[int] = []
    for place in _strongest(places, strength):
        if len(kept) == count:
            break
        if all(abs(place - other) >= BEFORE for other in kept):
            kept.append(place)
    return kept


def _strongest(places: np.ndarray, strength: np.ndarray) -> Iterator[int]:
    """The places, the strongest first; only as many are sorted as are asked for, or about that."""
    if len(places) > FEW:
        first = strength >= np.partition(strength, len(strength) - FEW)[len(strength) - FEW]
        yield from _strongest_of(places[first], strength[first])
        places, strength = places[~first], strength[~first]
    yield from _strongest_of(places, strength)


def _strongest_of(places: np.ndarray, strength: np.ndarray) -> Iterator[int]:
    yield from places[np.argsort(-strength, kind="stable")].tolist()


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
