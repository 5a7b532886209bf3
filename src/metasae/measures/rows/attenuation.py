"""What noise in the rows does to measures of decomposability, and what is left after it is taken out.

Model: two seeds find the same directions g_i, each with noise of its own, w_i = sqrt(p_i) g_i + sqrt(1 - p_i) z_i, all of length 1; z_i
is random, independent between latents and seeds and so, in many dimensions, at right angles to everything else. Then

    cos(w_i, w'_i) = p_i                          with the match in the other seed: r_i is the share p_i of row i that is no noise
    cos(w_i, w_j)  = sqrt(p_i p_j) cos(g_i, g_j)
    VE(w)          = r VE(g) + (1 - r) VE(z)      r the mean of p_i, where how noisy a row is and how well it is explained are unrelated

The first line holds when both seeds are equally noisy. The second is the correction for attenuation of C. Spearman (American Journal of
Psychology 15, 1904). In the third, VE(z), what the critic explains of the noise, lies between 0 and VE_0, its score on random rows, so

    (VE(w) - (1 - r) VE_0) / r  <=  VE(g)  <=  VE(w) / r

when the critic finds the directions as well through the noise as without it; held-out VE falls a little more, as it does not quite.
So a penalty that only adds noise to the rows lowers VE and r together and leaves VE / r about where it was, and one that makes the directions
themselves less decomposable lowers VE / r. But r is low for another reason too: directions that only one seed found. Then VE / r is
too large (above 1 it plainly is), and r itself is largely the chance that `seeds.chance_matching` gives; so it is read beside both.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.measures.rows.pursuit import Pursuit
from metasae.measures.rows.seeds import Matching
from metasae.measures.rows.subsets import fit

# rows with less in common with their match are not noisy copies of one direction
LEAST_R = 0.5
# corrected cosines of the parts with a smaller eigenvalue are too close to dependent to be solved
LEAST_EIGENVALUE = 0.1
TILE = 1024


@dataclass(frozen=True)
class Attenuation:
    """ve: of the rows as they are. mean_r: over latents with a match. ve_over_r: ve / mean_r, as if the critic explained none of the noise.

    ve_over_r_low: (ve - (1 - mean_r) floor) / mean_r, as if it explained the noise like random rows. None where a number in the
    formula is None or mean_r is not positive. n_matched of n latents have a match.
    """

    ve: float | None
    floor: float | None
    mean_r: float | None
    ve_over_r: float | None
    ve_over_r_low: float | None
    n: int
    n_matched: int

    def as_dict(self) -> dict:
        return asdict(self)


def attenuation(ve: float | None, floor: float | None, matching: Matching) -> Attenuation:
    """ve: variance of an SAE's rows that a critic explains; floor: of random rows; matching: of these rows with another seed's."""
    r = matching.mean_r
    possible = ve is not None and r is not None and r > 0
    return Attenuation(
        ve=ve,
        floor=floor,
        mean_r=r,
        ve_over_r=ve / r if possible else None,
        ve_over_r_low=(ve - (1 - r) * floor) / r if possible and floor is not None else None,
        n=len(matching.partner),
        n_matched=int(matching.matched.sum()),
    )


@dataclass(frozen=True)
class CorrectedPursuit:
    """errors: float64 [t, K], e(k) of the directions without noise, on the parts found with it; NaN where it cannot be told.

    Some are below 0 where the true error is near 0, by chance or because a part was chosen for the noise; they stay as they are.
    """

    errors: np.ndarray

    def as_dict(self) -> dict:
        """Means over the latents that have a number, and how many have; None where none has."""
        out = {"n_targets": len(self.errors)}
        for k, e in enumerate(self.errors.T, start=1):
            known = e[np.isfinite(e)]
            out |= {f"e_{k}_corrected": float(known.mean()) if len(known) else None, f"e_{k}_corrected_n": len(known)}
        return out


@torch.no_grad()
def corrected_pursuit(rows: Tensor, found: Pursuit, r: np.ndarray) -> CorrectedPursuit:
    """e(k) again on the same parts, from cosines divided by sqrt(r_i r_j).

    rows: [n, d], those the pursuit was run on. r: float [n], each row's cosine with its match, NaN without one. A latent has a number
    where r is at least 0.5 for it and for all its parts, and the parts' corrected cosines leave no eigenvalue below 0.1.
    """
    rows, r = (
        nn.functional.normalize(rows.detach().cpu().double(), dim=1),
        torch.from_numpy(np.nan_to_num(np.asarray(r, np.float64))),
    )
    errors = torch.full(found.errors.shape, torch.nan, dtype=torch.float64)
    for start in range(0, len(found.targets), TILE):
        own = torch.from_numpy(found.targets[start : start + TILE])
        for k in range(errors.shape[1]):
            parts = torch.from_numpy(found.parts[start : start + TILE, k])
            errors[start : start + TILE, k] = _corrected(rows, r, own, parts)
    return CorrectedPursuit(errors.numpy())


def _corrected(rows: Tensor, r: Tensor, own: Tensor, parts: Tensor) -> Tensor:
    present = parts >= 0
    parts = parts.clamp_min(0)
    atoms, scale = rows[parts], torch.where(present, r[parts], 1.0).clamp_min(LEAST_R).sqrt()
    own_scale = r[own].clamp_min(LEAST_R).sqrt()
    gram = atoms @ atoms.transpose(1, 2) / (scale[:, :, None] * scale[:, None, :])
    # noise does not change a row's product with itself, and an absent part is at right angles to the others
    gram = torch.where(present[:, :, None] & present[:, None, :], gram, 0.0)
    gram.diagonal(dim1=1, dim2=2).fill_(1.0)
    dots = (atoms @ rows[own][..., None])[..., 0] / (scale * own_scale[:, None])
    c = fit(gram, dots, present)
    errors = 1 - (c * dots).sum(1)
    known = (
        (r[own] >= LEAST_R)
        & ((r[parts] >= LEAST_R) | ~present).all(1)
        & (torch.linalg.eigvalsh(gram)[:, 0] >= LEAST_EIGENVALUE)
    )
    return torch.where(known, errors, torch.nan)
