"""Dependence of firing: how far pairs of latents stray from what their rates within each document give.

With N_id the firings of latent i in document d of T_d tokens, and N11 the tokens on which i and j both fire:

    E = sum_d N_id N_jd / T_d          V = sum_d N_id (T_d - N_id) N_jd (T_d - N_jd) / (T_d^2 (T_d - 1))
    dependence = sum_ij ((N11 - E)^2 - N11 V / E) / E  over  sum_ij E

E and V are mean and variance of N11 where every latent keeps its count in every document and draws the tokens of a
document at random, each latent by itself (N11 of a document is then hypergeometric). So co-firing that comes from
topics alone is in E, and only ties within a document count. With lift = N11 / E the number is the mean of (lift - 1)^2
with weights E. What chance adds to the squares is subtracted. Given the counts, its mean over chance is exactly 0 where
latents are independent within documents. N11 V / E has the mean V there, and it grows with N11 as chance does where
latents are tied, so a loss of firings at random hardly moves the number.

Why this null: rotating one side by whole documents breaks the pairing within documents, so topics would stay in the
number. Drawing tokens within documents needs no fit, no random numbers and no second pass over the text, and E and V
are sums over documents, so leaving out a block of documents is a subtraction.

Limits: a document's own firings make up its rates, so no lift is above T_d, and in short documents ties look weaker.
Neighbouring tokens that are alike (bursts) count as ties. A document of one token leaves nothing to draw and is left
out. Dilution by false or lost identities lowers the number, so it describes an SAE and says nothing about atomicity;
two SAEs are compared over the same documents, at equal rates and L0 (`rate_cells`, `phi_sums.matched_mean`).
"""

import numpy as np
from scipy.sparse import csc_array, csr_array

from metasae.measures.cofiring.counts import (
    TILE,
    CoFirings,
    counts_by_document,
    excluded,
    live_latents,
    n_pairs_of,
    over_tiles,
)
from metasae.measures.cofiring.phi_sums import bands_of, rate_edges
from metasae.measures.firing.firings import Firings, Span, block_spans, run_starts
from metasae.progress.progress import SILENT, Progress

# Above this share of non-zero counts a dense product is faster than a sparse one; it is used where the counts fit into
# this many bytes.
DENSE, DENSE_BYTES = 0.15, 2**28
# Of a tile, worked on at a time: three float64 arrays for every block.
COLUMNS = 512


def dependence(
    firings: Firings, blocks: np.ndarray | None = None, tile: int = TILE, progress: Progress = SILENT
) -> dict:
    """The dependence of firing over all pairs i < j of latents that fire on some tokens but not on all.

    value: as above, over the documents of two tokens and more; may fall below 0; None where no pair could meet (sum E
    is 0). rate_cells: for two SAEs to be compared at equal rates, lists of equal length over the pairs of firing-rate
    bands with E above 0: frequent, rare (lower edges of the two rates), expected (sum E), dependence. leave_one_out:
    value without each block of documents. n_pairs, n_tokens, n_documents: those that count.

    blocks: int [T], each token's block of documents, rising (`document_blocks`) -> `leave_one_out` is filled. tile:
    rows of latents counted at a time. Memory of a thread: 4 bytes a pair of a tile and block.
    """
    several = _in_documents_of_several(firings.documents)
    firings = _of_tokens(firings, several)
    counts, total = firings.counts(), firings.n_tokens
    latents = live_latents(counts, total)
    # frequent latents first: a cell of rates then has the more frequent latent in its row
    latents = latents[np.argsort(-counts[latents], kind="stable")]
    spans = [(0, total)] if blocks is None else block_spans(blocks[several])
    pairs = _Pairs(firings, counts[latents], latents, spans, leave_out=blocks is not None)
    parts = over_tiles(lambda start: pairs.squares(start, tile), len(latents), tile, "dependence of firing", progress)
    by_band, without = (sum(sums) for sums in zip(pairs.no_squares(), *parts, strict=True))
    expected, expected_without = pairs.expected(), pairs.expected_without()
    return {
        "value": _mean(float(by_band.sum()), float(expected.sum())),
        "rate_cells": _as_lists(by_band, expected),
        "leave_one_out": {"value": list(map(_mean, without.tolist(), expected_without))},
        "n_pairs": n_pairs_of(len(latents)),
        "n_tokens": total,
        "n_documents": len(run_starts(firings.documents)),
        "excluded": excluded(counts, total),
    }


