"""The figures of a report, drawn without a display and without global state: each function gives one matplotlib Figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metasae.arms.folder import read_metrics
from metasae.compare.catalogue import CATALOGUE, Quantity
from metasae.intervals.statistics import is_clear

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metasae.compare.compare import Measured

# Okabe and Ito's colours, told apart by colour-blind readers; the line styles say it again
STYLES = {
    "solo": ("#000000", "-"),
    "control": ("#E69F00", "--"),
    "joint": ("#0072B2", "-"),
    "sequential": ("#009E73", "-."),
}
OTHER_COLOURS = ("#D55E00", "#CC79A7", "#56B4E9")
BINS_TOGETHER = 5
CURVES = (("fvu", "FVU (share of variance)"), ("penalty", "penalty (mean p)"), ("aux", "auxiliary loss"))


def style_of(arm: str) -> tuple[str, str]:
    """(colour, line style), the same for an arm in every figure."""
    if arm in STYLES:
        return STYLES[arm]
    return OTHER_COLOURS[sum(arm.encode()) % len(OTHER_COLOURS)], ":"


def relative_differences(pairs: dict, baseline: str = "solo") -> "Figure | None":
    """The change of every main measure against the baseline with its interval: in percent, and below that in pp where a share is itself a difference.

    A mark is filled where the change is clear after Holm's correction. Measures with a change but no percentage are named below. pairs: as in
    compare.json.
    """
    main = [
        q
        for q in CATALOGUE
        if q.main and any(pair.get(q.key, {}).get("difference") is not None for pair in pairs.values())
    ]
    panels = {"%": [], "pp": []}
    for q in main:
        unit = "%" if q.relative else "pp"
        if any(_drawn(pair.get(q.key), unit) for pair in pairs.values()):
            panels[unit].append(q)
    left_out = [q.label for q in main if q not in panels["%"] + panels["pp"]]
    panels = {unit: shown for unit, shown in panels.items() if shown}
    if not panels:
        return None
    counts = [len(shown) for shown in panels.values()]
    figure, each = empty_figure(
        1, height=1.2 * len(counts) + 0.36 * sum(counts), rows=len(counts), heights=[count + 1.2 for count in counts]
    )
    for axes, (unit, shown) in zip(each, panels.items(), strict=True):
        _draw_differences(axes, pairs, shown, unit, baseline)
    each[0].legend(frameon=False, fontsize=9)
    note = f"\nnot drawn, as there is no percentage: {', '.join(left_out)}" if left_out else ""
    each[-1].set_xlabel(f"{each[-1].get_xlabel()}\nfilled: clear after Holm's correction{note}")
    return figure


def _draw_differences(axes: "Axes", pairs: dict, shown: list[Quantity], unit: str, baseline: str) -> None:
    """One row per measure, one mark per pair in it."""
    offsets = np.linspace(-0.2, 0.2, len(pairs)) if len(pairs) > 1 else [0.0]
    for offset, (name, pair) in zip(offsets, pairs.items(), strict=True):
        colour, _ = style_of(name.split(" vs ")[0])
        for row, quantity in enumerate(shown):
            entry = pair.get(quantity.key)
            drawn = _drawn(entry, unit)
            if drawn is None:
                continue
            value, interval = drawn
            if interval is not None:
                axes.plot(interval, [row + offset] * 2, color=colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt")
            filled = is_clear(entry) and entry.get("p_holm") is not None
            axes.plot(
                value, row + offset, "o", color=colour, markersize=6, markerfacecolor=colour if filled else "white"
            )
        axes.plot([], [], "o", color=colour, label=name)
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(shown)), [_worded(q) for q in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(*_limits([_drawn(pair.get(q.key), unit) for pair in pairs.values() for q in shown]))
    axes.set_xlabel(f"change against {baseline} ({unit}), 95% interval")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _drawn(entry: dict | None, unit: str) -> tuple[float, list[float] | None] | None:
    """(change, interval) in percent or pp; None where there is none in that unit."""
    if entry is None or entry["difference"] is None:
        return None
    if unit == "pp":
        return 100 * entry["difference"], entry["ci95"] and [100 * end for end in entry["ci95"]]
    return None if entry["percent"] is None else (entry["percent"], entry["percent_ci95"])


def phi_difference(measured: Sequence["Measured"], baseline: str = "solo") -> "Figure | None":
    """How many more pairs of latents have a given phi than in the baseline, mean over the seeds both arms have."""
    base = {entry.seed: entry for entry in measured if entry.arm == baseline}
    others = [arm for arm in arms_of(measured) if arm != baseline]
    arms = [arm for arm in others if any(entry.seed in base for entry in measured if entry.arm == arm)]
    if not arms:
        return None
    figure, (axes,) = empty_figure(1, height=3.6)
    for arm in arms:
        differences = []
        for entry in measured:
            if entry.arm == arm and entry.seed in base:
                edges, counts = _coarse_phi(entry)
                differences.append(counts - _coarse_phi(base[entry.seed])[1])
        colour, line = style_of(arm)
        axes.stairs(
            np.mean(differences, axis=0),
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=f"{arm} - {baseline}",
            baseline=None,
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xscale("symlog", linthresh=1e-4, linscale=0.6)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xticks([-1, -1e-1, -1e-2, -1e-3, -1e-4, 0, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    axes.set_xlabel("phi of a pair of latents (no unit; bins even in log |phi|)")
    axes.set_ylabel(f"more pairs than {baseline} (count)")
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def firing_rates(measured: Sequence["Measured"]) -> "Figure":
    """How many latents fire at a given rate, mean over seeds."""
    figure, (axes,) = empty_figure(1, height=3.4)
    first, last = np.inf, -np.inf
    for arm in arms_of(measured):
        histograms = [entry.measures["fidelity"]["rates"]["histogram"] for entry in measured if entry.arm == arm]
        counts, edges = np.mean([h["counts"] for h in histograms], axis=0), np.asarray(histograms[0]["log10_edges"])
        used = np.flatnonzero(counts)
        if len(used):
            first, last = min(first, edges[used[0]]), max(last, edges[used[-1] + 1])
        colour, line = style_of(arm)
        # solo is drawn first and thicker, so that an arm lying on it leaves it visible
        axes.stairs(
            counts, 10.0**edges, color=colour, linestyle=line, linewidth=3.2 if arm == "solo" else 1.4, label=arm
        )
    axes.set_xscale("log")
    if first < last:
        axes.set_xlim(10.0 ** (first - 0.2), 10.0 ** (last + 0.2))
    axes.set_xlabel("firing rate (share of tokens; ten bins per factor of ten)")
    axes.set_ylabel("live latents (count)")
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def loss_curves(measured: Sequence["Measured"]) -> "Figure | None":
    """Training curves from metrics.jsonl, one line per seed. None when no arm has one."""
    curves = [(entry, read_metrics(entry.folder / "metrics.jsonl")) for entry in measured]
    shown = [(key, label) for key, label in CURVES if any(row.get(key) for _, rows in curves for row in rows)]
    if not shown:
        return None
    figure, panels = empty_figure(len(shown), height=3.2)
    for axes, (key, label) in zip(panels, shown, strict=True):
        named = set()
        for entry, rows in curves:
            points = [(row.get("tokens", row.get("step")), row[key]) for row in rows if row.get(key) is not None]
            points = [(x, y) for x, y in points if x is not None]
            if not points or not any(y for _, y in points):
                continue
            colour, line = style_of(entry.arm)
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=line,
                linewidth=1.2,
                alpha=0.8,
                label=entry.arm if entry.arm not in named else None,
            )
            named.add(entry.arm)
        axes.set_xlabel("training tokens")
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        heights = [y for line in axes.lines for y in line.get_ydata()]
        if heights and key != "penalty" and min(heights) > 0 and max(heights) > 3 * min(heights):
            axes.set_yscale("log")
        axes.grid(color="#eeeeee", linewidth=0.6, which="both")
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def empty_figure(
    panels: int, height: float, rows: int = 1, heights: Sequence[float] | None = None, width: float = 8
) -> tuple["Figure", list["Axes"]]:
    """A figure with panels side by side in each of its rows. height, width: in inches. heights: of the rows to each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels_ = list(figure.subplots(rows, panels, squeeze=False, height_ratios=heights).flat)
    for axes in panels_:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.set_axisbelow(True)
    return figure, panels_


def arms_of(measured: Sequence["Measured"]) -> list[str]:
    return list(dict.fromkeys(entry.arm for entry in measured))


def _coarse_phi(entry: "Measured") -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts) of the phi histogram, BINS_TOGETHER fine bins in one on either side of the bin around 0."""
    histogram = entry.measures["cooccurrence"]["histogram"]
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    middle = len(counts) // 2
    starts = np.concatenate(
        [np.arange(0, middle, BINS_TOGETHER), [middle], np.arange(middle + 1, len(counts), BINS_TOGETHER)]
    )
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _worded(quantity) -> str:
    arrow = {"lower": "  (lower is better)", "higher": "  (higher is better)", None: ""}[quantity.better]
    return quantity.label + arrow


def _limits(drawn: list) -> tuple[float, float]:
    """Wide enough for every point; intervals of very few seeds may run out of the frame rather than flatten everything."""
    found = [each for each in drawn if each is not None]
    ends = [abs(end) for _, interval in found for end in (interval or ())]
    points = max(abs(value) for value, _ in found)
    reach = max(min(max(ends, default=0.0), 4 * points), 1.15 * points, 1.0)
    return -1.05 * reach, 1.05 * reach
