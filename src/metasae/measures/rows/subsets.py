"""Non-negative least squares over small sets of candidates, for many targets at once, from inner products alone.

For a target w and candidates a_j, all of unit length, with G = A A^T and b = A w, a set S explains
    E(S) = max over c >= 0 of 2 c.b - c^T G c,    and the error is 1 - E(S).
When the least-squares coefficients on S are all positive they are the maximum; otherwise a smaller set explains as
much. Such a set always holds one candidate fewer with positive coefficients too (the step before the last of Lawson and
Hanson's NNLS, "Solving Least Squares Problems", 1974, ch. 23), so growing sets by one candidate with a positive
residual product reaches all.

Shapes: t targets, p candidates of each, f sets kept of each target, s candidates in a set. Everything is float64.
"""

from itertools import product

import torch
from torch import Tensor

# the squared part of a candidate outside the span of others; below this the candidate is a copy of them in float64
COPY = 1e-9


def fit(gram: Tensor, dots: Tensor, present: Tensor) -> Tensor:
    """gram [t, s, s], dots [t, s], present bool [t, s] -> c >= 0 [t, s] that maximises 2 c.dots - c^T gram c; 0 where
    not present.

    Exact: the 2^s - 1 possible supports are all solved, and the best with positive coefficients is taken.
    """
    best, most = torch.zeros_like(dots), torch.zeros_like(dots[:, 0])
    identity = torch.eye(dots.shape[1], dtype=dots.dtype)
    for support in product((False, True), repeat=dots.shape[1]):
        chosen = present & torch.tensor(support)
        system = torch.where(chosen[:, :, None] & chosen[:, None, :], gram, identity)
        c, singular = torch.linalg.solve_ex(system, torch.where(chosen, dots, 0.0)[..., None])
        c = c[..., 0]
        explained = (c * dots).sum(1)
        better = ((c > 0) | ~chosen).all(1) & (singular == 0) & (explained > most)
        best, most = torch.where(better[:, None], c, best), torch.where(better, explained, most)
    return best


def best_sets(gram: Tensor, dots: Tensor, usable: Tensor, most: int, beam: int) -> tuple[Tensor, Tensor]:
    """gram [t, p, p], dots [t, p], usable bool [t, p] -> (sets, whole): the sets of up to 1, 2, ... candidates that
    explain most.

    sets: int64 [t, most, most], places among the candidates, sets[:, s - 1] of s candidates all with positive
    coefficients; -1 throughout where there is no such set. whole: bool [t, most], whether every such set was looked at.

    Exhaustive for one and two candidates. A set of more is grown from the `beam` best sets of one fewer, so it is the
    best one for sure only where no more than that many exist.
    """
    t = len(dots)
    sets, whole = torch.full((t, most, most), -1), torch.ones(t, most, dtype=torch.bool)
    explained, kept = _largest(torch.where(usable & (dots > 0), dots.square(), 0.0), 1)
    sets[:, 0, :1] = torch.where(explained > 0, kept, -1)
    if most == 1:
        return sets, whole
    pairs = _pairs(gram, dots, usable).flatten(1)
    explained, place = _largest(pairs, beam)
    kept = torch.stack([place // dots.shape[1], place % dots.shape[1]], 2)
    all_kept = (pairs > 0).sum(1) <= beam
    for size in range(2, most + 1):
        if size > 2:
            whole[:, size - 1] = all_kept
            explained, kept, fits = _grow(gram, dots, usable, explained, kept, beam)
            all_kept = all_kept & fits
        # the sets come best first
        sets[:, size - 1, :size] = torch.where(explained[:, :1] > 0, kept[:, 0], -1)
    return sets, whole


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return values.topk(min(count, values.shape[1]), dim=1)


def _pairs(gram: Tensor, dots: Tensor, usable: Tensor) -> Tensor:
    """E({a, b}) = (x^2 + y^2 - 2 x y g) / (1 - g^2) with x = w.a, y = w.b, g = a.b: [t, p, p] above the diagonal.

    0 elsewhere, and where a coefficient would not be positive.
    """
    x, y = dots[:, :, None], dots[:, None, :]
    left = 1 - gram.square()
    positive = (x - y * gram > 0) & (y - x * gram > 0) & (left > COPY) & (usable[:, :, None] & usable[:, None, :])
    return torch.where(positive, (x * (x - y * gram) + y * (y - x * gram)) / left, 0.0).triu_(1)


def _grow(
    gram: Tensor, dots: Tensor, usable: Tensor, explained: Tensor, sets: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sets [t, f, s] that explain [t, f] (0: no set) -> the best sets of s + 1.

    Returns explained [t, f'], sets [t, f', s + 1], and whether these are all that can be grown [t].

    With u = G_SS^-1 G_Sj, candidate j gets the coefficient (b_j - c.G_Sj) / (G_jj - u.G_Sj) and the others become c - u
    times it.
    """
    t, f, s = sets.shape
    p = dots.shape[1]
    to_all = gram.gather(1, sets.reshape(t, -1, 1).expand(-1, -1, p)).view(t, f, s, p)
    within = to_all.gather(3, sets[:, :, None, :].expand(-1, -1, s, -1))
    real = explained > 0
    inverse = torch.linalg.inv_ex(torch.where(real[..., None, None], within, torch.eye(s, dtype=gram.dtype)))[0]
    c = inverse @ dots.gather(1, sets.view(t, -1)).view(t, f, s, 1)
    u = inverse @ to_all
    residual = dots[:, None] - (c * to_all).sum(2)
    left = gram.diagonal(dim1=1, dim2=2)[:, None] - (u * to_all).sum(2)
    new = residual / left.clamp_min(COPY)
    positive = (residual > 0) & (left > COPY) & (c - u * new[:, :, None] > 0).all(2) & usable[:, None] & real[..., None]
    values = torch.where(positive, explained[..., None] + residual * new, 0.0)
    # a set of s + 1 is grown from at most s + 1 others, so this many hold `beam` different ones
    values, place = _largest(values.flatten(1), beam * (s + 1) + 1)
    grown = (
        torch.cat([sets.gather(1, (place // p)[..., None].expand(-1, -1, s)), (place % p)[..., None]], 2).sort(2).values
    )
    values = torch.where(_repeats(grown, p), 0.0, values)
    all_there = (values > 0).sum(1) <= beam
    values, place = _largest(values, beam)
    return values, grown.gather(1, place[..., None].expand(-1, -1, s + 1)), all_there


def _repeats(sets: Tensor, p: int) -> Tensor:
    """Sorted sets [t, f, s] of numbers below p -> bool [t, f]: the same set stands earlier in its row."""
    key = sets[..., 0]
    for column in range(1, sets.shape[2]):
        key = key * p + sets[..., column]
    key, order = key.sort(dim=1, stable=True)
    again = torch.zeros_like(key, dtype=torch.bool)
    again[:, 1:] = key[:, 1:] == key[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)
