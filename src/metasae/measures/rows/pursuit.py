"""How well a few other decoder rows rebuild a latent's own row, and which they are: leave-one-out non-negative pursuit.

    e_i(k) = min over S with i not in S and |S| <= k, and over c >= 0, of ||w_i - sum_{j in S} c_j w_j||^2

for rows of unit length, so e = 1 means that no other row helps and e = 0 that row i is a mixture of k others.
Coefficients on a given S are exact; the search for S is over all rows for k = 1, and for k = 2 with a proof for nearly
every latent. From k = 3 on it is a beam search, at least as good as orthogonal matching pursuit over all rows (OMP; Y.
Pati, R. Rezaiifar and P. Krishnaprasad, Asilomar 1993), whose result is kept beside it: e is then an upper bound.
`proved` says of which numbers the minimum is certain.

How: the candidates of a latent are the rows with the largest cosines, and those that best fit what is left at each step
of OMP. All pairs of candidates are tried (`subsets.py`), and pairs with a row from outside are excluded by a bound. Let
x >= y be the cosines of the target with a and b, and g = a.b. The pair explains x^2 + (y - x g)^2 / (1 - g^2), which
falls as g rises while both coefficients are positive. With y <= t, the largest cosine outside the candidates, and g >=
-m_a, the lowest cosine of a with any row, that is at most

    x^2 + (min(t, x) + x m_a)^2 / (1 - m_a^2).

Where this could beat the best pair known, a is tried with every b. The 16 most promising a of a target are; where more
are open, e(2) is not proved.

Shapes: n rows of width d, t targets, p candidates, K the most parts. Cosines with all rows are float32 in tiles, the
rest is float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.measures.rows.subsets import best_sets, fit
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.lanes import side_by_side

TILE = 128
# targets searched at once, so few that the inner products of their candidates stay in cache
SEARCH_TILE = 16
# up to this many pairs are all kept
ALL_PAIRS = 1000
# candidates that each look over all rows adds
SWEPT = 16
# the most first parts of a latent that are tried with every partner, where the bound does not exclude them
OPEN = 16
# the error of float32 cosines is about this
SLACK = 1e-6
SHARES_BELOW = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Pursuit:
    """The pursuit of t target rows among n rows, for k = 1 ... K parts.

    targets: int64 [t], rows. errors: float64 [t, K], e(k). parts: int64 [t, K, K], parts[i, k - 1] are the rows that
    rebuild target i with at most k, largest coefficient first, -1 where fewer are used. coefficients: float64 [t, K,
    K], above 0 where there is a part.
    proved: bool [t, K], e(k) is certainly the minimum (to 1e-6). omp_errors: float64 [t, K], of plain non-negative OMP.
    n_rows: n.
    """

    targets: np.ndarray
    errors: np.ndarray
    parts: np.ndarray
    coefficients: np.ndarray
    proved: np.ndarray
    omp_errors: np.ndarray
    n_rows: int

    def as_dict(self) -> dict:
        """Means over targets, for a JSON file."""
        means = {"n_rows": self.n_rows, "n_targets": len(self.targets)}
        for k in range(self.errors.shape[1]):
            e = self.errors[:, k]
            means |= {
                f"e_{k + 1}": float(e.mean()),
                f"e_{k + 1}_median": float(np.median(e)),
                f"e_{k + 1}_omp": float(self.omp_errors[:, k].mean()),
            }
            means |= {f"share_e_{k + 1}_below_{limit:g}": float((e < limit).mean()) for limit in SHARES_BELOW}
            means[f"e_{k + 1}_proved"] = float(self.proved[:, k].mean())
        return means


@torch.no_grad()
def pursue(
    rows: Tensor,
    most: int = 4,
    targets: np.ndarray | None = None,
    pool: int = 96,
    beam: int = 64,
    progress: Progress = SILENT,
) -> Pursuit:
    """Rows [n, d], not zero, n >= 2 -> e(1) ... e(most) of the target rows (all by default) and their parts.

    pool: candidates by cosine; beam: sets kept of each size from 2 on. With a pool of n - 1 and a beam of all sets
    every number is the proved minimum; for up to 45 rows the beam is at least as wide as three parts need for that.
    Cost: about K + 1 products of all rows with the targets, and milliseconds per target for the sets.
    """
    rows = rows.detach().cpu().double()
    rows = nn.functional.normalize(rows, dim=1)
    among = _Rows(rows, rows.float(), _most_opposed(rows.float()))
    pool = min(pool, len(rows) - 1)
    if pool == len(rows) - 1 and pool * (pool - 1) // 2 <= ALL_PAIRS:
        beam = max(beam, ALL_PAIRS)
    targets = np.arange(len(rows)) if targets is None else np.asarray(targets, np.int64)
    with progress.task("rebuilding decoder rows from others", len(targets), "latents") as task:

        def search(tile: Tensor) -> tuple[np.ndarray, ...]:
            columns = _pursue(among, tile, most, pool, beam)
            task.advance(len(tile))
            return columns

        tiles = side_by_side(search, torch.from_numpy(targets).split(TILE))
    return Pursuit(targets, *(np.concatenate(column) for column in zip(*tiles, strict=True)), n_rows=len(rows))


@dataclass(frozen=True)
class _Rows:
    """exact float64 [n, d], rough float32 [n, d], opposed float32 [n]: m >= 0 with cos(w_i, w_j) >= -m_i for all j."""

    exact: Tensor
    rough: Tensor
    opposed: Tensor

    def cosines(self, x: Tensor, own: Tensor) -> Tensor:
        """x [t, d] -> products with all rows, float32 [t, n]; -inf with row own[t] itself."""
        products = x.float() @ self.rough.t()
        products[torch.arange(len(own)), own] = -torch.inf
        return products


def _most_opposed(rows: Tensor) -> Tensor:
    lowest = [(rows[start : start + 8 * TILE] @ rows.t()).min(dim=1).values for start in range(0, len(rows), 8 * TILE)]
    return torch.cat(lowest).neg().clamp(min=0.0, max=1.0)


def _pursue(among: _Rows, own: Tensor, most: int, pool: int, beam: int) -> tuple[np.ndarray, ...]:
    """errors, parts, coefficients, proved, omp_errors of the targets `own` [t]; see `Pursuit`."""
    cosines = among.cosines(among.rough[own], own)
    candidates, outside = _nearest(cosines, pool)
    steps, swept = _omp(among, own, cosines, most)
    omp = [_fit(among, own, steps[:, k]) for k in range(most)]
    all_rows = pool == len(among.exact) - 1
    if not all_rows:
        candidates = torch.cat([candidates, swept], dim=1)
    if not all_rows and most > 1:
        pairs, bound = _open_pairs(among, own, cosines, outside, (1 - omp[1].errors).float())
        candidates = torch.cat([candidates, pairs], dim=1)
    sets, whole = _search(among, own, candidates, most, beam)

    best = [omp[0].or_better(_fit(among, own, sets[:, 0]))]
    for k in range(1, most):
        best.append(best[-1].or_better(omp[k]).or_better(_fit(among, own, sets[:, k])))
    errors, parts = torch.stack([step.errors for step in best], 1), torch.stack([step.parts for step in best], 1)
    coefficients, order = torch.stack([step.coefficients for step in best], 1).sort(dim=2, descending=True)
    proved = whole & all_rows
    proved[:, 0] = True
    if not all_rows and most > 1:
        proved[:, 1] = bound <= 1 - errors[:, 1] + SLACK
    proved |= errors <= SLACK
    omp_errors = torch.stack([step.errors for step in omp], 1)
    return tuple(column.numpy() for column in (errors, parts.gather(2, order), coefficients, proved, omp_errors))


def _nearest(cosines: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """The `pool` rows with the largest cosines [t, pool], and the largest cosine among the others, at least 0, [t]."""
    if pool == cosines.shape[1] - 1:
        return cosines.topk(pool, dim=1).indices, cosines.new_zeros(len(cosines))
    top = cosines.topk(pool + 1, dim=1)
    return top.indices[:, :pool], top.values[:, pool].clamp_min(0.0)


@dataclass(frozen=True)
class _Fit:
    """errors [t]; parts, coefficients [t, K]: -1 and 0 where there is none."""

    errors: Tensor
    parts: Tensor
    coefficients: Tensor

    def or_better(self, other: "_Fit") -> "_Fit":
        better = other.errors < self.errors
        parts = torch.where(better[:, None], other.parts, self.parts)
        coefficients = torch.where(better[:, None], other.coefficients, self.coefficients)
        return _Fit(torch.where(better, other.errors, self.errors), parts, coefficients)


def _fit(among: _Rows, own: Tensor, chosen: Tensor) -> _Fit:
    """The best non-negative mixture of the chosen rows [t, s], -1 for none.

    The error is that of the mixture itself, not a difference.
    """
    w, atoms, present = among.exact[own], among.exact[chosen.clamp_min(0)], chosen >= 0
    coefficients = fit(atoms @ atoms.transpose(1, 2), (atoms @ w[..., None])[..., 0], present)
    errors = (w - (coefficients[:, None] @ atoms)[:, 0]).square().sum(1)
    return _Fit(errors, torch.where(coefficients > 0, chosen, -1), coefficients)


def _omp(among: _Rows, own: Tensor, cosines: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At each step the row with the largest product with the residual joins, all coefficients are fitted anew and zeros
    dropped.

    Returns the parts after each step [t, most, most] and the SWEPT rows with the largest products at each step, [t,
    most * SWEPT].
    """
    chosen, steps, swept = torch.full((len(own), most), -1), [], []
    for step in range(most):
        top = cosines.topk(min(SWEPT, cosines.shape[1] - 1), dim=1)
        swept.append(top.indices)
        chosen = chosen.clone()
        chosen[:, step] = torch.where(top.values[:, 0] > SLACK, top.indices[:, 0], -1)
        fitted = _fit(among, own, chosen)
        chosen = fitted.parts
        steps.append(chosen)
        if step < most - 1:
            rebuilt = (fitted.coefficients[:, None] @ among.exact[chosen.clamp_min(0)])[:, 0]
            cosines = among.cosines(among.exact[own] - rebuilt, own)
    return torch.stack(steps, 1), torch.cat(swept, 1)


