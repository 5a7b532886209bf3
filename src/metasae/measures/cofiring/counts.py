"""Exact co-firing counts: on how many tokens two latents fire together, within one SAE or across two over the same
tokens.

N11 = A^T B, where A and B are 0/1 matrices [tokens, latents]. Sparse, a token costs L0^2 steps; dense it would cost
n^2. Tokens are taken chunk by chunk straight from the firings, which may be memory-maps, so memory holds one chunk and
one tile whatever the number of tokens. Sums over chunks are int64.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy.sparse import csr_array

from metasae.measures.firing.firings import Firings, Span, chunks, run_starts
from metasae.progress.progress import Progress
from metasae.ranks.lanes import side_by_side

Sums = TypeVar("Sums")

CHUNK = 2**22
# Latents of a tile of pairs with float64 numbers, and columns of it that are worked on at a time.
TILE, COLUMNS = 256, 2048


class CoFirings:
    """Counts of chosen latents in tiles of rows; `tile` may be called from several threads.

    latents: distinct int [l] in any order, the rows; frequent ones first is fastest. other, other_latents: the firings
    of a second SAE over the same tokens (or the first again) and the latents that are the columns; without them the
    columns are the rows' own latents, of which each tile leaves out those before its first row. chunk: firings taken at
    a time. Memory of a call: the int64 tile, as much again for one chunk's product, and about 30 bytes per firing of a
    chunk. Raises ValueError when the second SAE saw another number of tokens.
    """

    def __init__(
        self,
        firings: Firings,
        latents: np.ndarray,
        other: Firings | None = None,
        other_latents: np.ndarray | None = None,
        chunk: int = CHUNK,
    ):
        self._firings, self._other, self._chunk = firings, other or firings, chunk
        self._own = other is None
        columns = latents if self._own else other_latents
        check_same_tokens(firings, self._other)
        self._ranks, self._n = _ranks_of(latents, firings.n_latents), len(latents)
        self._column_ranks, self._n_columns = _ranks_of(columns, self._other.n_latents), len(columns)

    def tile(self, start: int, rows: int, span: Span | None = None) -> np.ndarray:
        """N11 int64 [rows, columns]: row r, column c count the tokens on which latents[start + r] and other_latents[c]
        fire; without a second SAE columns = l - start, and column c is latents[start + c].

        The last tile has fewer rows. span: only tokens first to last - 1.
        """
        rows, skipped = min(rows, self._n - start), start if self._own else 0
        total = np.zeros((rows, self._n_columns - skipped), np.int64)
        product = np.empty(total.shape, np.int32)
        # chunks of the denser SAE keep the sparser one's below the same size
        denser = max(self._firings, self._other, key=lambda firings: len(firings.indices))
        for first, last in chunks(denser.indptr, span or (0, denser.n_tokens), self._chunk):
            right = _matrix(self._other, first, last, self._column_ranks, skipped, self._n_columns)
            if self._own:
                left = right[:, :rows]
            else:
                left = _matrix(self._firings, first, last, self._ranks, start, start + rows)
            # latent by latent over its tokens: one row of running sums at a time, which fits the cache
            total += (left.T.tocsr() @ right).toarray(out=product)
        return total


def check_same_tokens(firings: Firings, other: Firings) -> None:
    """Raises ValueError when the two SAEs saw different numbers of tokens."""
    if other.n_tokens != firings.n_tokens:
        raise ValueError(f"the two SAEs must be of the same tokens, not of {firings.n_tokens} and {other.n_tokens}")


def live_latents(counts: np.ndarray, n_tokens: int) -> np.ndarray:
    """The latents that make pairs: those that fire on some tokens but not on all, rising int64.

    counts: int [n], firings.
    """
    return np.flatnonzero((counts > 0) & (counts < n_tokens))


def excluded(counts: np.ndarray, n_tokens: int) -> dict[str, int]:
    """How many latents make no pairs: those that never fire, and those that always do."""
    return {
        "never": int(np.count_nonzero(counts == 0)),
        "always": int(np.count_nonzero((counts == n_tokens) & (counts > 0))),
    }


def n_pairs_of(latents: int) -> int:
    """The number of pairs i < j of this many latents."""
    return latents * (latents - 1) // 2


def over_tiles(work: Callable[[int], Sums], latents: int, tile: int, name: str, progress: Progress) -> list[Sums]:
    """work(start) of every tile of rows, side by side and in order, so that sums over them are always the same to the
    bit.
    """

    def counted(start: int) -> Sums:
        sums = work(start)
        task.advance(min(tile, latents - start))
        return sums

    with progress.task(name, latents, "latents") as task:
        return side_by_side(counted, range(0, latents, tile))


def ratio(numerator: float, denominator: float) -> float | None:
    """None where the denominator is 0."""
    return numerator / denominator if denominator else None


def counts_by_span(firings: Firings, spans: Sequence[Span], chunk: int = CHUNK) -> np.ndarray:
    """Firings of every latent within each span of tokens, int64 [spans, n]."""
    counts = np.zeros((len(spans), firings.n_latents), np.int64)
    for row, span in zip(counts, spans, strict=True):
        for first, last in chunks(firings.indptr, span, chunk):
            entries = slice(firings.indptr[first], firings.indptr[last])
            row += np.bincount(firings.indices[entries], minlength=firings.n_latents)
    return counts


def counts_by_document(
    firings: Firings, latents: np.ndarray, span: Span, chunk: int = CHUNK
) -> tuple[csr_array, np.ndarray]:
    """(firings of each of `latents` in every document of a span, int32 [documents, l]; their tokens, int64
    [documents]).

    latents: distinct int [l]. span: whole documents, each in one stretch.
    """
    first, end = span
    starts = np.append(run_starts(firings.documents[first:end]) + first, end)
    ranks = _ranks_of(latents, firings.n_latents)
    total = csr_array((len(starts) - 1, len(latents)), dtype=np.int32)
    for begin, last in chunks(firings.indptr, span, chunk):
        # row d of the sums holds the tokens of document d in this chunk
        bounds = (np.clip(starts, begin, last) - begin).astype(np.int32)
        tokens = np.arange(last - begin, dtype=np.int32)
        sums = csr_array((np.ones(last - begin, np.int32), tokens, bounds), shape=(len(starts) - 1, last - begin))
        total = total + sums @ _matrix(firings, begin, last, ranks, 0, len(latents))
    return total, np.diff(starts)


def _ranks_of(latents: np.ndarray, n_latents: int) -> np.ndarray:
    """Place of every latent among the chosen ones, -1 for the others: int32 [n]."""
    ranks = np.full(n_latents, -1, np.int32)
    ranks[latents] = np.arange(len(latents), dtype=np.int32)
    return ranks


def _matrix(firings: Firings, first: int, last: int, ranks: np.ndarray, low: int, high: int) -> csr_array:
    """The firings of tokens first to last - 1 as a 0/1 matrix int32 [last - first, high - low]: the latents of rank low
    to high - 1."""
    offsets = np.asarray(firings.indptr[first : last + 1])
    columns = ranks[firings.indices[offsets[0] : offsets[-1]]]
    columns -= np.int32(low)
    # ranks below `low` and latents that were not chosen are negative, so as unsigned numbers they are large
    kept = np.flatnonzero(columns.view(np.uint32) < high - low)
    indptr = np.searchsorted(kept, offsets - offsets[0]).astype(np.int32)
    ones = np.ones(len(kept), np.int32)
    return csr_array((ones, columns[kept], indptr), shape=(last - first, high - low))
