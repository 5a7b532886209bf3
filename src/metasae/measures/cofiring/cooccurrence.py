"""How latents fire together: phi of every pair, from exact integer counts.

phi_ij = (N11 N - Ni Nj) / sqrt(Ni (N - Ni) Nj (N - Nj)), where N tokens, Ni firings of latent i, N11 tokens with both.
Counts are int64 and phi float64; nothing of size n x n is ever in memory. Source: arXiv 2604.03436 for mean |phi|.
"""

import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from metasae.measures.cofiring.counts import CoFirings, Span, block_spans, firing_counts
from metasae.measures.cofiring.phi_sums import CellSums, Histogram, OverMax, PhiSums, phi_edges, upper
from metasae.measures.cofiring.rate_cells import RateCells, bands_of
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress

SHARES_ABOVE = (0.05, 0.1, 0.3)
BLOCK_SHARES_ABOVE = (0.1,)
OVER_MAX_ABOVE = (0.1, 0.3, 0.5)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
TILE_ROWS, TILE_PAIRS = 1024, 2**25
STRIP_PAIRS = 2**16
MEMORY = 4 * 2**30


@dataclass(frozen=True)
class CoOccurrence:
    """Statistics over all pairs i < j of latents that fire on some tokens but not on all. None where no pair exists.

    mean_pos_phi, mean_neg_phi: means over the pairs with phi > 0 and with phi < 0; share_pos, share_neg: their shares.
    nearest_phi: mean over latents of the phi with its closest partner. floor: sqrt(2 / (pi N)), the mean |phi| of
    independent latents. quantiles: of phi, read off the histogram, so within a bin (4.7% of the value).
    mean_over_max: mean of phi / phi_max over the pairs with phi > 0, phi_max being the largest phi that the two rates allow;
    over_max_above: share of those pairs with more. cells: mean |phi| by firing rates, for `matched_mean`.
    leave_one_out: mean_abs_phi, mean_pos_phi, nearest_phi and share_above_0.1 without one block of documents, per block.
    histogram: phi_edges [bins + 1] and pair counts int64 [bins].
    """

    mean_abs_phi: float | None
    mean_pos_phi: float | None
    mean_neg_phi: float | None
    share_pos: float | None
    share_neg: float | None
    shares_above: dict[float, float | None]
    nearest_phi: float | None
    quantiles: dict[float, float | None]
    mean_over_max: float | None
    over_max_above: dict[float, float | None]
    floor: float | None
    l0_realised: float
    n_tokens: int
    n_pairs: int
    never: int
    always: int
    cells: RateCells
    leave_one_out: dict[str, tuple[float | None, ...]]
    edges: np.ndarray
    histogram: np.ndarray

    def as_dict(self) -> dict:
        """The `cooccurrence` part of measures.json."""
        return {
            "mean_abs_phi": self.mean_abs_phi,
            "mean_pos_phi": self.mean_pos_phi,
            "mean_neg_phi": self.mean_neg_phi,
            "share_pos": self.share_pos,
            "share_neg": self.share_neg,
            **{f"share_above_{limit:g}": share for limit, share in self.shares_above.items()},
            "nearest_phi": self.nearest_phi,
            "quantiles": {f"{q:g}": value for q, value in self.quantiles.items()},
            "mean_over_max": self.mean_over_max,
            **{f"over_max_above_{limit:g}": share for limit, share in self.over_max_above.items()},
            "floor": self.floor,
            "l0_realised": self.l0_realised,
            "n_tokens": self.n_tokens,
            "n_pairs": self.n_pairs,
            "excluded": {"never": self.never, "always": self.always},
            "rate_cells": self.cells.as_dict(),
            "leave_one_out": {name: list(values) for name, values in self.leave_one_out.items()},
            "histogram": {"edges": self.edges, "counts": self.histogram},
        }


def phi_tile(n11: np.ndarray, row_counts: np.ndarray, column_counts: np.ndarray, n_tokens: int) -> np.ndarray:
    """phi float64 [r, c] from int64 counts N11 [r, c], Ni [r], Nj [c] of latents that fire on some tokens but not on all.

    The numerator is formed in int64, so the difference of two large products is exact (for N below 3e9).
    """
    numerator = n11 * n_tokens
    numerator -= row_counts[:, None] * column_counts[None, :]
    row_root = np.sqrt((row_counts * (n_tokens - row_counts)).astype(np.float64))
    column_root = np.sqrt((column_counts * (n_tokens - column_counts)).astype(np.float64))
    phi = row_root[:, None] * column_root[None, :]
    np.divide(numerator, phi, out=phi)
    return np.clip(phi, -1.0, 1.0, out=phi)


