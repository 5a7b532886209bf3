"""The rows of one SAE's latents: scalars, windows, tokens and histogram, from one pass over its firings in the order of latents."""

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from metasae.explore.pages.searching import write_top_tokens
from metasae.explore.store import token_blobs, window_blobs
from metasae.explore.store.schema import key_of
from metasae.explore.store.text_rows import Text
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import Task

# Firings looked at in one go: about 200 MB.
CHUNK = 1 << 20


def write_latents(
    store: sqlite3.Connection,
    sae: int,
    view: ByLatent,
    text: Text,
    text_number: int,
    threshold: np.ndarray,
    windows: int,
    task: Task,
) -> None:
    """Writes latents, windows, tokens, histograms and top_tokens of an SAE with firings. threshold: float [n]."""
    searched: list[tuple[int, np.ndarray]] = []
    for first, last in ranges(view.indptr, CHUNK):
        found = list(_latents(first, last, view, text, threshold[first:last], windows))
        store.executemany(_INSERT, (_scalars(sae, each, text, threshold) for each in found))
        live = [(key_of(sae, each.latent), each) for each in found if each.firings]
        store.executemany("INSERT INTO windows VALUES (?, ?)", ((key, each.windows) for key, each in live))
        store.executemany(
            "INSERT INTO tokens VALUES (?, ?)",
            ((key, token_blobs.pack(each.entries, each.with_entry)) for key, each in live),
        )
        store.executemany(
            "INSERT INTO histograms VALUES (?, ?, ?, ?)",
            ((key, each.low, each.high, each.histogram) for key, each in live),
        )
        searched += [(each.latent, each.entries[: token_blobs.SEARCHED]) for _, each in live]
        task.advance(last - first)
    entries = np.concatenate([np.zeros(0, np.int64), *(found for _, found in searched)])
    latents = np.array([latent for latent, found in searched for _ in found], np.int64)
    write_top_tokens(store, text_number, sae, entries, latents, view.counts())


def write_bare_latents(store: sqlite3.Connection, sae: int, threshold: np.ndarray, task: Task) -> None:
    """The rows of an SAE without firings: all that is known are its thresholds."""
    rows = (
        (key_of(sae, i), sae, i, None, None, finite(value), None, "[]") for i, value in enumerate(threshold.tolist())
    )
    store.executemany(_INSERT, rows)
    task.advance(len(threshold))


_INSERT = (
    "INSERT INTO latents (key, sae, latent, firings, rate, threshold, max, top_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def ranges(indptr: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of latents with at most `size` firings together, but at least one latent."""
    first, n_latents = 0, len(indptr) - 1
    while first < n_latents:
        last = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(last, first + 1), n_latents)
        yield first, last
        first = last


@dataclass(frozen=True)
class _Latent:
    """One latent. low, high: ends of its histogram. entries, with_entry: int64 [m], as `token_blobs.top_tokens`. windows, histogram: packed."""

    latent: int
    firings: int
    low: float
    high: float
    histogram: bytes
    windows: bytes
    entries: np.ndarray
    with_entry: np.ndarray


def _latents(
    first: int, last: int, view: ByLatent, text: Text, threshold: np.ndarray, windows: int
) -> Iterator[_Latent]:
    """Latents first to last - 1, from their firings all at once. threshold: theirs."""
    entries = slice(int(view.indptr[first]), int(view.indptr[last]))
    tokens, values = np.asarray(view.tokens[entries]), np.asarray(view.values[entries])
    counts, n = np.diff(view.indptr[first : last + 1]), last - first
    latent = np.repeat(np.arange(n), counts)
    low, high = extremes(values, counts)
    # activations begin at the threshold, where there is one
    low = np.where(counts > 0, np.minimum(low, np.where(np.isfinite(threshold), np.maximum(threshold, 0), 0)), 0)
    bins = token_blobs.histograms(latent, values, low, high).astype("<u4")
    chosen = window_blobs.choose(latent, tokens, values, text.cells, windows)
    packed = window_blobs.pack(chosen, n, latent, tokens, values, text.n_tokens)
    most = token_blobs.top_tokens(latent, text.entries[tokens], n, len(text.ids))
    for i, blob, (top, with_entry) in zip(range(n), packed, most, strict=True):
        histogram = zlib.compress(bins[i].tobytes(), 1)
        yield _Latent(first + i, int(counts[i]), float(low[i]), float(high[i]), histogram, blob, top, with_entry)


def _scalars(sae: int, each: _Latent, text: Text, threshold: np.ndarray) -> tuple:
    named = json.dumps([text.strings[entry] for entry in each.entries[: token_blobs.NAMED].tolist()])
    rate, strongest = each.firings / max(text.n_tokens, 1), each.high if each.firings else None
    return (
        key_of(sae, each.latent),
        sae,
        each.latent,
        each.firings,
        rate,
        finite(float(threshold[each.latent])),
        strongest,
        named,
    )


def extremes(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each latent, float64 [b]; 0 where it never fires. values [c] in the order of latents, counts [b]."""
    low, high = np.zeros(len(counts)), np.zeros(len(counts))
    live = counts > 0
    if live.any():
        starts = (np.cumsum(counts) - counts)[live]
        low[live], high[live] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return low, high
