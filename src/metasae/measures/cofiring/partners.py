"""The closest partners of each latent: those with the largest phi, within one SAE or in a second one.

Two latents that never fire on the same token have phi < 0. So where enough pairs of a latent have phi >= 0, its best
are among the pairs that the sparse product A^T B has at all, and nothing of size n x n is ever filled in. The few
latents for which that is not enough are counted again against all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.cofiring.counts import CoFirings, check_same_tokens, counts_by_span, over_tiles
from metasae.measures.firing.firings import Firings, Span, chunks
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.lanes import side_by_side

# Pairs of a tile where co-firings are sparse, and where they are dense.
TILE_PAIRS, DENSE_PAIRS = 2**25, 2**24
STRIP_PAIRS = 2**18
CHUNK = 2**23
# A latent's pairs are cut into this many parts for each partner that is wanted.
PARTS = 4


@dataclass(frozen=True)
class Partners:
    """The closest partners of m latents, largest phi first, ties to the lower latent.

    latents: int32 [m, count], -1 where there is none. phi: float32 [m, count], NaN there; while partners are looked
    for, float64 and -inf there.
    """

    latents: np.ndarray
    phi: np.ndarray

    @classmethod
    def none(cls, m: int, count: int) -> "Partners":
        return cls(np.full((m, count), -1, np.int32), np.full((m, count), -np.inf))

    @classmethod
    def best(cls, m: int, row: np.ndarray, latents: np.ndarray, phi: np.ndarray, count: int) -> "Partners":
        """The closest partners of m latents among e entries. row: int [e], rising: the latent of each entry."""
        best = cls.none(m, count)
        kept = np.flatnonzero(phi >= _least(np.bincount(row, minlength=m), phi, count)[row])
        row, latents, phi = row[kept], latents[kept], phi[kept]
        order = np.lexsort((latents, -phi, row))
        place = np.arange(len(row)) - np.searchsorted(row[order], row[order])
        order, place = order[place < count], place[place < count]
        best.phi[row[order], place] = phi[order]
        best.latents[row[order], place] = latents[order]
        return best

    def put(self, rows: slice | np.ndarray, part: "Partners") -> None:
        self.phi[rows], self.latents[rows] = part.phi, part.latents


def top_partners(
    firings: Firings,
    count: int = 10,
    other: Firings | None = None,
    *,
    spans: Sequence[Span] | None = None,
    max_rate: float = 1.0,
    tile: int | None = None,
    chunk: int = CHUNK,
    progress: Progress = SILENT,
) -> Partners:
    """The `count` partners with the largest phi of every latent of `firings`, among its SAE's others or those of
    `other`.

    other: a second SAE over the same tokens. spans: only these tokens (first, last + 1). max_rate: latents that fire on
    a larger share of them have no partners and are none, on both sides; so do latents that fire on no token or on all.
    tile: latents looked at at a time; None fits them to memory. chunk: firings counted at a time. Raises ValueError
    when the tokens differ.
    """
    check_same_tokens(firings, other or firings)
    pairs = _Pairs(firings, other, [(0, firings.n_tokens)] if spans is None else spans, max_rate, chunk)
    return _closest(pairs, count, tile, progress)


def mutual_partners(
    one: Firings,
    other: Firings,
    count: int = 10,
    other_count: int | None = None,
    *,
    spans: Sequence[Span] | None = None,
    progress: Progress = SILENT,
) -> tuple[Partners, Partners]:
    """`top_partners` of each SAE in the other: `count` for each latent of the first, `other_count` (None: as many) for
    each of the second.

    spans: only these tokens. Where all pairs fit into memory, their co-firings are counted once for both. Raises
    ValueError when the tokens differ.
    """
    check_same_tokens(one, other)
    text, counted = [(0, one.n_tokens)] if spans is None else spans, None
    forward = _Pairs(one, other, text, 1.0, CHUNK)
    if one.n_latents * other.n_latents <= TILE_PAIRS:
        forward.count_all()
        counted = forward.counted.T.tocsr()
    backward = _Pairs(other, one, text, 1.0, CHUNK, counted)
    back = count if other_count is None else other_count
    return _closest(forward, count, None, progress), _closest(backward, back, None, progress)


def _closest(pairs: "_Pairs", count: int, tile: int | None, progress: Progress) -> Partners:
    n_latents = pairs.firings.n_latents
    rows = _tile_rows(n_latents, pairs.n_columns) if tile is None else tile
    best = Partners.none(n_latents, count)

    def look_at(start: int) -> None:
        best.put(slice(start, start + rows), pairs.met(start, rows, count))

    over_tiles(look_at, n_latents, rows, "closest partners of latents", progress)
    short = pairs.rows[best.latents[pairs.rows, -1] < 0]
    few = max(1, min(DENSE_PAIRS // max(len(pairs.columns), 1), 1024)) if tile is None else tile
    tiles = [short[start : start + few] for start in range(0, len(short), few)]
    side_by_side(lambda latents: best.put(latents, pairs.among_all(latents, count)), tiles)
    return Partners(best.latents, np.where(best.latents < 0, np.nan, best.phi).astype(np.float32))


def _tile_rows(n_latents: int, n_columns: int) -> int:
    """Latents looked at at a time: as many tiles as there are lanes, and no more pairs in all lanes together than four
    tiles have."""
    lanes = torch.get_num_threads()
    in_memory = TILE_PAIRS * 4 // max(lanes, 4) // max(n_columns, 1)
    return max(1, min(in_memory, -(-n_latents // lanes)))


class _Pairs:
    """Pairs of latents of an SAE and its own others, or those of a second SAE.

    rows, columns: the latents that take part, rising int64. counted: the co-firings of all pairs, sparse [rows,
    columns], where they are counted before they are asked for.
    """

    def __init__(
        self,
        firings: Firings,
        other: Firings | None,
        spans: Sequence[Span],
        max_rate: float,
        chunk: int,
        counted: csr_array | None = None,
    ):
        self.firings, self.other, self.spans, self.counted = firings, other, spans, counted
        self.total = sum(last - first for first, last in spans)
        self.counts, self.rows = _live(firings, spans, self.total, max_rate)
        of_columns = (self.counts, self.rows) if other is None else _live(other, spans, self.total, max_rate)
        self.column_counts, self.columns = of_columns
        self.n_columns = len(self.column_counts)
        both = self.counts, self.column_counts
        # more firings than there are tokens, so that no pair of a latent that takes no part has phi >= 0
        self.barred, self.column_barred = (np.where(n > 0, n, self.total + 1) for n in both)
        self.root, self.column_root = (np.sqrt((n * (self.total - n)).astype(np.float64)) for n in both)
        # chunks of the denser SAE keep the sparser one's below the same size
        denser = max(firings, other or firings, key=lambda side: len(side.indices))
        n_firings = sum(int(denser.indptr[last] - denser.indptr[first]) for first, last in spans)
        pieces = [[piece] for span in spans for piece in chunks(denser.indptr, span, chunk)]
        self.groups = [list(spans)] if 0 < n_firings <= chunk else pieces
        # all tiles share the matrices of a text that is one chunk; those of a longer one are made again for every tile
        self.sides = [self._both(self.groups[0])] if len(self.groups) == 1 and counted is None else None

    def met(self, start: int, rows: int, count: int) -> Partners:
        """The best of each latent from `start` on, among its pairs with phi >= 0."""
        n11 = self._n11(start, rows)
        best = Partners.none(n11.shape[0], count)
        # a strip of rows fits the cache
        for first, last in chunks(n11.indptr, (0, n11.shape[0]), STRIP_PAIRS):
            entries = slice(int(n11.indptr[first]), int(n11.indptr[last]))
            sizes, latent, both = np.diff(n11.indptr[first : last + 1]), n11.indices[entries], n11.data[entries]
            here = slice(start + first, start + last)
            above = both * np.int64(self.total)
            above -= np.repeat(self.barred[here], sizes) * self.column_barred[latent]
            kept = np.flatnonzero(above >= 0)
            row, latent = np.repeat(np.arange(last - first, dtype=np.int32), sizes)[kept], latent[kept]
            if self.other is None:
                others = latent != row + here.start
                kept, row, latent = kept[others], row[others], latent[others]
            # as phi_tile has it, to the bit
            phi = np.minimum(above[kept] / (self.root[here][row] * self.column_root[latent]), 1.0)
            best.put(slice(first, last), Partners.best(last - first, row, latent, phi, count))
        return best

    def among_all(self, latents: np.ndarray, count: int) -> Partners:
        """The best of these latents among all others."""
        counted = CoFirings(self.firings, latents, self.firings if self.other is None else self.other, self.columns)
        n11 = sum(counted.tile(0, len(latents), span) for span in self.spans)
        phi = phi_tile(n11, self.counts[latents], self.column_counts[self.columns], self.total)
        if self.other is None:
            phi[np.arange(len(latents)), np.searchsorted(self.columns, latents)] = -np.inf
        best, strip = Partners.none(len(latents), count), max(1, STRIP_PAIRS // max(len(self.columns), 1))
        able = min(count, len(self.columns))
        for first in range(0, len(latents) if able else 0, strip):
            here = phi[first : first + strip]
            least = np.partition(here, -able, axis=1)[:, -able]
            # ties with the last one are all candidates
            row, column = np.nonzero((here >= least[:, None]) & (here > -np.inf))
            part = Partners.best(len(here), row, self.columns[column], here[row, column], count)
            best.put(slice(first, first + strip), part)
        return best

    def _n11(self, start: int, rows: int) -> csr_array:
        """On how many tokens each latent from `start` on is on together with each other, sparse int32 [r, n].

        Latents that take no part have their rows and columns too.
        """
        if self.counted is not None:
            return self.counted[start : start + rows]
        rows = min(rows, self.firings.n_latents - start)
        counted = csr_array((rows, self.n_columns), dtype=np.int32)
        for left, right in self.sides or map(self._both, self.groups):
            product = left[:, start : start + rows].T @ right
            counted = product if not counted.nnz else counted + product
        return counted

    def count_all(self) -> None:
        """Counts the co-firings of all pairs, which have to fit into memory."""
        rows = _tile_rows(self.firings.n_latents, self.n_columns)
        tiles = side_by_side(lambda start: self._n11(start, rows), range(0, self.firings.n_latents, rows))
        self.counted = vstack(tiles, format="csr")

    def _both(self, spans: list[Span]) -> tuple:
        """Both SAEs' 0/1 matrices on these tokens: the first by latents, the second by tokens."""
        left = _matrix(self.firings, spans)
        return left.tocsc(), left if self.other is None else _matrix(self.other, spans)


