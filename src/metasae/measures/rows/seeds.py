"""Which latents two SAEs share: a one-to-one matching of decoder rows, and the nearest row of the other SAE.

The matching maximises the sum over pairs of cos(w_i, w'_p(i)), one partner each (the assignment problem, solved exactly
by shortest augmenting paths: R. Jonker and A. Volgenant, Computing 38, 1987, in the package lapx). r_i is the cosine of
w_i with its partner. Between SAEs that differ only in their seed, r_i says how far latent i would come out again. The
best of many partners has a positive cosine even where nothing is shared, the more so the fewer directions the rows
favour: `chance_matching` says how large.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.errors import UserError
from metasae.measures.rows.critic import gaussian_rows

TILE = 1024
FOUND_AGAIN = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Matching:
    """Of rows_a [a, d] with rows_b [b, d].

    partner: int64 [a], the row of b matched with each row of a, -1 for the a - b rows left over where a is larger.
    cosine: float64 [a], with the partner, NaN without one. nearest_cosine: float64 [a], the largest with any row of b,
    which many rows of a may share. n_b: rows of b.
    """

    partner: np.ndarray
    cosine: np.ndarray
    nearest_cosine: np.ndarray
    n_b: int

    @property
    def matched(self) -> np.ndarray:
        """bool [a]: rows of a that have a partner."""
        return self.partner >= 0

    @property
    def mean_r(self) -> float | None:
        """Mean cosine with the partner, over the rows that have one."""
        return float(self.cosine[self.matched].mean()) if self.matched.any() else None

    def found_again(self, limit: float) -> float | None:
        """Share of the rows of a, unmatched ones included, whose partner's cosine is above `limit`."""
        return float((np.nan_to_num(self.cosine, nan=-1.0) > limit).mean()) if len(self.cosine) else None

    def as_dict(self) -> dict:
        """Numbers for a JSON file; None where no pair exists."""
        near = self.nearest_cosine
        return {
            "n_a": len(self.partner),
            "n_b": self.n_b,
            "unmatched": int((~self.matched).sum()),
            "mean_r": self.mean_r,
            **{f"found_again_{limit:g}": self.found_again(limit) for limit in FOUND_AGAIN},
            "nearest_mean": float(near.mean()) if len(near) else None,
            **{
                f"nearest_above_{limit:g}": float((near > limit).mean()) if len(near) else None for limit in FOUND_AGAIN
            },
        }


@torch.no_grad()
def match(rows_a: Tensor, rows_b: Tensor) -> Matching:
    """rows_a [a, d], rows_b [b, d] of any length above 0 -> the best one-to-one matching and the nearest rows.

    All a x b cosines are in memory at once, in float32, with the solver's copy of them (3.6 GB for 20,480 rows on each
    side).
    The solver works in float32: the sum of cosines is the largest to within its rounding. Raises UserError when the
    widths differ or a row is zero or not finite.
    """
    from lap import lapjvs

    a, b = _unit(rows_a, "first"), _unit(rows_b, "second")
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"rows of width {a.shape[1]} cannot be matched with rows of width {b.shape[1]}; "
            "compare SAEs of the same hook point"
        )
    # filled with the negative cosines, as the solver minimises
    costs = torch.empty(len(a), len(b))
    nearest_cosine = torch.empty(len(a))
    for start in range(0, len(a), TILE):
        tile = torch.mm(a[start : start + TILE], b.t(), out=costs[start : start + TILE])
        nearest_cosine[start : start + TILE] = tile.amax(dim=1)
        tile.neg_()
    partner, _ = lapjvs(costs.numpy(), return_cost=False, jvx_like=False)
    partner = torch.from_numpy(partner.astype(np.int64))
    return Matching(partner.numpy(), _cosines(a, b, partner), nearest_cosine.double().clamp(-1, 1).numpy(), len(b))


def chance_matching(rows_a: Tensor, rows_b: Tensor, seed: int) -> Matching:
    """`match` of Gaussian rows with the mean and covariance of rows_a [a, d] and of rows_b [b, d], which share no
    direction otherwise."""
    return match(gaussian_rows(_unit(rows_a, "first"), seed), gaussian_rows(_unit(rows_b, "second"), seed + 1))


def _unit(rows: Tensor, side: str) -> Tensor:
    rows = rows.detach().float().cpu()
    lengths = rows.norm(dim=1)
    bad = ~(torch.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise UserError(
            f"row {int(bad.nonzero()[0])} of the {side} SAE's decoder is zero or not finite; leave such latents out"
        )
    return nn.functional.normalize(rows, dim=1)


def _cosines(a: Tensor, b: Tensor, partner: Tensor) -> np.ndarray:
    """Row by row in float64; NaN where partner is -1."""
    cosines = torch.full([len(a)], torch.nan, dtype=torch.float64)
    for start in range(0, len(a), TILE):
        has = start + (partner[start : start + TILE] >= 0).nonzero()[:, 0]
        cosines[has] = nn.functional.cosine_similarity(a[has].double(), b[partner[has]].double(), dim=1)
    return cosines.numpy()