def squares_less_expected(n11: np.ndarray, expected: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """((N11 - E)^2 - N11 V / E) / E - E, so that what is summed is 0 for the many pairs that never meet.

    All float64 of one shape; 0 where E is 0, as N11 is there.
    """
    divisor = np.where(expected > 0, expected, 1.0)
    return n11 * ((n11 - variance / divisor) / divisor - 2)


class _Pairs:
    """Every tile of pairs, with the sums over its pairs i < j.

    fired: int64 [l], firings of `latents`, falling. spans: the tokens of each block of documents. leave_out: whether
    sums without each block are wanted.
    """

    def __init__(self, firings: Firings, fired: np.ndarray, latents: np.ndarray, spans: list[Span], leave_out: bool):
        self._cofirings, self._spans = CoFirings(firings, latents), spans
        # a bound below every E of a pair that can meet: half a token's share of the text
        self._least = 0.5 / max(firings.n_tokens, 1)
        self._documents = [_Documents(firings, latents, span) for span in spans]
        self._band = bands_of(fired / max(firings.n_tokens, 1))
        self._bands = np.eye(len(rate_edges()) - 1)[self._band]
        left = [(fired - part.fired, firings.n_tokens - part.n_tokens) for part in self._documents if leave_out]
        # a latent that fires on all tokens outside a block makes no pairs there
        self._live = [((count > 0) & (count < total)).astype(np.float64) for count, total in left]

    def expected(self) -> np.ndarray:
        """Sum of E over the pairs of every two bands, the more frequent latent's first: float64 [bands, bands].

        Worked out from the documents' sums: all ordered pairs, less each latent with itself.
        """
        of_bands = [part.of_mean @ self._bands for part in self._documents]
        ordered = sum(part.T @ part for part in of_bands)
        itself = sum(part.with_itself for part in self._documents) @ self._bands
        expected = np.tril(ordered, -1) + np.diag((np.diag(ordered) - itself) / 2)
        return np.where(expected < self._least, 0, expected)

    def expected_without(self) -> list[float]:
        """Sum of E without each block."""
        sums = []
        for place, live in enumerate(self._live):
            others = [part for other, part in enumerate(self._documents) if other != place]
            ordered = sum(float(np.square(part.of_mean @ live).sum()) for part in others)
            expected = (ordered - sum(float(part.with_itself @ live) for part in others)) / 2
            sums.append(0.0 if expected < self._least else expected)
        return sums

    def no_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums of squares less E over no pairs: by bands [bands, bands], and without each block [blocks]."""
        return np.zeros((self._bands.shape[1], self._bands.shape[1])), np.zeros(len(self._live))

    def squares(self, start: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """What the tile of rows from `start` on adds to both parts of `no_squares`."""
        by_span = [self._cofirings.tile(start, tile, span).astype(np.int32) for span in self._spans]
        by_band, without = self.no_squares()
        rows = slice(start, start + len(by_span[0]))
        end = start + by_span[0].shape[1]
        for first in range(start, end, COLUMNS):
            columns = slice(first, min(first + COLUMNS, end))
            strips = [n11[:, first - start : columns.stop - start] for n11 in by_span]
            self._add_strip(strips, rows, columns, by_band, without)
        return by_band, without

    def _add_strip(
        self, by_span: list[np.ndarray], rows: slice, columns: slice, by_band: np.ndarray, without: np.ndarray
    ) -> None:
        """Adds the pairs i < j among `rows` and `columns`. by_span: their N11 in each block, int32 [r, c]."""
        pairs = np.flatnonzero(np.triu(sum(by_span), 1 + rows.start - columns.start))
        row, column = np.divmod(pairs, columns.stop - columns.start)
        row, column = row + rows.start, column + columns.start
        at_pairs = []
        for n11, documents in zip(by_span, self._documents, strict=True):
            moments = (n11, *documents.moments(rows, columns))
            at_pairs.append([part.ravel()[pairs] for part in moments])
        whole = [sum(parts) for parts in zip(*at_pairs, strict=True)]
        bands = self._band[row] * len(by_band) + self._band[column]
        by_band += np.bincount(bands, self._squares(*whole), by_band.size).reshape(by_band.shape)
        for place, live in enumerate(self._live):
            left = [of_all - of_block for of_all, of_block in zip(whole, at_pairs[place], strict=True)]
            squares = self._squares(*left)
            without[place] += squares.sum() if live.all() else squares @ (live[row] * live[column])

    def _squares(self, n11: np.ndarray, expected: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """`squares_less_expected` of pairs [pairs]."""
        # subtracting a block leaves a rounding error where E is 0
        return squares_less_expected(n11, np.where(expected < self._least, 0, expected), variance)


class _Documents:
    """The documents in a stretch of tokens, with their parts of E and V.

    n_tokens: of all of them. fired: int64 [l], firings of `latents` in them. of_mean: [documents, l], N_id / sqrt(T_d),
    whose products are E. with_itself: float64 [l], E of each latent with itself.
    """

    def __init__(self, firings: Firings, latents: np.ndarray, span: Span):
        counts, sizes = counts_by_document(firings, latents, span)
        self.n_tokens = int(sizes.sum())
        self.fired = np.asarray(counts.sum(axis=0)).astype(np.int64)
        entries = counts.shape[0] * counts.shape[1]
        dense = counts.nnz > DENSE * entries and 8 * entries <= DENSE_BYTES
        size = np.repeat(sizes, np.diff(counts.indptr)).astype(np.float64)
        fired = counts.data.astype(np.float64)
        self.of_mean = _matrix(counts, fired / np.sqrt(size), dense)
        self.with_itself = np.asarray((self.of_mean * self.of_mean).sum(axis=0)).ravel()
        self._of_variance = _matrix(counts, fired * (size - fired) / (size * np.sqrt(size - 1)), dense)

    def moments(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """E and V of these documents, float64 [r, c], for latents at the places `rows` and `columns`."""
        products = (factor[:, rows].T @ factor[:, columns] for factor in (self.of_mean, self._of_variance))
        mean, variance = (part if isinstance(part, np.ndarray) else part.toarray() for part in products)
        return mean, variance


def _matrix(counts: csr_array, values: np.ndarray, dense: bool) -> np.ndarray | csc_array:
    """`counts` with other values: dense, or by columns, which are then quickly cut out."""
    matrix = csr_array((values, counts.indices, counts.indptr), shape=counts.shape)
    return matrix.toarray() if dense else csc_array(matrix)


def _in_documents_of_several(documents: np.ndarray) -> np.ndarray:
    """Which tokens stand in a document of two tokens or more: bool [T]."""
    sizes = np.diff(np.append(run_starts(documents), len(documents)))
    return np.repeat(sizes > 1, sizes)


def _of_tokens(firings: Firings, chosen: np.ndarray) -> Firings:
    """The firings of these tokens only. chosen: bool [T]."""
    if chosen.all():
        return firings
    fired = np.diff(firings.indptr)
    entries = np.repeat(chosen, fired)
    return Firings(
        np.concatenate([[0], np.cumsum(fired[chosen])]).astype(np.int64),
        firings.indices[entries],
        firings.values[entries],
        firings.n_latents,
        firings.documents[chosen],
        firings.tokens[chosen],
        firings.positions[chosen],
    )


def _mean(squares: float, expected: float) -> float | None:
    """The dependence of the pairs that these are sums over: of `squares_less_expected`, and of E. None without E."""
    return 1 + squares / expected if expected else None


def _as_lists(squares: np.ndarray, expected: np.ndarray) -> dict[str, list]:
    """The `rate_cells` of `dependence`. squares (less E), expected: float64 [bands, bands]."""
    frequent, rare = np.nonzero(expected)
    edges, weights = rate_edges(), expected[frequent, rare]
    return {
        "frequent": edges[frequent].tolist(),
        "rare": edges[rare].tolist(),
        "expected": weights.tolist(),
        "dependence": (1 + squares[frequent, rare] / weights).tolist(),
    }