def _live(firings: Firings, spans: Sequence[Span], total: int, max_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """On how many of the tokens each latent fires, int64 [n], 0 for those that take no part, and the latents that do,
    rising."""
    counts = counts_by_span(firings, spans).sum(0)
    live = (counts > 0) & (counts < total) & (counts <= max_rate * total)
    return np.where(live, counts, 0), np.flatnonzero(live)


def _matrix(firings: Firings, spans: Sequence[Span]) -> csr_array:
    """The 0/1 matrix [tokens of the spans, latents], sparse."""
    parts = []
    for first, last in spans:
        indptr = np.asarray(firings.indptr[first : last + 1])
        indices = firings.indices[indptr[0] : indptr[-1]]
        rows = (indptr - indptr[0]).astype(np.int32)
        part = csr_array((np.ones(len(indices), np.int32), indices, rows), shape=(last - first, firings.n_latents))
        parts.append(part)
    return vstack(parts, format="csr")


def _least(sizes: np.ndarray, phi: np.ndarray, count: int) -> np.ndarray:
    """A number that at least `count` of a row's entries reach, float64 [m]; -inf for short rows.

    sizes: int [m], of the rows in phi [e].

    A long row is cut into parts; the largest entries of `count` of them reach the smallest of these.
    """
    parts = PARTS * count
    long = np.flatnonzero(sizes >= parts)
    least = np.full(len(sizes), -np.inf)
    if len(long):
        begins = (np.cumsum(sizes) - sizes)[long]
        edges = begins[:, None] + sizes[long][:, None] * np.arange(parts + 1) // parts
        # what lies between the end of a long row and the next one is a part too, and left out
        largest = np.maximum.reduceat(np.append(phi, -np.inf), edges.ravel()).reshape(len(long), parts + 1)[:, :parts]
        least[long] = np.partition(largest, parts - count, axis=1)[:, parts - count]
    return least
