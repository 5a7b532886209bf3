"""Early stopping by seeds: after its first seed, half of the cells go no further.

Successive halving whose resource is seeds instead of steps. No training is cut short, so what is judged are whole SAEs,
after warm-up and decay, on held-out text; a cell that is stopped keeps its one seed, without an interval. What one seed
misjudges stays misjudged, so the front of the first seed is always kept, however large it is, and a stopped cell is
marked as such in every table.
"""

import numpy as np

from metasae import files
from metasae.arms.folder import read_object
from metasae.sweep.folder import SweepFolder
from metasae.sweep.pareto import layers

FILE = "halving.json"
KEEP = 0.5


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
    return read_object(folder.path / FILE).get("kept")


def why_stopped(folder: SweepFolder, cell: str) -> str:
    """In words, why a cell that is not kept goes no further."""
    costs = read_object(folder.path / FILE).get("costs", {})
    why = "beaten" if costs.get(cell) else "an objective has no number"
    return f"stopped early: {why} after its first seed"


def decide(folder: SweepFolder, costs: dict[str, list[float] | None]) -> None:
    files.write_json(folder.path / FILE, {"kept": survivors(costs), "costs": costs})
