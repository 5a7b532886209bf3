"""Running totals of phi over pairs: what `cooccurrence.py` keeps of each strip of pairs before it is thrown away.

A strip is phi [r, c] of r latents with themselves and all later ones, so columns 0 to r - 1 are the rows' own latents. Only the
part above the diagonal counts: `upper` puts zeros below it, which add nothing to a sum.
"""

import math

import numpy as np

from metasae.measures.cofiring.rate_cells import DECADES, PER_DECADE, RateCells


def upper(phi: np.ndarray) -> np.ndarray:
    """phi [r, c] with zeros on the diagonal and below, in place."""
    rows = len(phi)
    phi[:, :rows][np.tri(rows, dtype=bool)] = 0.0
    return phi


class PhiSums:
    """Means and shares of phi, and each latent's largest; parts found by several threads are merged in a fixed order.

    latents: how many there are, so that `nearest` is float64 [latents], -inf for a latent without any pair. limits: of the shares.
    """

    def __init__(self, latents: int, limits: tuple[float, ...]):
        self.nearest = np.full(latents, -np.inf)
        self.positive: list[float] = []
        self.negative: list[float] = []
        self.n_positive = self.n_negative = 0
        self.n_above = dict.fromkeys(limits, 0)

    def add(self, phi: np.ndarray, rows, columns) -> None:
        """phi [r, c]: a strip with zeros below the diagonal. rows, columns: places of its latents, as slices or indices."""
        r = len(phi)
        own = np.where(np.tri(r, dtype=bool), -np.inf, phi[:, :r])
        later = phi[:, r:]
        of_columns = np.concatenate([own.max(0, initial=-np.inf), later.max(0, initial=-np.inf)])
        self.nearest[columns] = np.maximum(self.nearest[columns], of_columns)
        of_rows = np.maximum(own.max(1, initial=-np.inf), later.max(1, initial=-np.inf))
        self.nearest[rows] = np.maximum(self.nearest[rows], of_rows)
        self.positive.append(float(np.maximum(phi, 0).sum()))
        self.negative.append(float(np.minimum(phi, 0).sum()))
        self.n_positive += int(np.count_nonzero(phi > 0))
        self.n_negative += int(np.count_nonzero(phi < 0))
        for limit in self.n_above:
            self.n_above[limit] += int(np.count_nonzero(phi > limit))

    def merge(self, part: "PhiSums") -> None:
        np.maximum(self.nearest, part.nearest, out=self.nearest)
        self.positive += part.positive
        self.negative += part.negative
        self.n_positive += part.n_positive
        self.n_negative += part.n_negative
        for limit, count in part.n_above.items():
            self.n_above[limit] += count

    def means(self, n_pairs: int) -> dict:
        """The fields of `CoOccurrence` of these names, over n_pairs pairs."""
        positive, negative = math.fsum(self.positive), math.fsum(self.negative)
        found = self.nearest[np.isfinite(self.nearest)]
        return {
            "mean_abs_phi": ratio(positive - negative, n_pairs),
            "mean_pos_phi": ratio(positive, self.n_positive),
            "mean_neg_phi": ratio(negative, self.n_negative),
            "share_pos": ratio(self.n_positive, n_pairs),
            "share_neg": ratio(self.n_negative, n_pairs),
            "shares_above": {limit: ratio(count, n_pairs) for limit, count in self.n_above.items()},
            "nearest_phi": float(found.mean()) if len(found) else None,
        }


