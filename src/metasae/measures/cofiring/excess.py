"""Excess |phi|: how far pairs stray from the fixed-marginals null, beyond what chance makes them stray.

phi_ij - phi0_ij = (N11 - E N11) N / sqrt(Ni (N - Ni) Nj (N - Nj)) with E N11 from `marginals.py`; its mean absolute value under
the null is E|N11 - E N11| in the same units. N11 is close to a binomial with the same mean and variance, whose mean absolute
deviation has a closed form (de Moivre): E|X - np| = 2 n p (1 - p) b(floor(np); n - 1, p).
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from metasae.measures.cofiring.counts import CoFirings, block_spans, firing_counts
from metasae.measures.cofiring.lift import lift_squares
from metasae.measures.cofiring.marginals import Marginals, fit
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.lanes import side_by_side

TILE = 256
CHUNK = 2048
SHARES_ABOVE = (0.05, 0.1, 0.3)
LEAVE_ONE_OUT = ("excess_abs_phi", "lift_variance")


@dataclass(frozen=True)
class Excess:
    """Over all pairs i < j of latents that fire on some tokens but not on all. None where no pair exists or the fit failed.

    excess_abs_phi: mean of |phi - phi0| minus null_abs_phi. null_abs_phi: the mean |phi - phi0| of the null itself, the floor
    that finite text sets. excess_pos, excess_neg: its parts from pairs above and below phi0. signed_phi: mean of phi - phi0.
    mean_phi0: mean of phi0, what the tokens' counts alone make of phi. shares_above: share of pairs with phi - phi0 above a limit.
    lift_variance: mean of (N11 / E N11 - 1)^2 with weights E N11, less what chance adds (`lift.py`).
    leave_one_out: excess_abs_phi and lift_variance without one block of documents, per block.
    fit_error, fit_converged: of the null, the worst of all fits.
    """

    excess_abs_phi: float | None
    excess_pos: float | None
    excess_neg: float | None
    signed_phi: float | None
    mean_phi0: float | None
    null_abs_phi: float | None
    shares_above: dict[float, float | None]
    lift_variance: float | None
    leave_one_out: dict[str, tuple[float | None, ...]]
    n_pairs: int
    n_tokens: int
    never: int
    always: int
    fit_error: float
    fit_converged: bool

    def as_dict(self) -> dict:
        return {
            "excess_abs_phi": self.excess_abs_phi,
            "excess_pos": self.excess_pos,
            "excess_neg": self.excess_neg,
            "signed_phi": self.signed_phi,
            "mean_phi0": self.mean_phi0,
            "null_abs_phi": self.null_abs_phi,
            **{f"share_above_{limit:g}": share for limit, share in self.shares_above.items()},
            "lift_variance": self.lift_variance,
            "leave_one_out": {name: list(values) for name, values in self.leave_one_out.items()},
            "n_pairs": self.n_pairs,
            "n_tokens": self.n_tokens,
            "excluded": {"never": self.never, "always": self.always},
            "fit": {"error": self.fit_error, "converged": self.fit_converged},
        }


def mean_abs_deviation(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E|X - mean| of a binomial with this mean and variance, n not necessarily whole; of a Poisson where the variance reaches the mean.

    mean, variance: float64, any one shape, at least 0. Equal to 2 variance b(floor(mean); mean / p - 1, p) with p = 1 - variance / mean.
    """
    from scipy.special import gammaln

    p = 1 - np.divide(variance, mean, out=np.ones_like(mean), where=mean > 0)
    # below this the binomial is a Poisson to 1e-5, and the difference of two large logarithms loses digits
    poisson = p < 1e-5
    p = np.where(poisson, 0.5, np.minimum(p, 1 - 1e-12))
    whole = np.floor(mean)
    n = np.maximum(mean / p - 1, whole)
    log_b = gammaln(n + 1) - gammaln(n - whole + 1) + whole * np.log(p) + (n - whole) * np.log1p(-p)
    if poisson.any():
        log_b[poisson] = whole[poisson] * np.log(np.maximum(mean[poisson], np.finfo(float).tiny)) - mean[poisson]
    factorials = gammaln(np.arange(1.0, whole.max(initial=0) + 2))
    return 2 * np.where(poisson, mean, variance) * np.exp(log_b - factorials[whole.astype(np.int64)])


