"""How latents fire together: phi of every pair, from exact integer counts.

phi_ij = (N11 N - Ni Nj) / sqrt(Ni (N - Ni) Nj (N - Nj)), where N tokens, Ni firings of latent i, N11 tokens with both.
Counts are int64 and phi float64; nothing of size n x n is ever in memory. Source: arXiv 2604.03436 for mean |phi|.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from metasae.measures.firings import Firings
from metasae.progress import SILENT, Progress

TILE = 256
SHARES_ABOVE = (0.05, 0.1, 0.3)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def phi_edges(smallest: float = 1e-5, per_decade: int = 50) -> np.ndarray:
    """Bin edges of phi over [-1, 1]: even in log |phi| on both sides, one bin from -smallest to smallest around 0."""
    decades = -math.log10(smallest)
    side = np.logspace(-decades, 0, round(decades * per_decade) + 1)
    side[-1] = 1.0
    return np.concatenate([-side[::-1], side])


@dataclass(frozen=True)
class CoOccurrence:
    """Statistics over all pairs i < j of latents that fire on some tokens but not on all. None where no pair exists.

    mean_pos_phi, mean_neg_phi: means over the pairs with phi > 0 and with phi < 0; share_pos, share_neg: their shares.
    nearest_phi: mean over latents of the phi with its closest partner. floor: sqrt(2 / (pi N)), the mean |phi| of
    independent latents. quantiles: of phi, read off the histogram, so within a bin (4.7% of the value).
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
    floor: float | None
    l0_realised: float
    n_tokens: int
    n_pairs: int
    never: int
    always: int
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
            "floor": self.floor,
            "l0_realised": self.l0_realised,
            "n_tokens": self.n_tokens,
            "n_pairs": self.n_pairs,
            "excluded": {"never": self.never, "always": self.always},
            "histogram": {"edges": self.edges, "counts": self.histogram},
        }


class CoFirings:
    """Exact co-firing counts of the chosen latents, the upper triangle in tiles of rows; `tile` may be called from threads.

    latents: rising int [l]. In memory: the firings twice, and one tile for each call under way.
    """

    def __init__(self, firings: Firings, latents: np.ndarray):
        from scipy.sparse import csr_array

        ones = np.ones(len(firings.indices), np.int32)
        by_token = csr_array((ones, firings.indices, firings.indptr), shape=(firings.n_tokens, firings.n_latents))
        self._by_latent = by_token.T.tocsr()[latents]

    def tile(self, start: int, rows: int) -> np.ndarray:
        """N11 int64 [rows, l - start]: row r, column c count the tokens on which latents[start + r] and latents[start + c] fire."""
        right = self._by_latent[start : start + rows].T.tocsr()
        # [l - start, T] x [T, rows]: the narrow side on the right keeps the running sums in cache
        counts = (self._by_latent[start:] @ right).toarray().T
        return np.ascontiguousarray(counts, dtype=np.int64)


def phi_tile(n11: np.ndarray, row_counts: np.ndarray, column_counts: np.ndarray, n_tokens: int) -> np.ndarray:
    """phi float64 [r, c] from int64 counts N11 [r, c], Ni [r], Nj [c].

    The numerator is formed in int64, so the difference of two large products is exact (for N below 3e9).
    """
    numerator = n11 * n_tokens - row_counts[:, None] * column_counts[None, :]
    row_root = np.sqrt((row_counts * (n_tokens - row_counts)).astype(np.float64))
    column_root = np.sqrt((column_counts * (n_tokens - column_counts)).astype(np.float64))
    return np.clip(numerator / (row_root[:, None] * column_root[None, :]), -1.0, 1.0)


