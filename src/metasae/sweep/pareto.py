"""The Pareto front (the cells that no other cell beats), the cell nearest to the ideal, and early stopping by the
front.

Early stopping uses seeds: after the first seed, about half of the cells are stopped (successive halving with seeds in
place of steps). No training is cut short, so cells are judged by complete SAEs, after warm-up and decay, on held-out
text. A stopped cell keeps its one seed, without an interval. An error of the first seed is not corrected later, so the
front of the first seed is always kept, however large it is, and every table marks stopped cells.
"""

import numpy as np

from metasae import files
from metasae.arms.folder import read_object
from metasae.sweep.folder import SweepFolder

HALVING = "halving.json"
KEEP = 0.5


def front(costs_CO: np.ndarray) -> np.ndarray:
    """Which cells are on the front, bool [cells]: no other cell is at least as good in every objective and better in
    one. Lower costs are better.

    Cells with equal costs are on the front together. A cell with a NaN is not on the front and beats no cell.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    # [other, cell]
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return np.isfinite(costs).all(axis=1) & ~(no_worse & better).any(axis=0)


def layers(costs_CO: np.ndarray) -> np.ndarray:
    """The layer of each cell, int [cells]: 0 on the front, 1 on the front of the remaining cells, and so on; -1 for a
    cell with a NaN.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    numbers, left = np.full(len(costs), -1), np.isfinite(costs).all(axis=1)
    while left.any():
        places = np.flatnonzero(left)
        first = places[front(costs[places])]
        numbers[first], left[first] = numbers.max() + 1, False
    return numbers


def nearest_to_ideal(costs_CO: np.ndarray) -> int:
    """The cell of the front nearest to the best of every objective, each scaled to the front's own range.

    Of several equally near cells the first.
    """
    costs = np.asarray(costs_CO, dtype=np.float64)
    places = np.flatnonzero(front(costs))
    low, high = costs[places].min(axis=0), costs[places].max(axis=0)
    scaled = (costs[places] - low) / np.where(high > low, high - low, 1.0)
    return int(places[np.argmin(np.square(scaled).sum(axis=1))])


def survivors(costs: dict[str, list[float] | None]) -> list[str]:
    """The cells that continue: whole layers, from the best, until at least half of all cells are kept.

    costs: {cell: its objectives after the first seed, lower is better}; None for a cell that failed, which does not
    continue.
    """
    names = [name for name, values in costs.items() if values is not None]
    if not names:
        return []
    layer = layers(np.array([costs[name] for name in names]))
    last = np.sort(layer)[max(0, int(np.ceil(KEEP * len(names))) - 1)]
    return [name for name, own in zip(names, layer, strict=True) if own <= last]


def kept(folder: SweepFolder) -> list[str] | None:
    """The cells that continue; None if that is not decided yet."""
    return read_object(folder.path / HALVING).get("kept")


def why_stopped(folder: SweepFolder, cell: str) -> str:
    """Why a cell was stopped, in words."""
    why = "beaten" if read_object(folder.path / HALVING)["costs"].get(cell) else "an objective has no number"
    return f"stopped early: {why} after its first seed"


def decide(folder: SweepFolder, costs: dict[str, list[float] | None]) -> None:
    """Decides which cells continue and records it. costs: as for `survivors`."""
    files.write_json(folder.path / HALVING, {"kept": survivors(costs), "costs": costs})
