"""Mean |phi| by firing rates, so that two SAEs can be compared at equal rates.

phi_ij is about (lift - 1) sqrt(p_i p_j), so mean |phi| falls when rates spread, with no latent more atomic. Every pair
is put into a cell by the rates of its two latents, on a fixed grid of quarter decades. `matched_mean` then weighs the
cells of two SAEs alike, each cell by its pairs in both together. That is direct standardisation, as epidemiology does
it for age.
"""

import math

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


def matched_mean(a: dict[str, list], b: dict[str, list]) -> tuple[float | None, float | None]:
    """Mean |phi| of two SAEs over the cells that both have, each cell weighed by its pairs in a and b together.

    a, b: their `rate_cells`. None and None where they share no cell.
    """
    cells_a, cells_b = _by_bands(a), _by_bands(b)
    shared = cells_a.keys() & cells_b.keys()
    weights = {cell: cells_a[cell][0] + cells_b[cell][0] for cell in shared}
    total = sum(weights.values())
    if not total:
        return None, None
    of_a, of_b = (math.fsum(weights[cell] * cells[cell][1] for cell in shared) / total for cells in (cells_a, cells_b))
    return of_a, of_b


def _by_bands(cells: dict[str, list]) -> dict[tuple[int, int], tuple[int, float]]:
    """(band of the more frequent latent, band of the rarer) -> (pairs, mean |phi|)."""
    # half a band up, so that a rounded edge cannot fall into the band below
    middle = 10 ** (0.5 / PER_DECADE)
    frequent, rare = (bands_of(np.asarray(cells[side], np.float64) * middle).tolist() for side in ("frequent", "rare"))
    values = zip(cells["pairs"], cells["mean_abs_phi"], strict=True)
    return dict(zip(zip(frequent, rare, strict=True), values, strict=True))
