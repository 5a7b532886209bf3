"""How latents fire together: phi of every pair, from exact integer counts.

phi_ij = (N11 N - Ni Nj) / sqrt(Ni (N - Ni) Nj (N - Nj)), where N tokens, Ni firings of latent i, N11 tokens with both.
Counts are int64 and phi float64; nothing of size n x n is ever in memory. Source: arXiv 2604.03436 for mean |phi|.
"""

import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch

from metasae.measures.cofiring.counts import CoFirings, counts_by_span, excluded, live_latents, n_pairs_of
from metasae.measures.cofiring.phi_sums import AllSums, PhiSums, Places, bands_of, rate_cells, upper
from metasae.measures.firing.firings import Firings, Span, block_spans
from metasae.progress.progress import SILENT, Progress

SHARES_ABOVE = (0.05, 0.1, 0.3)
BLOCK_SHARES_ABOVE = (0.1,)
LEAVE_ONE_OUT = ("mean_abs_phi", "mean_pos_phi", "nearest_phi", "share_above_0.1")
OVER_MAX_ABOVE = (0.1, 0.3, 0.5)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
TILE_ROWS, TILE_PAIRS = 1024, 2**25
STRIP_PAIRS = 2**16
MEMORY = 4 * 2**30


def phi_tile(n11: np.ndarray, row_counts: np.ndarray, column_counts: np.ndarray, n_tokens: int) -> np.ndarray:
    """phi float64 [r, c] from int64 counts N11 [r, c], Ni [r], Nj [c] of latents that fire on some tokens but not on
    all.

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
    memory: int = MEMORY,
    pool: Callable[[int], Executor] = ThreadPoolExecutor,
) -> dict:
    """The `cooccurrence` part of measures.json: over all pairs i < j of latents that fire on some tokens but not on
    all.

    mean_pos_phi, mean_neg_phi: means over the pairs with phi > 0 and with phi < 0; share_pos, share_neg: their shares.
    share_above_X: share of the pairs with phi > X. nearest_phi: mean over latents of the phi with its closest partner.
    floor: sqrt(2 / (pi N)), the mean |phi| of independent latents. quantiles: of phi, read off the histogram, so within
    a bin (4.7% of the value). mean_over_max: mean of phi / phi_max over the pairs with phi > 0, phi_max being the
    largest phi that the two rates allow; over_max_above_X: share of those pairs with more. rate_cells: mean |phi| by
    firing rates, for `matched_mean`. leave_one_out: the numbers LEAVE_ONE_OUT without one block of documents, per
    block. histogram: edges [bins + 1] and counts of pairs int64 [bins]. A number over no pairs is None.

    blocks: int [T], each token's block of documents, rising (`document_blocks`) -> `leave_one_out` is filled, which
    takes less than half as long again. tile: rows of latents counted at a time; None fits them to memory. memory: bytes
    for the tiles under way; with less memory fewer threads run, but at least one. pool: number of threads -> the
    executor of the tiles; `metasae.ranks.ranks.RankPool` shares them among ranks, with the same bits.
    """
    total = firings.n_tokens
    spans = [(0, total)] if blocks is None else block_spans(blocks)
    tiles = _Tiles(firings, spans, leave_out=blocks is not None)
    n_latents = len(tiles.tokens.counts)
    rows = max(1, min(TILE_ROWS, TILE_PAIRS // max(n_latents, 1), n_latents // 8)) if tile is None else tile
    starts = range(0, n_latents, rows)
    sums = tiles.sums()
    # scipy's product and most of numpy let other threads run; the parts come back in order, so the sums are always the
    # same
    with (
        progress.task("co-firing of all pairs", n_latents, "latents") as task,
        pool(tiles.threads(rows, memory)) as threads,
    ):
        for start, part in zip(starts, threads.map(lambda start: tiles.sums_of(start, rows), starts), strict=True):
            for own, other in zip(sums, part, strict=True):
                own.merge(other)
            task.advance(min(rows, n_latents - start))
    whole, *without = sums
    n_pairs = n_pairs_of(n_latents)
    return {
        **whole.means(n_pairs),
        "quantiles": {f"{q:g}": whole.quantile(q) for q in QUANTILES},
        **whole.over_max_means(),
        "floor": math.sqrt(2 / (math.pi * total)) if total else None,
        "l0_realised": firings.l0,
        "n_tokens": total,
        "n_pairs": n_pairs,
        "excluded": excluded(tiles.counts, total),
        "rate_cells": rate_cells(tiles.bands, whole.cells),
        "leave_one_out": tiles.leave_one_out(without),
        "histogram": {"edges": whole.edges, "counts": whole.histogram},
    }


class _Tokens:
    """Some of the tokens: each latent's firings on them, int64 [l], their number, and which latents make pairs, bool
    [l]."""

    def __init__(self, counts: np.ndarray, total: int):
        self.counts, self.total = counts, total
        self.live = (counts > 0) & (counts < total)

    def phi(self, n11: np.ndarray, start: int) -> tuple[np.ndarray, Places, Places]:
        """N11 [r, l - start] -> phi of the live latents, zeros below the diagonal, and the places of its rows and
        columns."""
        rows, columns = slice(start, start + len(n11)), slice(start, None)
        if not self.live[columns].all():
            rows, columns = (start + np.flatnonzero(self.live[part]) for part in (rows, columns))
            n11 = n11[np.ix_(rows - start, columns - start)]
        return upper(phi_tile(n11, self.counts[rows], self.counts[columns], self.total)), rows, columns


class _Tiles:
    """Every tile of the upper triangle, cut into strips that fit the cache.

    counts: int64 [n], firings of all latents. tokens: all tokens; without: the tokens outside each span in turn, where
    asked for.
    """

    def __init__(self, firings: Firings, spans: list[Span], leave_out: bool):
        by_span = counts_by_span(firings, spans)
        self.spans, self.counts = spans, by_span.sum(0)
        latents = live_latents(self.counts, firings.n_tokens)
        # frequent latents first: their long lists are counted against all columns, the rest then against few
        latents = latents[np.argsort(-self.counts[latents], kind="stable")]
        self.cofirings = CoFirings(firings, latents)
        self.tokens = _Tokens(self.counts[latents], firings.n_tokens)
        sizes = [last - first for first, last in spans]
        without = zip(self.tokens.counts - by_span[:, latents], sizes, strict=True) if leave_out else ()
        self.without = [_Tokens(counts, firings.n_tokens - size) for counts, size in without]
        self.odds = np.sqrt(self.tokens.counts / (self.tokens.total - self.tokens.counts))
        self.bands = bands_of(self.tokens.counts / max(self.tokens.total, 1))
        # the smallest type that holds the count of a span: all spans of a tile are in memory at once
        self.dtype = np.min_scalar_type(max(sizes, default=0))

    def threads(self, rows: int, memory: int) -> int:
        """The number of threads: as many as torch has and memory allows. A pair of a tile takes three int64, a chunk's
        int32 twice, and the spans.
        """
        tile = rows * len(self.tokens.counts) * (32 + len(self.spans) * self.dtype.itemsize)
        return max(1, min(torch.get_num_threads(), memory // max(tile, 1)))

    def sums(self) -> list[PhiSums]:
        """Empty sums: those over all tokens, then those without each block."""
        whole = AllSums(self.odds, self.bands, SHARES_ABOVE, OVER_MAX_ABOVE)
        return [whole, *(PhiSums(len(self.odds), BLOCK_SHARES_ABOVE) for _ in self.without)]

    def sums_of(self, start: int, rows: int) -> list[PhiSums]:
        """The sums over the tile of these rows."""
        by_span = [self.cofirings.tile(start, rows, span).astype(self.dtype) for span in self.spans]
        n11 = sum(part.astype(np.int64) for part in by_span)
        sums = self.sums()
        whole, *without = sums
        strip = max(1, STRIP_PAIRS // n11.shape[1])
        for first in range(0, len(n11), strip):
            # the part of the strip from its own diagonal on
            place = slice(first, first + strip), slice(first, None)
            whole.add_strip(self.tokens.phi(n11[place], start + first)[0], start + first)
            # without blocks there is one span, and nothing is left out
            for part, tokens, left in zip(by_span, self.without, without, strict=False):
                left.add(*tokens.phi(n11[place] - part[place].astype(np.int64), start + first))
        return sums

    def leave_one_out(self, without: list[PhiSums]) -> dict[str, list[float | None]]:
        """Name of a statistic -> its value without each block in turn."""
        n_live = [int(tokens.live.sum()) for tokens in self.without]
        means = [part.means(n_pairs_of(n)) for part, n in zip(without, n_live, strict=True)]
        return {name: [values[name] for values in means] for name in LEAVE_ONE_OUT}
