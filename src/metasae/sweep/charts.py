"""The figures of a sweep: the Pareto scatter with its front, and the dose-response over the penalty's strength."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metasae.compare.catalogue import TRUTH, scaled
from metasae.sweep.folder import DONE
from metasae.sweep.pareto import front
from metasae.sweep.plan import QUANTITIES
from metasae.sweep.table import by_kind

FVU = "fidelity.fvu"
RESPONSES = (FVU, "cooccurrence.mean_abs_phi", *TRUTH)
BLUE, GREY, RED = "#0072B2", "#888888", "#D55E00"
# colours that colour-blind readers can distinguish (Okabe and Ito)
KINDS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# A cell in a scatter plot: two objectives and its entry in sweep.json.
Point = tuple[float, float, dict]


def write_figures(folder: Path, result: dict) -> list[str]:
    """Draws figures/pareto.png and figures/dose-response.png, each if there is something to draw; returns the names of
    those that were drawn.
    """
    drawn = []
    for name, figure in (("pareto", pareto(result)), ("dose-response", dose_response(result))):
        if figure is not None:
            (folder / "figures").mkdir(exist_ok=True)
            figure.savefig(folder / "figures" / f"{name}.png")
            drawn.append(name)
    return drawn


def pareto(result: dict) -> Figure | None:
    """A scatter plot of each further objective against the first, with a point per cell.

    The front of these two is drawn as a line, the front of all is filled.
    """
    x, *others = result["objectives"]
    cells = [cell for cell in result["cells"] if cell["state"] == DONE and cell["means"].get(x) is not None]
    others = [key for key in others if any(cell["means"].get(key) is not None for cell in cells)]
    if len(cells) < 2 or not others:
        return None
    figure, panels = _panels(1, len(others), (4.2 * len(others), 3.8))
    varied = sorted({key for cell in cells for key in cell["setting"]})
    # kinds that were each trained at several k
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells)) if result["equal_fvu"] else []
    named = by_kind(result)
    beside = "k" if kinds else "row of the table" if named else " / ".join(varied)
    title = f"{beside} beside each point; filled: on the front of all objectives; ringed: nearest to the ideal"
    figure.suptitle(title, fontsize=8)
    for axes, y in zip(panels, others, strict=True):
        points = [(cell["means"][x], cell["means"][y], cell) for cell in cells if cell["means"].get(y) is not None]
        if kinds:
            _curves(axes, points, kinds)
        else:
            # names would cover each other
            rows = {cell["name"]: str(row) for row, cell in enumerate(result["cells"], 1)}
            _scatter(axes, points, [rows[cell["name"]] if named else _values(cell, varied) for *_, cell in points])
            # the best y among cells whose x is at least as good
            signs = np.array([1 if QUANTITIES[key].better == "lower" else -1 for key in (x, y)])
            costs = np.unique(signs * [point[:2] for point in points], axis=0)
            steps = costs[front(costs)] * signs
            axes.plot(*steps.T, color=BLUE, linewidth=1.2, alpha=0.7, drawstyle="steps-post")
        for a, b, cell in points:
            if cell["best"]:
                axes.plot(a, b, "o", color=RED, markerfacecolor="none", markersize=12)
        axes.set_xlabel(_worded(x), fontsize=9)
        axes.set_ylabel(_worded(y), fontsize=9)
        axes.locator_params(axis="x", nbins=6)
    if kinds:
        names = panels[0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    return figure


def _scatter(axes: Axes, points: list[Point], words: list[str]) -> None:
    """Draws every cell with its words beside it."""
    for (a, b, cell), own in zip(points, words, strict=True):
        color, inside = (BLUE, BLUE) if cell["on_front"] else (GREY, "white")
        axes.plot(a, b, "o", color=color, markerfacecolor=inside, markersize=6)
        axes.annotate(own, (a, b), xytext=(5, 4), textcoords="offset points", fontsize=6.5, color="#555555")


def _values(cell: dict, varied: list[str]) -> str:
    """The cell's values of the settings that differ between cells."""
    values = (cell["setting"].get(key) for key in varied)
    return " / ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)


def _curves(axes: Axes, points: list[Point], kinds: list[str]) -> None:
    """Draws a line over k for each kind. The lines are close together, so k is written beside the outermost two
    only.
    """
    by_k = sorted(points, key=lambda point: (point[2]["setting"]["sae.k"], point[:2]))
    for kind, color in zip(kinds, itertools.cycle(KINDS), strict=False):
        own = [point for point in by_k if point[2]["kind"] == kind]
        axes.plot([a for a, _, _ in own], [b for _, b, _ in own], color=color, linewidth=1.3, label=kind)
        for a, b, cell in own:
            inside = color if cell["on_front"] else "white"
            axes.plot(a, b, "o", color=color, markerfacecolor=inside, markersize=5)
    for k, same in itertools.groupby(by_k, key=lambda point: point[2]["setting"]["sae.k"]):
        outermost = [place for *place, _ in same]
        beside = {"textcoords": "offset points", "fontsize": 7, "va": "center", "color": "#555555"}
        axes.annotate(str(k), outermost[0], xytext=(-6, 0), ha="right", **beside)
        if len(outermost) > 1:
            axes.annotate(str(k), outermost[-1], xytext=(6, 0), ha="left", **beside)


def dose_response(result: dict) -> Figure | None:
    """The change against solo with its interval, plotted over kappa, for the cells that have a penalty and numbers."""
    cells = [
        cell
        for cell in result["cells"]
        if cell["state"] == DONE and cell["kappa"] and cell["kappa"]["value"] and cell["differences"]
    ]
    shown = [key for key in RESPONSES if any(key in cell["differences"] for cell in cells)]
    if len({cell["kappa"]["value"] for cell in cells}) < 2 or not shown:
        return None
    rows = -(-len(shown) // 2)
    figure, panels = _panels(rows, 2, (8, 3.0 * rows))
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel("kappa = (lambda2 / sigma^2) exp(-e / sigma^2)", fontsize=9)
    for axes, key in zip(panels, shown, strict=False):
        for cell in cells:
            kappa, entry = cell["kappa"]["value"], cell["differences"].get(key)
            middle, ends = scaled(QUANTITIES[key], entry) if entry else (None, None)
            if ends is not None:
                axes.plot([kappa] * 2, ends, color=BLUE, linewidth=1.4, alpha=0.6)
            if middle is not None:
                axes.plot(kappa, middle, "o", color=BLUE, markersize=5)
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(_worded(key), fontsize=9)
        axes.set_ylabel(f"change against solo ({'%' if QUANTITIES[key].relative else 'hundredths'})", fontsize=8)
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, row by row."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def _worded(key: str) -> str:
    return f"{QUANTITIES[key].label} ({QUANTITIES[key].better} is better)"
