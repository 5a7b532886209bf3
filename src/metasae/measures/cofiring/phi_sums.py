"""Running totals of phi over pairs, which `cooccurrence.py` keeps of each strip of pairs.

A strip is phi [r, c] of r latents with themselves and all later ones, so columns 0 to r - 1 are the rows' own latents.
Only the part above the diagonal counts: `upper` puts zeros below it, which add nothing to a sum.

Mean |phi| is also kept by firing rates, so that two SAEs can be compared at equal rates: phi_ij is about (lift - 1)
sqrt(p_i p_j), so mean |phi| falls when rates spread, although no latent is more atomic. Every pair is put into a cell
by the rates of its two latents, on a fixed grid of quarter decades. `matched_mean` then weighs the cells of two SAEs
alike, each cell by its pairs in both together. That is direct standardisation, as epidemiology does it for age.
"""

import math

import numpy as np

from metasae.measures.cofiring.counts import ratio
from metasae.measures.firing.firings import run_starts

PER_DECADE = 4
DECADES = 8


def rate_edges() -> np.ndarray:
    """The fixed band edges, rates from 1e-8 to 1: float64 [33]."""
    return 10.0 ** (np.arange(-DECADES * PER_DECADE, 1) / PER_DECADE)


def bands_of(rates: np.ndarray) -> np.ndarray:
    """Band of each rate in (0, 1), counted from the rarest: int64. Rates below the first edge are in the first band."""
    edges = rate_edges()
    return np.clip(np.searchsorted(edges, rates, side="right") - 1, 0, len(edges) - 2)


