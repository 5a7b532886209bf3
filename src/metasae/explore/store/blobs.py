"""How the arrays of a latent are packed: its neighbours, the tokens it fires on most, the spread of its activations.

Of token v of the vocabulary: `with` = firings on it, count = how often it stands in the text, share = with / firings =
P(v | fires), lift = share / P(v).
"""

from collections.abc import Iterator

import numpy as np

TOP = 30
NAMED = 5
SEARCHED = 8
BINS = 40


def pack_edges(latents: np.ndarray, values: np.ndarray) -> bytes:
    """int32 [m] latents, then float32 [m] values, the closest first."""
    return latents.astype("<i4").tobytes() + values.astype("<f4").tobytes()


def unpack_edges(blob: bytes) -> tuple[list[int], list[float]]:
    half = len(blob) // 2
    values = np.frombuffer(blob, "<f4", offset=half).tolist()
    return np.frombuffer(blob[:half], "<i4").tolist(), [short(value) for value in values]


def pack_tokens(entries: np.ndarray, firings: np.ndarray) -> bytes:
    """uint32 [2, m] of vocabulary entry and `with`, most first, ties to the lower entry."""
    return np.stack([entries, firings]).astype("<u4").tobytes()


def unpack_tokens(blob: bytes) -> tuple[list[int], list[int]]:
    """(entries, firings on each)."""
    entries, firings = np.frombuffer(blob, "<u4").reshape(2, -1)
    return entries.tolist(), firings.tolist()


def short(value: float) -> float:
    """Six digits: more than is shown of an activation, a share or a lift."""
    return float(f"{value:.6g}")


def top_tokens(
    latent: np.ndarray, entries: np.ndarray, n_latents: int, vocabulary: int, count: int = TOP
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each of n latents in order (entries int64 [m], firings on each int64 [m]), m <= count.

    latent int [c] rising, entries int [c]: of each firing.
    """
    pairs, firings = np.unique(latent.astype(np.int64) * vocabulary + entries, return_counts=True)
    of = pairs // vocabulary
    # stable, so that the lower entry comes first among equals
    order = np.lexsort((-firings, of))
    pairs, firings = pairs[order] % vocabulary, firings[order]
    first = np.searchsorted(of, np.arange(n_latents + 1)).tolist()
    for i in range(n_latents):
        here = slice(first[i], min(first[i + 1], first[i] + count))
        yield pairs[here], firings[here]


def histograms(
    latent: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int = BINS
) -> np.ndarray:
    """int64 [b, bins]: firings of each latent by activation, in even bins from low to high, as by np.histogram.

    The last bin holds its upper edge. latent int [c], 0 to b - 1. values float [c], all within their latent's low [b]
    and high [b], float64.
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
