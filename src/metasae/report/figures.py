"""The figures of a report. Each function returns a matplotlib Figure, without a display or global state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from metasae.compare.catalogue import CATALOGUE, Quantity, by_pair, is_established, scaled
from metasae.compare.compare import Measured, by_arm
from metasae.recipe.registry import BASELINE

# Okabe and Ito's colours, which colour-blind readers can distinguish; line styles distinguish the arms too
STYLES = {
    "solo": {"color": "#000000", "linestyle": "-"},
    "control": {"color": "#E69F00", "linestyle": "--"},
    "joint": {"color": "#0072B2", "linestyle": "-"},
    "sequential": {"color": "#009E73", "linestyle": "-."},
}
OTHER_COLOURS = ("#D55E00", "#CC79A7", "#56B4E9")
GREY = "#888888"
# Inches: two such figures stand side by side in the report, so that their letters are as large as those of wide ones.
HALF = 4.6
# Bins of the figure of pairs; hardly any pair lies outside.
PHI_EDGES = np.round(np.arange(-0.3, 0.601, 0.02), 2)
CURVES = (("fvu", "FVU (share of variance)"), ("penalty", "penalty (mean p)"), ("aux", "auxiliary loss"))
BETTER = {"lower": "  (lower is better)", "higher": "  (higher is better)", None: ""}


def style_of(arm: str) -> dict[str, str]:
    """Colour and line style, the same for an arm in every figure."""
    return STYLES.get(arm) or {"color": OTHER_COLOURS[sum(arm.encode()) % len(OTHER_COLOURS)], "linestyle": ":"}


def empty_figure(
    panels: int, height: float, rows: int = 1, heights: Sequence[float] | None = None, width: float = 8
) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side in each row.

    height, width: in inches. heights: relative heights of the rows.
    """
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    all_axes = list(figure.subplots(rows, panels, squeeze=False, height_ratios=heights).flat)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.set_axisbelow(True)
    return figure, all_axes


