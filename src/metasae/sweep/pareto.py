"""Which cells no other cell beats: the Pareto front, and the one nearest to having everything."""

import numpy as np


def front(costs_CO: np.ndarray) -> np.ndarray:
    """bool [cells]: those that no other cell beats, that is, is at least as good in every objective and better in one.
    Lower is better.

    Cells with equal costs are on the front together. A NaN counts as no number: such a cell is not on the front and
    beats none.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    usable = np.isfinite(costs).all(axis=1)
    on = usable.copy()
    for i in np.flatnonzero(usable):
        others = costs[usable]
        on[i] = not ((others <= costs[i]).all(axis=1) & (others < costs[i]).any(axis=1)).any()
    return on


def layers(costs_CO: np.ndarray) -> np.ndarray:
    """int [cells]: 0 on the front, 1 on the front of what is left without it, and so on; -1 without numbers."""
    costs = np.asarray(costs_CO, dtype=np.float64)
    numbers, left = np.full(len(costs), -1), np.isfinite(costs).all(axis=1)
    while left.any():
        places = np.flatnonzero(left)
        first = places[front(costs[places])]
        numbers[first], left[first] = numbers.max() + 1, False
    return numbers


def nearest_to_ideal(costs_CO: np.ndarray) -> int | None:
    """The cell of the front nearest to the best of every objective, each scaled to the front's own range.

    The first of several that are as near; None without a front.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    places = np.flatnonzero(front(costs))
    if not len(places):
        return None
    low, high = costs[places].min(axis=0), costs[places].max(axis=0)
    scaled = (costs[places] - low) / np.where(high > low, high - low, 1.0)
    return int(places[np.argmin(np.square(scaled).sum(axis=1))])