class Histogram:
    """Pairs by phi, int64 [len(edges) - 1]."""

    def __init__(self, edges: np.ndarray):
        self.edges, self.counts = edges, np.zeros(len(edges) - 1, np.int64)

    def add(self, phi: np.ndarray) -> None:
        """phi [r, c]: a strip with zeros below the diagonal, which do not count."""
        self.counts += np.bincount(phi_bins(phi.ravel(), self.edges), minlength=len(self.counts))
        self.counts[len(self.counts) // 2] -= len(phi) * (len(phi) + 1) // 2

    def merge(self, part: "Histogram") -> None:
        self.counts += part.counts


def phi_edges(smallest: float = 1e-5, per_decade: int = 50) -> np.ndarray:
    """Bin edges of phi over [-1, 1]: even in log |phi| on both sides, one bin from -smallest to smallest around 0."""
    decades = -math.log10(smallest)
    side = np.logspace(-decades, 0, round(decades * per_decade) + 1)
    side[-1] = 1.0
    return np.concatenate([-side[::-1], side])


def phi_bins(phi: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value in [-1, 1]: edges[bin] <= value < edges[bin + 1], 1 in the last; int64.

    A logarithm finds the bin up to rounding, a look at the edges corrects it: six times as fast as a search.
    """
    side, last = len(edges) // 2, len(edges) - 2
    smallest = edges[side]
    with np.errstate(divide="ignore"):
        depth = np.floor((np.log10(np.abs(phi)) - math.log10(smallest)) * ((side - 1) / -math.log10(smallest)))
    depth = np.clip(depth, -1, side - 2).astype(np.int64)
    bins = np.where(phi < 0, side - 2 - depth, side + depth)
    bins += (phi >= edges[bins + 1]) & (bins < last)
    bins -= phi < edges[bins]
    return bins


class OverMax:
    """phi / phi_max of the pairs with phi > 0, where phi_max is the largest phi that two latents of these rates can have.

    With Ni >= Nj it is sqrt(Nj (N - Ni) / (Ni (N - Nj))): all firings of j fall on tokens of i.
    """

    def __init__(self, limits: tuple[float, ...]):
        self.sums: list[float] = []
        self.n_above = dict.fromkeys(limits, 0)

    def add(self, phi: np.ndarray, odds: np.ndarray) -> None:
        """phi [r, c]: a strip with zeros below the diagonal. odds: sqrt(Ni / (N - Ni)) of its c latents, falling."""
        of_max = phi * odds[: len(phi), None]
        of_max /= odds
        np.maximum(of_max, 0, out=of_max)
        self.sums.append(float(of_max.sum()))
        for limit in self.n_above:
            self.n_above[limit] += int(np.count_nonzero(of_max > limit))

    def merge(self, part: "OverMax") -> None:
        self.sums += part.sums
        for limit, count in part.n_above.items():
            self.n_above[limit] += count

    def means(self, n_positive: int) -> dict:
        """The fields of `CoOccurrence` of these names."""
        return {
            "mean_over_max": ratio(math.fsum(self.sums), n_positive),
            "over_max_above": {limit: ratio(count, n_positive) for limit, count in self.n_above.items()},
        }


class CellSums:
    """Sum of |phi| in each cell of two rate bands. bands: of all latents in the order of the strips, falling."""

    def __init__(self, bands: np.ndarray):
        self.bands, self.sums = bands, np.zeros((DECADES * PER_DECADE, DECADES * PER_DECADE))

    def add(self, phi: np.ndarray, start: int) -> None:
        """phi [r, c]: a strip with zeros below the diagonal, its latents from place `start` on."""
        if not phi.size:
            return
        columns = self.bands[start:]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(columns) != 0]))
        by_band = np.add.reduceat(np.abs(phi), starts, axis=1)
        np.add.at(self.sums, (columns[: len(phi), None], columns[starts][None, :]), by_band)

    def merge(self, part: "CellSums") -> None:
        self.sums += part.sums

    def cells(self) -> RateCells:
        latents = np.bincount(self.bands, minlength=len(self.sums))
        pairs = np.tril(np.outer(latents, latents), -1) + np.diag(latents * (latents - 1) // 2)
        means = np.full(self.sums.shape, np.nan)
        np.divide(self.sums, pairs, out=means, where=pairs > 0)
        return RateCells(pairs, means)


def ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
