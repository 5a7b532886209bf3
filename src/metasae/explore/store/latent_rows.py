"""The rows of one SAE's latents: scalars, windows, tokens and histogram, from one pass over its firings by latent."""

import json
import sqlite3
import zlib
from collections.abc import Iterator

import numpy as np

from metasae.explore.store import blobs
from metasae.explore.store.schema import key_of
from metasae.explore.store.text_rows import SplitText
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import Task

# Firings looked at in one go: about 200 MB.
CHUNK = 1 << 20
_INSERT = (
    "INSERT INTO latents (key, sae, latent, firings, rate, threshold, max, top_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def write_latents(
    store: sqlite3.Connection,
    sae: int,
    view: ByLatent,
    text: SplitText,
    text_number: int,
    threshold: np.ndarray,
    task: Task,
) -> None:
    """Writes latents, windows, tokens, histograms and top_tokens of an SAE with firings. threshold: float [n], NaN
    for none."""
    searched: list[np.ndarray] = []
    for first, last in ranges(view.indptr, CHUNK):
        searched += _write_block(store, sae, first, last, view, text, threshold[first:last])
        task.advance(last - first)
    latents = np.repeat(np.arange(view.n_latents), [len(entries) for entries in searched])
    entries = np.concatenate([np.zeros(0, np.int64), *searched])
    # of each token of the vocabulary the latents that have it among their first, those with the most firings first
    order = np.lexsort((latents, -view.counts()[latents], entries))
    names, first, sizes = np.unique(entries[order], return_index=True, return_counts=True)
    latents = latents[order].astype("<i4")
    places = zip(names.tolist(), first.tolist(), sizes.tolist(), strict=True)
    rows = ((text_number, entry, sae, latents[begin : begin + size].tobytes()) for entry, begin, size in places)
    store.executemany("INSERT INTO top_tokens VALUES (?, ?, ?, ?)", rows)


def write_bare_latents(store: sqlite3.Connection, sae: int, threshold: np.ndarray, task: Task) -> None:
    """The rows of an SAE without firings: all that is known are its thresholds."""
    rows = ((key_of(sae, i), sae, i, None, None, value, None, "[]") for i, value in enumerate(threshold.tolist()))
    store.executemany(_INSERT, rows)
    task.advance(len(threshold))


def ranges(indptr: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of latents with at most `size` firings together, but at least one latent."""
    first, n_latents = 0, len(indptr) - 1
    while first < n_latents:
        last = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(last, first + 1), n_latents)
        yield first, last
        first = last


def _write_block(
    store: sqlite3.Connection,
    sae: int,
    first: int,
    last: int,
    view: ByLatent,
    text: SplitText,
    threshold: np.ndarray,
) -> list[np.ndarray]:
    """Latents first to last - 1, from their firings all at once. threshold: theirs.

    Returns the entries of the vocabulary by which each is searched.
    """
    firings = slice(int(view.indptr[first]), int(view.indptr[last]))
    tokens, values = np.asarray(view.tokens[firings]), np.asarray(view.values[firings])
    counts, n = np.diff(view.indptr[first : last + 1]), last - first
    latent = np.repeat(np.arange(n), counts)
    low, high = extremes(values, counts)
    # activations begin at the threshold, where there is one
    low = np.where(counts > 0, np.minimum(low, np.where(np.isfinite(threshold), np.maximum(threshold, 0), 0)), 0)
    bins = blobs.histograms(latent, values, low, high).astype("<u4")
    packed = list(blobs.pack_windows(latent, tokens, values, text.cells, n))
    most = list(blobs.top_tokens(latent, text.entries[tokens], n, len(text.ids)))

    keys, live = [key_of(sae, i) for i in range(first, last)], np.flatnonzero(counts).tolist()
    low, high, counts = low.tolist(), high.tolist(), counts.tolist()
    scalars = []
    for i, (entries, _) in enumerate(most):
        named = json.dumps([text.strings[entry] for entry in entries[: blobs.NAMED].tolist()])
        rate, strongest = counts[i] / max(len(text.entries), 1), high[i] if counts[i] else None
        scalars.append((keys[i], sae, first + i, counts[i], rate, float(threshold[i]), strongest, named))
    store.executemany(_INSERT, scalars)
    store.executemany("INSERT INTO windows VALUES (?, ?)", ((keys[i], packed[i]) for i in live))
    store.executemany("INSERT INTO tokens VALUES (?, ?)", ((keys[i], blobs.pack_tokens(*most[i])) for i in live))
    rows = ((keys[i], low[i], high[i], zlib.compress(bins[i].tobytes(), 1)) for i in live)
    store.executemany("INSERT INTO histograms VALUES (?, ?, ?, ?)", rows)
    return [entries[: blobs.SEARCHED] for entries, _ in most]


def extremes(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each latent, float64 [b]; 0 where it never fires.

    values [c]: in the order of latents. counts [b]: of each.
    """
    low, high = np.zeros(len(counts)), np.zeros(len(counts))
    live = counts > 0
    if live.any():
        starts = (np.cumsum(counts) - counts)[live]
        low[live], high[live] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return low, high