def draw_legend(axes: Axes, on: Axes | Figure | None = None, **options: object) -> None:
    """Draws a legend with each label of the axes once. on: where to draw it, the axes if None. options: of matplotlib's
    legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    (on or axes).legend(list(once.values()), list(once), **{"frameon": False, "fontsize": 9, **options})


def draw_grid(axes: Axes, which: str = "major") -> None:
    axes.grid(color="#eeeeee", linewidth=0.6, which=which)


def set_rows(axes: Axes, labels: Sequence[str], size: float = 9) -> None:
    """Gives the axes one row for each label, from the top. size: of the letters, in points."""
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def draw_interval(
    axes: Axes, row: float, value: float, interval: Sequence[float] | None, colour: str, filled: bool, size: float
) -> None:
    """Draws a mark at `value` in a row, and its interval as a bar. size: of the mark, in points."""
    if interval is not None:
        axes.plot(interval, [row, row], color=colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt")
    axes.plot(value, row, "o", color=colour, markersize=size, markerfacecolor=colour if filled else "white")


def relative_differences(pairs: dict, baseline: str = BASELINE) -> Figure | None:
    """The change of every main measure against the baseline with its interval: in percent, and below in pp for shares.

    A mark is filled where the change is clear after Holm's correction. Measures with a change but without a percentage
    are named below the figure. pairs: as in compare.json.
    """
    changed = [
        q
        for q in CATALOGUE
        if q.main and any(entries.get(q.key, {}).get("difference") is not None for entries in pairs.values())
    ]
    drawn = [
        q
        for q in changed
        if any(q.key in entries and scaled(q, entries[q.key])[0] is not None for entries in pairs.values())
    ]
    panels = {"%": [q for q in drawn if q.relative], "pp": [q for q in drawn if not q.relative]}
    panels = {unit: quantities for unit, quantities in panels.items() if quantities}
    if not panels:
        return None
    counts = [len(quantities) for quantities in panels.values()]
    figure, all_axes = empty_figure(
        1, 1.2 * len(counts) + 0.36 * sum(counts), rows=len(counts), heights=[count + 1.2 for count in counts]
    )
    for axes, (unit, quantities) in zip(all_axes, panels.items(), strict=True):
        _draw_differences(axes, pairs, quantities)
        axes.set_xlabel(f"change against {baseline} ({unit}), 95% interval")
    draw_legend(all_axes[0])
    left_out = _in_lines([q.label for q in changed if q not in drawn])
    note = f"\nnot drawn, as there is no percentage:\n{left_out}" if left_out else ""
    last = all_axes[-1]
    last.set_xlabel(f"{last.get_xlabel()}\nfilled: clear after Holm's correction{note}")
    return figure


def _in_lines(labels: Sequence[str], longest: int = 44) -> str:
    """Labels behind each other, with a line break where the next one would make a line too long for the figure."""
    lines: list[str] = []
    for label in labels:
        if lines and len(lines[-1]) + len(label) < longest:
            lines[-1] += f", {label}"
        else:
            lines.append(label)
    return ",\n".join(lines)


def _draw_differences(axes: Axes, pairs: dict, quantities: list[Quantity]) -> None:
    """Draws one row per measure, with one mark per pair of arms."""
    changes = []
    offsets = np.linspace(-0.2, 0.2, len(pairs)) if len(pairs) > 1 else [0.0]
    for offset, (pair, entries) in zip(offsets, by_pair(pairs).items(), strict=True):
        colour = style_of(pair.arm)["color"]
        for row, q in enumerate(quantities):
            value, interval = scaled(q, entries[q.key]) if q.key in entries else (None, None)
            if value is not None:
                draw_interval(axes, row + offset, value, interval, colour, is_established(entries[q.key]), 6)
                changes.append((value, interval))
        axes.plot([], [], "o", color=colour, label=str(pair))
    axes.axvline(0, color=GREY, linewidth=1)
    set_rows(axes, [q.label + BETTER[q.better] for q in quantities])
    axes.set_xlim(*_limits(changes))


def _limits(changes: Sequence[tuple[float, list[float] | None]]) -> tuple[float, float]:
    """Limits that include every point. A very wide interval of few seeds extends beyond the frame rather than flatten
    the rest.
    """
    ends = [abs(end) for _, interval in changes for end in (interval or ())]
    points = max(abs(value) for value, _ in changes)
    reach = max(min(max(ends, default=0.0), 4 * points), 1.15 * points, 1.0)
    return -1.05 * reach, 1.05 * reach


def phi_difference(measured: Sequence[Measured], baseline: str = BASELINE) -> Figure | None:
    """The difference of the number of latent pairs at each phi to the baseline, mean over the seeds that both arms
    have.
    """
    counts = {
        arm: {seed: even_phi_counts(entry.measures["cooccurrence"]["histogram"]) for seed, entry in of_arm.items()}
        for arm, of_arm in by_arm(measured).items()
    }
    base = counts.pop(baseline, {})
    arms = [arm for arm, of_arm in counts.items() if of_arm.keys() & base.keys()]
    # an arm that equals the baseline (control) would be a line at 0
    changed = [
        arm for arm in arms if any((counts[arm][seed] != base[seed]).any() for seed in counts[arm] if seed in base)
    ]
    if not arms:
        return None
    figure, (axes,) = empty_figure(1, height=3.4, width=HALF)
    for arm in changed or arms:
        differences = [of_seed - base[seed] for seed, of_seed in counts[arm].items() if seed in base]
        label = f"{arm} - {baseline}"
        axes.stairs(np.mean(differences, axis=0), PHI_EDGES, **style_of(arm), linewidth=1.6, label=label, baseline=None)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(
        xlim=(PHI_EDGES[0], PHI_EDGES[-1]),
        xlabel="phi of a pair of latents (no unit; even bins of 0.02)",
        ylabel=f"more pairs than {baseline} (count)",
    )
    axes.yaxis.set_major_formatter("{x:,.0f}")
    draw_grid(axes)
    draw_legend(axes)
    return figure


def even_phi_counts(histogram: dict) -> np.ndarray:
    """Pairs of latents in each bin of PHI_EDGES, float64. The histogram's bins are even in log |phi|; one that crosses
    an edge is divided as if its pairs were spread evenly.
    """
    below = np.concatenate([[0.0], np.cumsum(histogram["counts"], dtype=np.float64)])
    return np.diff(np.interp(PHI_EDGES, histogram["edges"], below))


def firing_rates(measured: Sequence[Measured]) -> Figure:
    """The number of latents at each firing rate, mean over seeds."""
    figure, (axes,) = empty_figure(1, height=3.4, width=HALF)
    ends = []
    for arm, of_arm in by_arm(measured).items():
        histograms = [entry.measures["fidelity"]["rates"]["histogram"] for entry in of_arm.values()]
        counts = np.mean([histogram["counts"] for histogram in histograms], axis=0)
        edges = np.asarray(histograms[0]["log10_edges"])
        bins = np.flatnonzero(counts)
        ends += [*edges[bins], *edges[bins + 1]]
        # solo is drawn first and thicker, so that it stays visible below an equal arm
        axes.stairs(counts, 10.0**edges, **style_of(arm), linewidth=3.2 if arm == "solo" else 1.4, label=arm)
    axes.set(
        xscale="log",
        xlabel="firing rate (share of tokens; ten bins per factor of ten)",
        ylabel="live latents (count)",
    )
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
    if ends:
        axes.set_xlim(10.0 ** (min(ends) - 0.2), 10.0 ** (max(ends) + 0.2))
    draw_grid(axes)
    draw_legend(axes)
    return figure


def loss_curves(measured: Sequence[Measured]) -> Figure | None:
    """Training curves from metrics.jsonl, one line per seed. None if no arm has one."""
    metrics = {entry.arm: entry.arm.metrics() for entry in measured}
    shown = [(key, label) for key, label in CURVES if any(row.get(key) for rows in metrics.values() for row in rows)]
    if not shown:
        return None
    figure, all_axes = empty_figure(len(shown), height=3.2)
    for axes, (key, label) in zip(all_axes, shown, strict=True):
        for arm, rows in metrics.items():
            points = [(row.get("tokens", row.get("step")), row[key]) for row in rows if row.get(key) is not None]
            points = [(x, y) for x, y in points if x is not None]
            if any(y for _, y in points):
                axes.plot(*zip(*points, strict=True), **style_of(arm.name), linewidth=1.2, alpha=0.8, label=arm.name)
        axes.set(xlabel="training tokens", ylabel=label)
        axes.xaxis.set_major_formatter(lambda tokens, _: _short(tokens))
        heights = [y for line in axes.lines for y in line.get_ydata()]
        if heights and key != "penalty" and min(heights) > 0 and max(heights) > 3 * min(heights):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        draw_grid(axes, "both")
    draw_legend(all_axes[0])
    return figure


def _short(count: float) -> str:
    """200000 -> 200k, 3e6 -> 3M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"