def _open_pairs(among: _Rows, own: Tensor, cosines: Tensor, outside: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs with a row outside the candidates that might explain more than `known` [t]; see the top of this file.

    cosines [t, n]; outside [t], the largest cosine outside the candidates. Returns the best such pair [t, 2] (twice the
    same row where there is none) and a bound [t] on what any of them explains, where that is above `known`.
    """
    x, m = cosines.clamp_min(0.0), among.opposed
    bounds = x.square() + (torch.minimum(x, outside[:, None]) + x * m).square() / (1 - m.square()).clamp_min(SLACK)
    top = bounds.topk(min(OPEN + 1, bounds.shape[1]), dim=1)
    # of the first parts that are not looked at
    bound = top.values[:, -1].clone()
    tiles = []
    row, place = torch.nonzero(top.values[:, :-1] > known[:, None] + SLACK, as_tuple=True)
    for i, place_of_a in zip(row.split(TILE), place.split(TILE), strict=True):
        a = top.indices[i, place_of_a]
        x_a, y, g = x[i, a], cosines[i], among.rough[a] @ among.rough.t()
        # the nearer part comes first and the other is no candidate, or the pair is looked at elsewhere
        left = torch.where(y <= torch.minimum(x_a, outside[i])[:, None], y - x_a[:, None] * g, 0.0)
        gain, b = (left.clamp_min(0.0).square() / (1 - g.square()).clamp_min(SLACK)).max(dim=1)
        explained = x_a.square() + gain
        bound = bound.scatter_reduce(0, i, explained, "amax")
        tiles.append((explained, i, a, b))
    pairs = top.indices[:, :1].expand(-1, 2).clone()
    if tiles:
        explained, i, a, b = (torch.cat(column) for column in zip(*tiles, strict=True))
        # the best of each target is written last
        order = explained.argsort()
        pairs.numpy()[i[order].numpy()] = torch.stack([a, b], 1)[order].numpy()
    return pairs, bound


def _search(among: _Rows, own: Tensor, candidates: Tensor, most: int, beam: int) -> tuple[Tensor, Tensor]:
    """The best sets among the candidates [t, p] of each target, as rows [t, most, most] with -1 for none; and which are
    certain."""
    if len(own) > SEARCH_TILE:
        parts = [
            _search(among, *part, most, beam)
            for part in zip(own.split(SEARCH_TILE), candidates.split(SEARCH_TILE), strict=True)
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))
    places = torch.arange(candidates.shape[1])
    again = ((candidates[:, :, None] == candidates[:, None, :]) & (places[:, None] > places)).any(2)
    atoms = among.exact[candidates]
    usable = ~again & (candidates != own[:, None])
    gram, dots = atoms @ atoms.transpose(1, 2), (atoms @ among.exact[own][..., None])[..., 0]
    sets, whole = best_sets(gram, dots, usable, most, beam)
    rows = candidates.gather(1, sets.clamp_min(0).flatten(1)).view_as(sets)
    return torch.where(sets >= 0, rows, -1), whole