def rate_cells(bands: np.ndarray, sums: np.ndarray) -> dict[str, list]:
    """The `rate_cells` part of measures.json: a cell for each two bands that have pairs.

    bands: int [l], of every latent. sums: float64 [32, 32], of |phi| over the pairs of a cell, the more frequent
    latent's band first. Returns lists of equal length: frequent, rare (lower edges of the two rates), pairs,
    mean_abs_phi.
    """
    latents = np.bincount(bands, minlength=len(sums))
    pairs = np.tril(np.outer(latents, latents), -1) + np.diag(latents * (latents - 1) // 2)
    frequent, rare = np.nonzero(pairs)
    edges = rate_edges()
    return {
        "frequent": edges[frequent].tolist(),
        "rare": edges[rare].tolist(),
        "pairs": pairs[frequent, rare].tolist(),
        "mean_abs_phi": (sums[frequent, rare] / pairs[frequent, rare]).tolist(),
    }


def matched_mean(
    a: dict[str, list], b: dict[str, list], value: str = "mean_abs_phi", weight: str = "pairs"
) -> tuple[float | None, float | None]:
    """Mean of two SAEs over the cells that both have, each cell weighed by its weights in a and b together.

    a, b: their `rate_cells`. value, weight: which lists of the cells; mean |phi| by pairs, if not said otherwise. None
    and None where they share no cell.
    """
    cells_a, cells_b = (_by_bands(cells, weight, value) for cells in (a, b))
    shared = sorted(cells_a.keys() & cells_b.keys())
    weights = {cell: cells_a[cell][0] + cells_b[cell][0] for cell in shared}
    total = sum(weights.values())
    if not total:
        return None, None
    of_a, of_b = (math.fsum(weights[cell] * cells[cell][1] for cell in shared) / total for cells in (cells_a, cells_b))
    return of_a, of_b


def _by_bands(cells: dict[str, list], weight: str, value: str) -> dict[tuple[int, int], tuple[float, float]]:
    """(band of the more frequent latent, band of the rarer) -> (weight, value)."""
    # half a band up, so that a rounded edge cannot fall into the band below
    middle = 10 ** (0.5 / PER_DECADE)
    frequent, rare = (bands_of(np.asarray(cells[side], np.float64) * middle).tolist() for side in ("frequent", "rare"))
    values = zip(cells[weight], cells[value], strict=True)
    return dict(zip(zip(frequent, rare, strict=True), values, strict=True))


# Of latents.
Places = slice | np.ndarray


def upper(phi: np.ndarray) -> np.ndarray:
    """phi [r, c] with zeros on the diagonal and below, in place."""
    rows = len(phi)
    phi[:, :rows][np.tri(rows, dtype=bool)] = 0.0
    return phi


class PhiSums:
    """Means and shares of phi, and each latent's largest; parts of several threads are merged in a fixed order.

    latents: how many there are, so that `nearest` is float64 [latents], -inf for a latent without any pair. limits: of
    the shares. counts: int64 [2 + limits], pairs with phi above 0, below 0 and above each limit.
    """

    def __init__(self, latents: int, limits: tuple[float, ...]):
        self.nearest = np.full(latents, -np.inf)
        self.positive: list[float] = []
        self.negative: list[float] = []
        self.limits = limits
        self.counts = np.zeros(2 + len(limits), np.int64)

    def add(self, phi: np.ndarray, rows: Places, columns: Places) -> None:
        """phi [r, c]: a strip with zeros below the diagonal.

        rows, columns: places of its latents, as slices or indices.
        """
        r = len(phi)
        own = np.where(np.tri(r, dtype=bool), -np.inf, phi[:, :r])
        later = phi[:, r:]
        of_columns = np.concatenate([own.max(0, initial=-np.inf), later.max(0, initial=-np.inf)])
        self.nearest[columns] = np.maximum(self.nearest[columns], of_columns)
        of_rows = np.maximum(own.max(1, initial=-np.inf), later.max(1, initial=-np.inf))
        self.nearest[rows] = np.maximum(self.nearest[rows], of_rows)
        self.positive.append(float(np.maximum(phi, 0).sum()))
        self.negative.append(float(np.minimum(phi, 0).sum()))
        chosen = (phi > 0, phi < 0, *(phi > limit for limit in self.limits))
        self.counts += [np.count_nonzero(pairs) for pairs in chosen]

    def merge(self, part: "PhiSums") -> None:
        np.maximum(self.nearest, part.nearest, out=self.nearest)
        self.positive += part.positive
        self.negative += part.negative
        self.counts += part.counts

    def means(self, n_pairs: int) -> dict[str, float | None]:
        """Over n_pairs pairs; see `cooccurrence.pair_statistics` for the names."""
        positive, negative = math.fsum(self.positive), math.fsum(self.negative)
        n_positive, n_negative, *n_above = self.counts.tolist()
        nearest = self.nearest[np.isfinite(self.nearest)]
        return {
            "mean_abs_phi": ratio(positive - negative, n_pairs),
            "mean_pos_phi": ratio(positive, n_positive),
            "mean_neg_phi": ratio(negative, n_negative),
            "share_pos": ratio(n_positive, n_pairs),
            "share_neg": ratio(n_negative, n_pairs),
            **{f"share_above_{limit:g}": ratio(n, n_pairs) for limit, n in zip(self.limits, n_above, strict=True)},
            "nearest_phi": float(nearest.mean()) if len(nearest) else None,
        }


class AllSums(PhiSums):
    """The sums over all tokens, and with them the pairs by phi, phi over its maximum, and |phi| by firing rates.

    odds: sqrt(Ni / (N - Ni)) of all latents in the order of the strips, falling. bands: of their rates (`rate_cells`).
    limits, over_max_limits: of the shares. histogram: pairs by phi, int64 [len(edges) - 1]. over_max: sums of phi /
    phi_max over strips for the pairs with phi > 0, where phi_max is the largest phi that two latents of these rates can
    have. With Ni >= Nj it is sqrt(Nj (N - Ni) / (Ni (N - Nj))): all firings of j fall on tokens of i. cells: sums of
    |phi|, float64 [32, 32].
    """

    def __init__(
        self, odds: np.ndarray, bands: np.ndarray, limits: tuple[float, ...], over_max_limits: tuple[float, ...]
    ):
        super().__init__(len(odds), limits)
        self.odds, self.bands, self.over_max_limits = odds, bands, over_max_limits
        self.edges = phi_edges()
        self.histogram = np.zeros(len(self.edges) - 1, np.int64)
        self.over_max: list[float] = []
        self.n_over_max = np.zeros(len(over_max_limits), np.int64)
        self.cells = np.zeros((DECADES * PER_DECADE, DECADES * PER_DECADE))

    def add_strip(self, phi: np.ndarray, start: int) -> None:
        """phi [r, c]: a strip with zeros below the diagonal, its latents from place `start` on."""
        r = len(phi)
        self.add(phi, slice(start, start + r), slice(start, None))
        self.histogram += np.bincount(phi_bins(phi.ravel(), self.edges), minlength=len(self.histogram))
        # the zeros on the diagonal and below it do not count
        self.histogram[len(self.histogram) // 2] -= r * (r + 1) // 2

        odds = self.odds[start:]
        of_max = phi * odds[:r, None]
        of_max /= odds
        np.maximum(of_max, 0, out=of_max)
        self.over_max.append(float(of_max.sum()))
        self.n_over_max += [np.count_nonzero(of_max > limit) for limit in self.over_max_limits]

        bands = self.bands[start:]
        starts = run_starts(bands)
        by_band = np.add.reduceat(np.abs(phi), starts, axis=1)
        np.add.at(self.cells, (bands[:r, None], bands[starts][None, :]), by_band)

    def merge(self, part: "AllSums") -> None:
        super().merge(part)
        self.histogram += part.histogram
        self.over_max += part.over_max
        self.n_over_max += part.n_over_max
        self.cells += part.cells

    def over_max_means(self) -> dict[str, float | None]:
        """Over the pairs with phi > 0; see `cooccurrence.pair_statistics` for the names."""
        n_positive, counts = int(self.counts[0]), self.n_over_max.tolist()
        above = zip(self.over_max_limits, counts, strict=True)
        return {
            "mean_over_max": ratio(math.fsum(self.over_max), n_positive),
            **{f"over_max_above_{limit:g}": ratio(count, n_positive) for limit, count in above},
        }

    def quantile(self, q: float) -> float | None:
        """The q-quantile of phi, linear within a bin; None without pairs."""
        total = self.histogram.sum()
        if not total:
            return None
        below = np.concatenate([[0], np.cumsum(self.histogram)])
        place = q * total
        bin_ = min(int(np.searchsorted(below, place, side="right")) - 1, len(self.histogram) - 1)
        while self.histogram[bin_] == 0:
            bin_ -= 1
        share = min((place - below[bin_]) / self.histogram[bin_], 1.0)
        return float(self.edges[bin_] + share * (self.edges[bin_ + 1] - self.edges[bin_]))


def phi_edges(smallest: float = 1e-5, per_decade: int = 50) -> np.ndarray:
    """Bin edges of phi over [-1, 1]: even in log |phi| on both sides, one bin from -smallest to smallest around 0."""
    decades = -math.log10(smallest)
    side = np.logspace(-decades, 0, round(decades * per_decade) + 1)
    side[-1] = 1.0
    return np.concatenate([-side[::-1], side])


def phi_bins(phi: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value in [-1, 1]: edges[bin] <= value < edges[bin + 1], 1 in the last; int64.

    A logarithm gives the bin up to rounding, and a comparison with the edges corrects it. This is six times as fast as
    a search.
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