def excess_phi(
    firings: Firings, blocks: np.ndarray | None = None, tile: int = TILE, progress: Progress = SILENT
) -> Excess:
    """The excess over the fixed-marginals null, streamed over tiles; see `Excess`.

    blocks: int [T], each token's block of documents, rising (`blocks.document_blocks`) -> `leave_one_out` is filled, which costs
    about as much again for every block.
    """
    counts, per_token = firings.counts(), np.diff(firings.indptr)
    latents = np.flatnonzero((counts > 0) & (counts < firings.n_tokens))
    spans = [] if blocks is None else block_spans(blocks)
    nulls = [_Null(fit(counts, per_token), latents)]
    for span, of_block in zip(spans, firing_counts(firings, spans), strict=True):
        nulls.append(_Null(fit(counts - of_block, np.delete(per_token, slice(*span))), latents))
    cofirings = CoFirings(firings, latents)

    def sums_of(start: int) -> list[list[_Sums]]:
        task.advance(min(tile, len(latents) - start))
        of_blocks = [cofirings.tile(start, tile, span) for span in spans]
        n11 = sum(of_blocks) if spans else cofirings.tile(start, tile)
        found = []
        for first in range(0, n11.shape[1], CHUNK):
            columns = slice(first, first + CHUNK)
            counted = [n11[:, columns]] + [n11[:, columns] - of_block[:, columns] for of_block in of_blocks]
            found.append([null.sums(each, start, start + first) for null, each in zip(nulls, counted, strict=True)])
        return found

    # the parts come back in order, so the sums are always the same
    with progress.task("co-firing by chance, rates fixed", len(latents), "latents") as task:
        found = list(chain.from_iterable(side_by_side(sums_of, range(0, len(latents), tile))))
    whole, *left_out = (
        _means(_total([sums[place] for sums in found]), null.marginals.converged) for place, null in enumerate(nulls)
    )
    return Excess(
        **whole,
        leave_one_out={name: tuple(means[name] for means in left_out) for name in LEAVE_ONE_OUT},
        n_pairs=len(latents) * (len(latents) - 1) // 2,
        n_tokens=firings.n_tokens,
        never=int(np.count_nonzero(counts == 0)),
        always=int(np.count_nonzero((counts == firings.n_tokens) & (counts > 0))),
        fit_error=max(null.marginals.error for null in nulls),
        fit_converged=all(null.marginals.converged for null in nulls),
    )


class _Sums(NamedTuple):
    """Over the pairs of a tile: how many, the sums of phi - phi0 where above and below 0, of its size under the null,
    of phi0, and of the parts of lift_variance."""

    pairs: float
    above: float
    below: float
    expected: float
    phi0: float
    lift_squares: float
    lift_weights: float
    n_above: tuple[int, ...]


class _Null:
    """A fitted null and what turns its co-firings into phi."""

    def __init__(self, marginals: Marginals, latents: np.ndarray):
        self.marginals, self._latents = marginals, latents
        self._fired = marginals.counts[latents]
        self._total = int(marginals.sizes.sum())
        self._root = np.sqrt(self._fired * (self._total - self._fired).astype(np.float64))

    def sums(self, n11: np.ndarray, start: int, first: int) -> _Sums:
        """n11: int64 [r, c] of the latents from places `start` (rows) and `first` (columns) on; pairs i < j in place count."""
        rows, columns = slice(start, start + n11.shape[0]), slice(first, first + n11.shape[1])
        mean, variance = self.marginals.pair_moments(self._latents[rows], self._latents[columns])
        row, column = self._fired[rows, None], self._fired[None, columns]
        root = self._root[rows, None] * self._root[None, columns]
        # without a block a latent may never fire: it has no phi there
        pairs = (np.arange(first, columns.stop)[None, :] > np.arange(start, rows.stop)[:, None]) & (root > 0)
        to_phi = self._total / root[pairs]
        # given both latents' counts, all four cells of the table stray alike; the smallest is the closest to a binomial
        smallest = np.minimum(np.minimum(mean, self._total - row - column + mean), np.minimum(row, column) - mean)
        expected = mean_abs_deviation(np.maximum(smallest[pairs], 0), variance[pairs])
        excess = to_phi * (n11 - mean)[pairs]
        above = excess[excess > 0]
        return _Sums(
            pairs=len(excess),
            above=float(above.sum()),
            below=float(excess.sum() - above.sum()),
            expected=float(to_phi @ expected),
            phi0=float(to_phi @ (mean - row * column / self._total)[pairs]),
            lift_squares=float(lift_squares(n11[pairs], mean[pairs], variance[pairs]).sum()),
            lift_weights=float(mean[pairs].sum()),
            n_above=tuple(int(np.count_nonzero(above > limit)) for limit in SHARES_ABOVE),
        )


def _total(sums: list[_Sums]) -> _Sums:
    """The sums over all tiles, correctly rounded."""
    *numbers, n_above = zip(*sums, strict=True) if sums else ((),) * len(_Sums._fields)
    return _Sums(*map(math.fsum, numbers), tuple(map(sum, zip(*n_above, strict=True))) or (0,) * len(SHARES_ABOVE))


def _means(sums: _Sums, converged: bool) -> dict:
    def mean(total: float) -> float | None:
        return total / sums.pairs if sums.pairs and converged else None

    return {
        "excess_abs_phi": mean(sums.above - sums.below - sums.expected),
        "excess_pos": mean(sums.above - sums.expected / 2),
        "excess_neg": mean(-sums.below - sums.expected / 2),
        "signed_phi": mean(sums.above + sums.below),
        "mean_phi0": mean(sums.phi0),
        "null_abs_phi": mean(sums.expected),
        "lift_variance": sums.lift_squares / sums.lift_weights if sums.lift_weights > 0 and converged else None,
        "shares_above": {limit: mean(n) for limit, n in zip(SHARES_ABOVE, sums.n_above, strict=True)},
    }
