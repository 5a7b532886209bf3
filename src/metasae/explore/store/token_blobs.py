"""On which tokens of the vocabulary a latent fires most often, and how its activations are spread.

Of token v: `with` = firings on it, count = how often it stands in the text, share = with / firings = P(v | fires),
lift = share / P(v). Packed: uint32 [2, m] of vocabulary entry and `with`, most first, ties to the lower entry.
"""

from collections.abc import Iterator

import numpy as np

TOP = 30
NAMED = 5
SEARCHED = 8
BINS = 40


def top_tokens(
    latent: np.ndarray, entries: np.ndarray, n_latents: int, vocabulary: int, count: int = TOP
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """latent int [c] rising, entries int [c]: of each of n latents in order (entries int64 [m], firings on each int64 [m]), m <= count."""
    pairs, firings = np.unique(latent.astype(np.int64) * vocabulary + entries, return_counts=True)
    of = pairs // vocabulary
    # stable, so that the lower entry comes first among equals
    order = np.lexsort((-firings, of))
    pairs, firings = pairs[order] % vocabulary, firings[order]
    first = np.searchsorted(of, np.arange(n_latents + 1)).tolist()
    for i in range(n_latents):
        here = slice(first[i], min(first[i + 1], first[i] + count))
        yield pairs[here], firings[here]


def pack(entries: np.ndarray, firings: np.ndarray) -> bytes:
    return np.stack([entries, firings]).astype("<u4").tobytes()


def unpack(blob: bytes) -> tuple[list[int], list[int]]:
    """(entries, firings on each)."""
    entries, firings = np.frombuffer(blob, "<u4").reshape(2, -1)
    return entries.tolist(), firings.tolist()


def histograms(
    latent: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int = BINS
) -> np.ndarray:
    """int64 [b, bins]: firings of each latent by activation, in even bins from low to high; the last bin holds its upper edge.

    latent int [c], 0 to b - 1. values float [c], all within their latent's low [b] and high [b], float64. As np.histogram.
    """
    edges = edges_of(low, high, bins)
    width = np.where(high > low, high - low, 1.0)
    exact = values.astype(np.float64)
    place = ((exact - low[latent]) * (bins / width[latent])).astype(np.int64).clip(0, bins - 1)
    # the division rounds: what it puts beside its bin is put right by the edges themselves
    place -= exact < edges[latent, place]
    place += (exact >= edges[latent, place + 1]) & (place < bins - 1)
    return np.bincount(latent * bins + place, minlength=len(low) * bins).reshape(len(low), bins)


def edges_of(low: np.ndarray, high: np.ndarray, bins: int = BINS) -> np.ndarray:
    """float64 [b, bins + 1]."""
    return low[:, None] + (high - low)[:, None] * (np.arange(bins + 1) / bins)
