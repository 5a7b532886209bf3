"""Finds the latents that two SAEs share, by a one-to-one matching of decoder rows, and the nearest row of the other
SAE.

The matching maximises the sum over pairs of cos(w_i, w'_p(i)), one partner each (the assignment problem, solved exactly
by shortest augmenting paths: R. Jonker and A. Volgenant, Computing 38, 1987, in the package lapx). r_i is the cosine of
w_i with its partner. Between SAEs that differ only in their seed, r_i says how well training finds latent i again. The
best of many partners has a positive cosine even where nothing is shared, and a larger one where the rows favour few
directions; `chance_matching` gives its size.

`attenuation` corrects a measure of decomposability for noise in the rows. Its model: two seeds find the same directions
g_i, each with noise of its own, w_i = sqrt(p_i) g_i + sqrt(1 - p_i) z_i, all of length 1; z_i is random, independent
between latents and seeds and so, in many dimensions, at right angles to everything else. Then

    cos(w_i, w'_i) = p_i
    cos(w_i, w_j)  = sqrt(p_i p_j) cos(g_i, g_j)
    VE(w)          = r VE(g) + (1 - r) VE(z)

where w'_i is the match in the other seed, r_i = p_i the share of row i that is no noise, and r the mean of p_i, if how
noisy a row is and how well it is explained are unrelated. The first line holds when both seeds are equally noisy. The
second is the correction for attenuation of C. Spearman (American Journal of Psychology 15, 1904). In the third, VE(z),
what the critic explains of the noise, lies between 0 and VE_0, its score on random rows, so

    (VE(w) - (1 - r) VE_0) / r  <=  VE(g)  <=  VE(w) / r

when the critic finds the directions as well through the noise as without it; held-out VE falls a little more, as it
does not quite. So a penalty that only adds noise to the rows lowers VE and r together and leaves VE / r about where it
was, and one that makes the directions themselves less decomposable lowers VE / r. But r is also low where only one seed
found a direction. Then VE / r is too large (above 1 it plainly is), and r is hardly above the chance value of
`chance_matching`. So VE / r is read beside both.
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
    """A matching of rows_a [a, d] with rows_b [b, d].

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


def attenuation(ve: float | None, floor: float | None, mean_r: float | None) -> tuple[float | None, float | None]:
    """(ve / r, (ve - (1 - r) floor) / r): what the critic explains of the directions, if it explains none of the noise,
    and if it explains the noise as it does random rows.

    ve: variance of an SAE's rows that a critic explains. floor: of random rows. mean_r: r, the mean cosine of its rows
    with their matches in another seed (`Matching.mean_r`). None where a number in the formula is None or r is not
    positive.
    """
    if ve is None or mean_r is None or mean_r <= 0:
        return None, None
    return ve / mean_r, None if floor is None else (ve - (1 - mean_r) * floor) / mean_r
