"""Exact co-firing counts: on how many tokens two latents fire together, within one SAE or across two over the same tokens.

N11 = A^T B, where A and B are 0/1 matrices [tokens, latents]. Sparse, a token costs L0^2 steps; dense it would cost n^2.
Tokens are taken chunk by chunk straight from the firings, which may be memory-maps, so memory holds one chunk and one tile
whatever the number of tokens. Sums over chunks are int64. `dense_counts.py` is the same for a GPU.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from metasae.measures.firing.firings import Firings

CHUNK = 2**22
Span = tuple[int, int]


class CoFirings:
    """Counts of chosen latents in tiles of rows; `tile` and `cross` may be called from several threads.

    latents: distinct int [l] in any order, the rows; frequent ones first is fastest. other, other_latents: the firings of a second
    SAE over the same tokens and the latents that are the columns of `cross`. chunk: firings taken at a time. Memory of a call:
    the int64 tile, as much again for one chunk's product, and about 30 bytes per firing of a chunk.
    Raises ValueError when latents are no such list or the second SAE saw another number of tokens.
    """

    def __init__(
        self,
        firings: Firings,
        latents: np.ndarray,
        other: Firings | None = None,
        other_latents: np.ndarray | None = None,
        chunk: int = CHUNK,
    ):
        check_pair(firings, latents, other, other_latents)
        self._firings, self._other, self._chunk = firings, other, chunk
        self._ranks = ranks_of(latents, firings.n_latents)
        self._n = len(latents)
        if other is not None:
            self._other_ranks = ranks_of(other_latents, other.n_latents)
            self._n_other = len(other_latents)

    def tile(self, start: int, rows: int, span: Span | None = None) -> np.ndarray:
        """N11 int64 [rows, l - start]: row r, column c count the tokens on which latents[start + r] and latents[start + c] fire.

        The last tile has fewer rows. span: only tokens first to last - 1.
        """
        rows = min(rows, self._n - start)
        counts = _Counts(rows, self._n - start)
        for first, last in chunks(self._firings, span, self._chunk):
            right = _entries(self._firings, first, last, self._ranks, start, self._n)
            counts.add(right.below(rows), right)
        return counts.total

    def cross(self, start: int, rows: int, span: Span | None = None) -> np.ndarray:
        """N11 int64 [rows, l_other]: tokens on which latents[start + r] and other_latents[c] of the second SAE fire."""
        if self._other is None:
            raise ValueError("counts across SAEs need the firings of a second SAE")
        rows = min(rows, self._n - start)
        counts = _Counts(rows, self._n_other)
        # chunks of the denser SAE keep the sparser one's below the same size
        wider = max(self._firings, self._other, key=lambda firings: len(firings.indices))
        for first, last in chunks(wider, span, self._chunk):
            left = _entries(self._firings, first, last, self._ranks, start, start + rows)
            counts.add(left, _entries(self._other, first, last, self._other_ranks, 0, self._n_other))
        return counts.total


def check_pair(firings: Firings, latents: np.ndarray, other: Firings | None, other_latents: np.ndarray | None) -> None:
    """Raises ValueError unless the arguments of `CoFirings` fit together."""
    for chosen, of in ((latents, firings), (other_latents, other)):
        if (
            of is not None
            and len(chosen)
            and not (np.min(chosen) >= 0 and np.max(chosen) < of.n_latents and len(np.unique(chosen)) == len(chosen))
        ):
            raise ValueError(f"latents must be distinct numbers from 0 to {of.n_latents - 1}")
    if other is not None and other.n_tokens != firings.n_tokens:
        raise ValueError(f"two SAEs over the same tokens are needed, not over {firings.n_tokens} and {other.n_tokens}")


def firing_counts(firings: Firings, spans: Sequence[Span] | None = None, chunk: int = CHUNK) -> np.ndarray:
    """Firings of every latent within each span of tokens, int64 [spans, n]; without spans over all tokens, int64 [n]."""
    wanted = [(0, firings.n_tokens)] if spans is None else spans
    counts = np.zeros((len(wanted), firings.n_latents), np.int64)
    for row, span in zip(counts, wanted, strict=True):
        for first, last in chunks(firings, span, chunk):
            row += np.bincount(
                firings.indices[firings.indptr[first] : firings.indptr[last]], minlength=firings.n_latents
            )
    return counts[0] if spans is None else counts


def block_spans(blocks: np.ndarray) -> list[Span]:
    """blocks: int [T], as `document_blocks` gives them -> the tokens of each block as (first, last + 1). Raises ValueError unless they rise."""
    if np.any(np.diff(blocks) < 0):
        raise ValueError("blocks must rise from token to token")
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
    return [(first, last) for first, last in pairwise(edges) if first < last]


class _Entries:
    """The 0/1 matrix [t, columns] of a chunk: column of every entry int32, rising within a token, and int32 offsets [t + 1]."""

    def __init__(self, columns: np.ndarray, offsets: np.ndarray, width: int):
        self.columns, self.offsets, self.width = columns, offsets, width

    def below(self, width: int) -> "_Entries":
        """Only the first columns."""
        return _Entries(*_keep(self.columns, self.offsets, self.columns < width), width)

    @property
    def csr(self):
        from scipy.sparse import csr_array

        ones = np.ones(len(self.columns), np.int32)
        return csr_array((ones, self.columns, self.offsets), shape=(len(self.offsets) - 1, self.width))


class _Counts:
    """N11 of a tile, summed over chunks."""

    def __init__(self, rows: int, columns: int):
        self.total = np.zeros((rows, columns), np.int64)
        self._product = np.empty((rows, columns), np.int32)

    def add(self, left: _Entries, right: _Entries) -> None:
        # latent by latent over its tokens: one row of running sums at a time, which fits the cache
        self.total += (left.csr.T.tocsr() @ right.csr).toarray(out=self._product)


def ranks_of(latents: np.ndarray, n_latents: int) -> np.ndarray:
    """Place of every latent among the chosen ones, -1 for the others: int32 [n]."""
    ranks = np.full(n_latents, -1, np.int32)
    ranks[latents] = np.arange(len(latents), dtype=np.int32)
    return ranks


def chunks(firings: Firings, span: Span | None, chunk: int) -> Iterator[Span]:
    """Stretches of tokens with at most `chunk` firings each, but at least one token."""
    first, end = (0, firings.n_tokens) if span is None else span
    while first < end:
        full = int(np.searchsorted(firings.indptr, firings.indptr[first] + chunk, side="right")) - 1
        last = min(max(full, first + 1), end)
        yield first, last
        first = last


def _entries(firings: Firings, first: int, last: int, ranks: np.ndarray, low: int, high: int) -> _Entries:
    """The firings of tokens first to last - 1 whose rank lies in [low, high), with rank - low as column."""
    offsets = np.asarray(firings.indptr[first : last + 1])
    places = ranks[firings.indices[offsets[0] : offsets[-1]]]
    places -= np.int32(low)
    # ranks below `low` and latents that were not chosen are negative, so as unsigned numbers they are large
    kept = places.view(np.uint32) < high - low
    return _Entries(*_keep(places, offsets - offsets[0], kept), high - low)


def _keep(columns: np.ndarray, offsets: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries where `kept` holds, and each token's offsets among them."""
    places = np.flatnonzero(kept)
    return columns[places], np.searchsorted(places, offsets).astype(np.int32)
