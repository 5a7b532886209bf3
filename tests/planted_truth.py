"""How often the features of a planted world fire, alone and in pairs, worked out from the world itself."""

import numpy as np
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from metasae.data.planted.planted import World


def firing_probabilities(world: World, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pairs int [P, 2] of different features -> P(i on), P(j on), P(both on), float64 [P] each.

    Exact but for the normal integral.
    """
    table, cache = world.topic_rates(), {}
    composites = table[:, world.n_features :]
    out = np.empty((3, len(pairs)))
    for place, (i, j) in enumerate(np.asarray(pairs).tolist()):
        with_i = np.array([i in members for members in world.members], bool)
        with_j = np.array([j in members for members in world.members], bool)
        own_i, own_j, own_both = (_own(world, table, *pair, cache) for pair in ((i, i), (j, j), (i, j)))
        # a composite is independent of own events, so P(off) is a product
        off_i = (1 - own_i) * np.prod(1 - composites[:, with_i], axis=1)
        off_j = (1 - own_j) * np.prod(1 - composites[:, with_j], axis=1)
        off_both = (1 - own_i - own_j + own_both) * np.prod(1 - composites[:, with_i | with_j], axis=1)
        out[:, place] = [np.mean(1 - off_i), np.mean(1 - off_j), np.mean(1 - off_i - off_j + off_both)]
    return out[0], out[1], out[2]


def true_phi(world: World, pairs: np.ndarray) -> np.ndarray:
    """phi of pairs of features int [P, 2] in an endless sample, float64 [P]; NaN where one is never or always on."""
    p_i, p_j, p_both = firing_probabilities(world, pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (p_both - p_i * p_j) / np.sqrt(p_i * (1 - p_i) * p_j * (1 - p_j))


def _own(world: World, table: np.ndarray, i: int, j: int, cache: dict) -> np.ndarray:
    """P(own events of features i and j both happen) in each topic, float64 [topics].

    A child's event: its coin and its parent's event.
    """
    key = (min(i, j), max(i, j))
    if key not in cache:
        # one coin at a time is undone, the later one's first, so that two relatives meet at their common ancestor
        late, early = max(i, j), min(i, j)
        child, other = (late, early) if world.parent[late] >= 0 else (early, late)
        up = int(world.parent[child])
        if up >= 0:
            cache[key] = table[:, child] * _own(world, table, up, up if i == j else other, cache)
        elif i == j:
            cache[key] = table[:, i]
        elif world.word[i] >= 0 and world.word[j] >= 0:
            cache[key] = np.zeros(len(table))
        elif world.group[i] >= 0 and world.group[i] == world.group[j]:
            rho = world.loading[i] * world.loading[j]
            cache[key] = np.array([_both_below(p, q, rho) for p, q in zip(table[:, i], table[:, j], strict=True)])
        else:
            cache[key] = table[:, i] * table[:, j]
    return cache[key]


def _both_below(p: float, q: float, rho: float) -> float:
    """P(z_1 below its p-quantile and z_2 below its q-quantile) for two standard normals with correlation rho."""
    if min(p, q) == 0 or max(p, q) == 1:
        return p * q
    return float(multivariate_normal([0, 0], [[1, rho], [rho, 1]], allow_singular=True).cdf(ndtri([p, q])))
