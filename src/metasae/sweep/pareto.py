"""Which cells no other cell beats: the Pareto front, the one nearest to having everything, and early stopping by it.

Early stopping goes by seeds: after its first seed, half of the cells go no further (successive halving whose resource
is seeds instead of steps). No training is cut short, so what is judged are whole SAEs, after warm-up and decay, on
held-out text; a cell that is stopped keeps its one seed, without an interval. What one seed misjudges stays misjudged,
so the front of the first seed is always kept, however large it is, and a stopped cell is marked as such in every table.
"""

import numpy as np

from metasae import files
from metasae.arms.folder import read_object
from metasae.sweep.folder import SweepFolder

HALVING = "halving.json"
KEEP = 0.5


def front(costs_CO: np.ndarray) -> np.ndarray:
    """bool [cells]: those that no other cell beats, that is, is at least as good in every objective and better in one.
    Lower is better.

    Cells with equal costs are on the front together. A NaN counts as no number: such a cell is not on the front and
    beats none.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    # [other, cell]
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return np.isfinite(costs).all(axis=1) & ~(no_worse & better).any(axis=0)


def layers(costs_CO: np.ndarray) -> np.ndarray:
    """int [cells]: 0 on the front, 1 on the front of what is left without it, and so on; -1 without numbers."""
    costs = np.asarray(costs_CO, dtype=np.float64)
    numbers, left = np.full(len(costs), -1), np.isfinite(costs).all(axis=1)
    while left.any():
        places = np.flatnonzero(left)
        first = places[front(costs[places])]
        numbers[first], left[first] = numbers.max() + 1, False
    return numbers


def nearest_to_ideal(costs_CO: np.ndarray) -> int:
    """The cell of the front nearest to the best of every objective, each scaled to the front's own range.

    The first of several that are as near.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    places = np.flatnonzero(front(costs))
    low, high = costs[places].min(axis=0), costs[places].max(axis=0)
    scaled = (costs[places] - low) / np.where(high > low, high - low, 1.0)
    return int(places[np.argmin(np.square(scaled).sum(axis=1))])


def survivors(costs: dict[str, list[float] | None]) -> list[str]:
    """The cells that go on: whole layers of the front, from the best, until at least half of all cells are kept; layers
    are never cut.

    costs: cell -> its objectives after the first seed, lower is better; None for a cell that failed, which does not go
    on.
    """
    names = [name for name, values in costs.items() if values is not None]
    if not names:
        return []
    layer = layers(np.array([costs[name] for name in names]))
    last = np.sort(layer)[max(0, int(np.ceil(KEEP * len(names))) - 1)]
    return [name for name, own in zip(names, layer, strict=True) if own <= last]


def kept(folder: SweepFolder) -> list[str] | None:
    """The cells that go on, or None before that was decided."""
    return read_object(folder.path / HALVING).get("kept")


def why_stopped(folder: SweepFolder, cell: str) -> str:
    """In words, why a cell that is not kept goes no further."""
    why = "beaten" if read_object(folder.path / HALVING)["costs"].get(cell) else "an objective has no number"
    return f"stopped early: {why} after its first seed"


def decide(folder: SweepFolder, costs: dict[str, list[float] | None]) -> None:
    files.write_json(folder.path / HALVING, {"kept": survivors(costs), "costs": costs})