def pair_statistics(
    firings: Firings,
    blocks: np.ndarray | None = None,
    tile: int | None = None,
    progress: Progress = SILENT,
    *,
    cofirings: Callable[[Firings, np.ndarray], CoFirings] = CoFirings,
    memory: int = MEMORY,
    pool: Callable[[int], Executor] = ThreadPoolExecutor,
) -> CoOccurrence:
    """phi over all pairs i < j, streamed over tiles; see `CoOccurrence`.

    blocks: int [T], each token's block of documents, rising (`blocks.document_blocks`) -> `leave_one_out` is filled, which takes
    less than half as long again. tile: rows of latents counted at a time; None fits them to memory. cofirings: what counts;
    partial(DenseCoFirings, device="cuda") gives the same result on a GPU. memory: bytes for the tiles under way; with less of it
    fewer threads run, but always one. pool: so many threads -> where tiles are worked out; `metasae.ranks.sharing.RankPool` shares
    them among ranks, with the same bits. Raises ValueError when blocks do not rise or are not one per token.
    """
    total = firings.n_tokens
    if blocks is not None and len(blocks) != total:
        raise ValueError(f"{len(blocks)} blocks for {total} tokens")
    spans = [(0, total)] if blocks is None else block_spans(blocks)
    by_span = firing_counts(firings, spans)
    counts = by_span.sum(0)
    latents = np.flatnonzero((counts > 0) & (counts < total))
    # frequent latents first: their long lists are counted against all columns, the rest then against few
    latents = latents[np.argsort(-counts[latents], kind="stable")]
    fired, fired_in = counts[latents], by_span[:, latents]
    without = (
        []
        if blocks is None
        else [
            _Tokens(fired - here, total - (last - first)) for here, (first, last) in zip(fired_in, spans, strict=True)
        ]
    )
    tiles = _Tiles(cofirings(firings, latents), spans, _Tokens(fired, total), without)
    rows = max(1, min(TILE_ROWS, TILE_PAIRS // max(len(latents), 1), len(latents) // 8)) if tile is None else tile
    starts = range(0, len(latents), rows)
    sums = tiles.sums()
    # scipy's product and most of numpy let other threads run; the parts come back in order, so the sums are always the same
    with (
        progress.task("co-firing of all pairs", len(latents), "latents") as task,
        pool(tiles.threads(rows, memory)) as threads,
    ):
        for start, part in zip(starts, threads.map(lambda start: tiles.sums_of(start, rows), starts), strict=True):
            sums.merge(part)
            task.advance(min(rows, len(latents) - start))
    n_pairs = _pairs(len(latents))
    return CoOccurrence(
        **sums.all.means(n_pairs),
        **sums.over_max.means(sums.all.n_positive),
        quantiles={q: _histogram_quantile(sums.histogram.edges, sums.histogram.counts, q) for q in QUANTILES},
        floor=math.sqrt(2 / (math.pi * total)) if total else None,
        l0_realised=firings.l0,
        n_tokens=total,
        n_pairs=n_pairs,
        never=int(np.count_nonzero(counts == 0)),
        always=int(np.count_nonzero((counts == total) & (counts > 0))),
        cells=sums.cells.cells(),
        leave_one_out=_leave_one_out(without, sums.without),
        edges=sums.histogram.edges,
        histogram=sums.histogram.counts,
    )


class _Tokens:
    """Some of the tokens: the firings of each latent on them, int64 [l], how many they are, which latents make pairs there, bool [l]."""

    def __init__(self, counts: np.ndarray, total: int):
        self.counts, self.total = counts, total
        self.live = (counts > 0) & (counts < total)

    def phi(self, n11: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray | slice, np.ndarray | slice]:
        """N11 [r, l - start] -> phi of the live latents, zeros below the diagonal, and the places of its rows and columns."""
        rows, columns = slice(start, start + len(n11)), slice(start, None)
        if not self.live[columns].all():
            rows, columns = (start + np.flatnonzero(self.live[part]) for part in (rows, columns))
            n11 = n11[np.ix_(rows - start, columns - start)]
        return upper(phi_tile(n11, self.counts[rows], self.counts[columns], self.total)), rows, columns


class _Tiles:
    """Every tile of the upper triangle, cut into strips that fit the cache."""

    def __init__(self, cofirings: CoFirings, spans: list[Span], tokens: _Tokens, without: list[_Tokens]):
        self.cofirings, self.spans, self.tokens, self.without = cofirings, spans, tokens, without
        self.odds = np.sqrt(tokens.counts / (tokens.total - tokens.counts))
        self.bands = bands_of(tokens.counts / max(tokens.total, 1))
        # the smallest type that holds the count of a span: all spans of a tile are in memory at once
        self.dtype = np.min_scalar_type(max((last - first for first, last in spans), default=0))

    def threads(self, rows: int, memory: int) -> int:
        """As many as torch has and memory allows. Of each pair of a tile there are three int64, a chunk's int32 twice, and the spans."""
        tile = rows * len(self.tokens.counts) * (32 + len(self.spans) * self.dtype.itemsize)
        return max(1, min(torch.get_num_threads(), memory // max(tile, 1)))

    def sums(self) -> "_Sums":
        """Nothing added up yet."""
        latents = len(self.tokens.counts)
        return _Sums(
            PhiSums(latents, SHARES_ABOVE),
            [PhiSums(latents, BLOCK_SHARES_ABOVE) for _ in self.without],
            Histogram(phi_edges()),
            OverMax(OVER_MAX_ABOVE),
            CellSums(self.bands),
        )

    def sums_of(self, start: int, rows: int) -> "_Sums":
        """What the tile of these rows adds."""
        by_span = [self.cofirings.tile(start, rows, span).astype(self.dtype) for span in self.spans]
        n11 = sum(part.astype(np.int64) for part in by_span)
        sums = self.sums()
        strip = max(1, STRIP_PAIRS // n11.shape[1])
        for first in range(0, len(n11), strip):
            # the part of the strip from its own diagonal on
            place = slice(first, first + strip), slice(first, None)
            self._add(sums, n11[place], [part[place] for part in by_span], start + first)
        return sums

    def _add(self, sums: "_Sums", n11: np.ndarray, by_span: list[np.ndarray], start: int) -> None:
        phi, rows, columns = self.tokens.phi(n11, start)
        sums.all.add(phi, rows, columns)
        sums.histogram.add(phi)
        sums.over_max.add(phi, self.odds[start:])
        sums.cells.add(phi, start)
        if self.without:
            for part, tokens, found in zip(by_span, self.without, sums.without, strict=True):
                found.add(*tokens.phi(n11 - part.astype(np.int64), start))


@dataclass(frozen=True)
class _Sums:
    """Everything that is added up over pairs: `all` on all tokens, `without` each block in turn."""

    all: PhiSums
    without: list[PhiSums]
    histogram: Histogram
    over_max: OverMax
    cells: CellSums

    def merge(self, part: "_Sums") -> None:
        for mine, other in zip([self.all, *self.without], [part.all, *part.without], strict=True):
            mine.merge(other)
        self.histogram.merge(part.histogram)
        self.over_max.merge(part.over_max)
        self.cells.merge(part.cells)


def _leave_one_out(without: list[_Tokens], sums: list[PhiSums]) -> dict[str, tuple[float | None, ...]]:
    """Name of a statistic -> its value without each block in turn."""
    means = [found.means(_pairs(int(tokens.live.sum()))) for tokens, found in zip(without, sums, strict=True)]
    return {
        **{name: tuple(found[name] for found in means) for name in ("mean_abs_phi", "mean_pos_phi", "nearest_phi")},
        **{
            f"share_above_{limit:g}": tuple(found["shares_above"][limit] for found in means)
            for limit in BLOCK_SHARES_ABOVE
        },
    }


def _pairs(latents: int) -> int:
    return latents * (latents - 1) // 2


def _histogram_quantile(edges: np.ndarray, counts: np.ndarray, q: float) -> float | None:
    """The q-quantile of binned numbers, linear within a bin."""
    total = counts.sum()
    if not total:
        return None
    below = np.concatenate([[0], np.cumsum(counts)])
    place = q * total
    bin_ = min(int(np.searchsorted(below, place, side="right")) - 1, len(counts) - 1)
    while counts[bin_] == 0:
        bin_ -= 1
    share = min((place - below[bin_]) / counts[bin_], 1.0)
    return float(edges[bin_] + share * (edges[bin_ + 1] - edges[bin_]))
