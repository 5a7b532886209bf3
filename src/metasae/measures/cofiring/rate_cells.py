"""Mean |phi| by firing rates, so that two SAEs can be compared at equal rates.

phi_ij is about (lift - 1) sqrt(p_i p_j), so mean |phi| falls when rates spread, with no latent more atomic. Every pair is put
into a cell by the rates of its two latents, on a fixed grid of quarter decades. `matched_mean` then weighs the cells of two SAEs
alike, each cell by its pairs in both together. That is direct standardisation, as epidemiology does it for age.
"""

import math
from dataclasses import dataclass

import numpy as np

PER_DECADE = 4
DECADES = 8


def rate_edges() -> np.ndarray:
    """The fixed band edges, rates from 1e-8 to 1: float64 [33]."""
    return 10.0 ** (np.arange(-DECADES * PER_DECADE, 1) / PER_DECADE)


def bands_of(rates: np.ndarray) -> np.ndarray:
    """Band of each rate in (0, 1), counted from the rarest: int64. Rates below the first edge are in the first band."""
    edges = rate_edges()
    return np.clip(np.searchsorted(edges, rates, side="right") - 1, 0, len(edges) - 2)


@dataclass(frozen=True)
class RateCells:
    """pairs int64 [32, 32] and mean_abs_phi float64 [32, 32] (NaN without pairs) of cell (band of one latent, band of the other).

    Each pair stands once, with the more frequent latent's band first, so the upper triangle is empty.
    """

    pairs: np.ndarray
    mean_abs_phi: np.ndarray

    def as_dict(self) -> dict:
        """Only the cells with pairs, as lists of equal length: frequent, rare (lower edges of the rates), pairs, mean_abs_phi."""
        frequent, rare = np.nonzero(self.pairs)
        edges = rate_edges()
        return {
            "frequent": edges[frequent].tolist(),
            "rare": edges[rare].tolist(),
            "pairs": self.pairs[frequent, rare].tolist(),
            "mean_abs_phi": self.mean_abs_phi[frequent, rare].tolist(),
        }

    @classmethod
    def from_dict(cls, found: dict) -> "RateCells":
        """The inverse of `as_dict`."""
        pairs = np.zeros((DECADES * PER_DECADE, DECADES * PER_DECADE), np.int64)
        means = np.full(pairs.shape, np.nan)
        # half a band up, so that a rounded edge cannot fall into the band below
        middle = 10 ** (0.5 / PER_DECADE)
        frequent, rare = (bands_of(np.asarray(found[side], np.float64) * middle) for side in ("frequent", "rare"))
        pairs[frequent, rare], means[frequent, rare] = found["pairs"], found["mean_abs_phi"]
        return cls(pairs, means)


@dataclass(frozen=True)
class Matched:
    """Mean |phi| of two SAEs at equal rates. None where no cell is shared or b is 0.

    percent: 100 (a - b) / b. share_a, share_b: share of each SAE's pairs that lie in shared cells; the others have no counterpart.
    """

    a: float | None
    b: float | None
    percent: float | None
    n_cells: int
    share_a: float | None
    share_b: float | None

    def as_dict(self) -> dict:
        return dict(self.__dict__)


def matched_mean(a: RateCells, b: RateCells) -> Matched:
    """Both means over the cells that both SAEs have, each cell weighed by its pairs in a and b together."""
    shared = (a.pairs > 0) & (b.pairs > 0)
    weights = (a.pairs + b.pairs)[shared]
    total = int(weights.sum())

    def mean(cells: RateCells) -> float | None:
        return math.fsum(weights * cells.mean_abs_phi[shared]) / total if total else None

    def share(cells: RateCells) -> float | None:
        pairs = int(cells.pairs.sum())
        return int(cells.pairs[shared].sum()) / pairs if pairs else None

    mean_a, mean_b = mean(a), mean(b)
    percent = 100 * (mean_a - mean_b) / mean_b if mean_b else None
    return Matched(mean_a, mean_b, percent, int(shared.sum()), share(a), share(b))
