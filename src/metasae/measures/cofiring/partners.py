"""The latents that fire together with a latent most closely: the largest phi of each, within one SAE or in a second one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.cofiring.counts import CoFirings, Span, firing_counts
from metasae.measures.firing.firings import Firings
from metasae.progress import SILENT, Progress

TILE_PAIRS = 2**24
STRIP_PAIRS = 2**20


@dataclass(frozen=True)
class Partners:
    """The closest partners of every latent, largest phi first, ties to the lower latent.

    latents: int32 [n, count], -1 where there is none. phi: float32 [n, count], NaN there. n11: int64 [n, count], 0 there.
    """

    latents: np.ndarray
    phi: np.ndarray
    n11: np.ndarray

    def as_dict(self) -> dict:
        return {"latents": self.latents, "phi": self.phi, "n11": self.n11}


def top_partners(
    firings: Firings,
    count: int = 10,
    other: Firings | None = None,
    *,
    spans: Sequence[Span] | None = None,
    max_rate: float = 1.0,
    tile: int | None = None,
    cofirings: Callable[..., CoFirings] = CoFirings,
    progress: Progress = SILENT,
) -> Partners:
    """The `count` partners with the largest phi of every latent of `firings`, among its own SAE's others or among those of `other`.

    other: a second SAE over the same tokens. spans: only these tokens (first, last + 1). max_rate: latents that fire on a larger
    share of them have no partners and are none, on both sides; so do latents that fire on no token or on all. tile: rows counted at a
    time; None fits them to memory. cofirings: as in `pair_statistics`. Raises ValueError when count is below 1 or the tokens differ.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    spans = [(0, firings.n_tokens)] if spans is None else spans
    total = sum(last - first for first, last in spans)
    latents, counts = _live(firings, spans, total, max_rate)
    columns, column_counts = (latents, counts) if other is None else _live(other, spans, total, max_rate)
    pairs = cofirings(firings, latents) if other is None else cofirings(firings, latents, other, columns)
    rows = max(1, min(TILE_PAIRS // max(len(columns), 1), 1024)) if tile is None else tile
    starts = range(0, len(latents), rows)

    def best_of(start: int) -> list[tuple[np.ndarray, _Best]]:
        """The best of the tile's rows, and within one SAE also the best of its columns, each with the places they belong to."""
        here = slice(start, start + rows)
        if other is not None:
            n11 = sum(pairs.cross(start, rows, span) for span in spans)
            return [(here, _Best.of(phi_tile(n11, counts[here], column_counts, total), n11, columns, count))]
        n11 = sum(pairs.tile(start, rows, span) for span in spans)
        phi = phi_tile(n11, counts[here], counts[start:], total)
        # a pair stands once: what is on the diagonal or below it never wins
        phi[:, : len(phi)][np.tri(len(phi), dtype=bool)] = -np.inf
        return [
            (here, _Best.of(phi, n11, latents[start:], count)),
            (slice(start, None), _Best.of(phi.T, n11.T, latents[here], count)),
        ]

    best = _Best.none(len(latents), count)
    with progress.task("partners", len(latents), "latents") as task, ThreadPoolExecutor(min(torch.get_num_threads(), 4)) as threads:
        for start, parts in zip(starts, threads.map(best_of, starts), strict=True):
            for where, found in parts:
                best.merge(where, found)
            task.advance(min(rows, len(latents) - start))
    found = _Best.none(firings.n_latents, count)
    for name in ("phi", "latents", "n11"):
        getattr(found, name)[latents] = getattr(best, name)
    return Partners(found.latents, np.where(found.latents < 0, np.nan, found.phi).astype(np.float32), found.n11)


def _live(firings: Firings, spans: Sequence[Span], total: int, max_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The latents that take part, rising int64 [l], and on how many of the tokens they fire."""
    counts = firing_counts(firings, spans).sum(0)
    latents = np.flatnonzero((counts > 0) & (counts < total) & (counts <= max_rate * total))
    return latents, counts[latents]


@dataclass(frozen=True)
class _Best:
    """phi float64, latents int32 and n11 int64, all [m, count]: the best of m latents in order; -inf, -1 and 0 where there is none."""

    phi: np.ndarray
    latents: np.ndarray
    n11: np.ndarray

    @classmethod
    def none(cls, m: int, count: int) -> "_Best":
        return cls(np.full((m, count), -np.inf), np.full((m, count), -1, np.int32), np.zeros((m, count), np.int64))

    @classmethod
    def of(cls, phi: np.ndarray, n11: np.ndarray, latents: np.ndarray, count: int) -> "_Best":
        """phi, n11 [m, c], -inf for what is no pair; latents [c] or [m, c]: the names of the columns."""
        found = cls.none(len(phi), count)
        latents = np.broadcast_to(latents, phi.shape)
        strip = max(1, STRIP_PAIRS // max(phi.shape[1], 1))
        for first in range(0, len(phi), strip):
            rows = slice(first, first + strip)
            found._choose(rows, phi[rows], n11[rows], latents[rows])
        return found

    def merge(self, rows: slice, part: "_Best") -> None:
        """The best of what is here and what a part found for these rows."""
        both = [np.concatenate([getattr(self, name)[rows], getattr(part, name)], axis=1) for name in ("phi", "n11", "latents")]
        self._choose(rows, *both)

    def _choose(self, rows: slice, phi: np.ndarray, n11: np.ndarray, latents: np.ndarray) -> None:
        count = self.phi.shape[1]
        able = min(count, phi.shape[1])
        if not able:
            return
        least = np.partition(phi, phi.shape[1] - able, axis=1)[:, phi.shape[1] - able]
        # ties with the last one are all candidates; the lower latents stay
        row, column = np.nonzero((phi >= least[:, None]) & (phi > -np.inf))
        order = np.lexsort((latents[row, column], -phi[row, column], row))
        row, column = row[order], column[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        row, column, place = row[place < count], column[place < count], place[place < count]
        for mine, theirs in ((self.phi, phi), (self.latents, latents), (self.n11, n11)):
            mine[rows][row, place] = theirs[row, column]