def pair_statistics(firings: Firings, tile: int = TILE, progress: Progress = SILENT) -> CoOccurrence:
    """phi over all pairs i < j, streamed over tiles; see `CoOccurrence`."""
    total, counts = firings.n_tokens, firings.counts()
    latents = np.flatnonzero((counts > 0) & (counts < total))
    kept = counts[latents]
    edges = phi_edges()
    sums = _Sums(len(latents), edges)
    cofirings = CoFirings(firings, latents)

    def part(start: int) -> _Part:
        n11 = cofirings.tile(start, tile)
        return _Part.of(start, phi_tile(n11, kept[start : start + len(n11)], kept[start:], total), edges)

    # scipy's product and most of numpy let other threads run; the parts come back in order, so the sums are always the same
    with progress.task("co-occurrence", len(latents), "latents") as task, ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for found in threads.map(part, range(0, len(latents), tile)):
            sums.add(found)
            task.advance(len(found.nearest_of_rows))
    n_pairs = len(latents) * (len(latents) - 1) // 2
    return CoOccurrence(
        **sums.means(n_pairs),
        quantiles={q: _histogram_quantile(edges, sums.histogram, q) for q in QUANTILES},
        floor=math.sqrt(2 / (math.pi * total)) if total else None,
        l0_realised=firings.l0,
        n_tokens=total,
        n_pairs=n_pairs,
        never=int(np.count_nonzero(counts == 0)),
        always=int(np.count_nonzero((counts == total) & (counts > 0))),
        edges=edges,
        histogram=sums.histogram,
    )


@dataclass(frozen=True)
class _Part:
    """What one tile gives to the statistics. nearest_of_rows [r], nearest_of_columns [l - start]: largest phi, -inf for none."""

    start: int
    nearest_of_rows: np.ndarray
    nearest_of_columns: np.ndarray
    positive: float
    negative: float
    n_positive: int
    n_negative: int
    n_above: dict[float, int]
    histogram: np.ndarray

    @classmethod
    def of(cls, start: int, phi: np.ndarray, edges: np.ndarray) -> "_Part":
        """phi [r, l - start]; columns 0 to r - 1 are the tile's own latents, of which only i < j counts."""
        upper = np.arange(phi.shape[1])[None, :] > np.arange(phi.shape[0])[:, None]
        only_pairs = np.where(upper, phi, -np.inf)
        values = phi[upper]
        positive, negative = values[values > 0], values[values < 0]
        bins = np.searchsorted(edges, values, side="right") - 1
        # the last edge, phi = 1, belongs to the last bin
        last = len(edges) - 2
        return cls(
            start=start,
            nearest_of_rows=only_pairs.max(axis=1),
            nearest_of_columns=only_pairs.max(axis=0),
            positive=float(positive.sum()),
            negative=float(negative.sum()),
            n_positive=len(positive),
            n_negative=len(negative),
            n_above={limit: int(np.count_nonzero(positive > limit)) for limit in SHARES_ABOVE},
            histogram=np.bincount(np.minimum(bins, last), minlength=last + 1),
        )


class _Sums:
    """Running totals of phi over the tiles of the upper triangle."""

    def __init__(self, n_latents: int, edges: np.ndarray):
        self.histogram = np.zeros(len(edges) - 1, np.int64)
        self.nearest = np.full(n_latents, -np.inf)
        self.positive: list[float] = []
        self.negative: list[float] = []
        self.n_positive = self.n_negative = 0
        self.n_above = dict.fromkeys(SHARES_ABOVE, 0)

    def add(self, part: _Part) -> None:
        rows = slice(part.start, part.start + len(part.nearest_of_rows))
        self.nearest[rows] = np.maximum(self.nearest[rows], part.nearest_of_rows)
        self.nearest[part.start :] = np.maximum(self.nearest[part.start :], part.nearest_of_columns)
        self.positive.append(part.positive)
        self.negative.append(part.negative)
        self.n_positive += part.n_positive
        self.n_negative += part.n_negative
        for limit, count in part.n_above.items():
            self.n_above[limit] += count
        self.histogram += part.histogram

    def means(self, n_pairs: int) -> dict:
        positive, negative = math.fsum(self.positive), math.fsum(self.negative)
        found = self.nearest[np.isfinite(self.nearest)]
        return {
            "mean_abs_phi": _ratio(positive - negative, n_pairs),
            "mean_pos_phi": _ratio(positive, self.n_positive),
            "mean_neg_phi": _ratio(negative, self.n_negative),
            "share_pos": _ratio(self.n_positive, n_pairs),
            "share_neg": _ratio(self.n_negative, n_pairs),
            "shares_above": {limit: _ratio(count, n_pairs) for limit, count in self.n_above.items()},
            "nearest_phi": float(found.mean()) if len(found) else None,
        }


def _ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


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
