"""Tables and a figure of cost curves: what `curves.py` measured, beside what the cost model says."""

from pathlib import Path

from curves_fit import Fit, Series

# Okabe and Ito's colours
COLOURS = ("#0072B2", "#E69F00", "#009E73")
AXES = {
    "n": "n, latents",
    "d": "d, width",
    "k": "k",
    "B": "B, tokens a batch",
    "arms": "arms",
    "tokens": "tokens",
    "L0": "L0, firings a token",
    "latents": "n, latents",
}


def tables(series: list[Series], at_ends: dict[str, list[tuple[str, float, float]]], facts: list[str]) -> str:
    """Markdown: the facts as paragraphs, all exponents, the parts of a step, then the points of every series with what
    was left out."""
    lines = [line for fact in facts for line in (fact, "")]
    lines += [
        "| varied | time of | exponent | its upper half | cost model | its products alone |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for s in series:
        fits = (exponent(s.measured), exponent(s.upper), exponent(s.model, False), exponent(s.flops, False))
        lines.append(f"| {s.varied} | {s.name} | {' | '.join(fits)} |")
    if at_ends:
        lines += ["", *_parts(at_ends)]
    for varied in dict.fromkeys(s.varied for s in series):
        lines += ["", *_points([s for s in series if s.varied == varied])]
    return "\n".join(lines) + "\n"


def exponent(fit: Fit | None, with_error: bool = True) -> str:
    if fit is None:
        return "–"
    # adding 0.0 turns -0.0 into 0.0
    value = f"{round(fit.exponent, 2) + 0.0:.2f}"
    return f"{value} ± {fit.error:.2f}" if with_error and fit.error is not None else value


def _parts(at_ends: dict[str, list[tuple[str, float, float]]]) -> list[str]:
    """The times of the parts of a step beside their floors, whose sum is the cost model."""
    names = [name for name, _, _ in next(iter(at_ends.values()))]
    lines = [f"| ms (floor) | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    return lines + [
        f"| {at} | {' | '.join(f'{ms:,.1f} ({floor:,.1f})' for _, ms, floor in parts)} |"
        for at, parts in at_ends.items()
    ]


def _points(together: list[Series]) -> list[str]:
    """One table of the points that share their x."""
    head, x = [AXES[together[0].varied]], together[0].x
    columns = [[f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in x]]
    for s in together:
        head.append(f"{s.name}, ms (quartiles)")
        columns.append(
            [
                f"{1e3 * mid:,.1f} ({1e3 * low:,.1f} to {1e3 * high:,.1f})"
                for low, mid, high in (p.quartiles for p in s.points)
            ]
        )
        head.append("model, ms" if s.model_unit == "s" else s.model_unit)
        columns.append([f"{1e3 * p.model:,.1f}" if s.model_unit == "s" else f"{p.model:,.0f}" for p in s.points])
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    for value, why in together[0].skipped.items():
        lines += ["", f"{together[0].varied} = {value:,.0f} was left out: {why}."]
    return lines


def draw(series: list[Series], place: Path) -> None:
    """Small multiples, both axes logarithmic: medians with quartile bars, the fitted line, and dotted the cost model in
    seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [
        [s for s in series if s.varied == varied] for varied in dict.fromkeys(s.varied for s in series if s.points)
    ]
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure = Figure(figsize=(10, 3.1 * down + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, together in zip(
        figure.subplots(down, across, squeeze=False).flat, groups + [None] * (across * down - len(groups)), strict=True
    ):
        if together is None:
            axes.set_axis_off()
            continue
        _panel(axes, together)
    figure.supylabel("seconds", fontsize=10)
    figure.suptitle("points: medians and quartiles; line: fitted power law; dotted: cost model", fontsize=10)
    figure.savefig(place, dpi=150)


def _panel(axes, together: list[Series]) -> None:
    ticks = together[0].x
    for colour, s in zip(COLOURS, together, strict=False):
        # a logarithmic axis has no place for a difference that noise has made negative
        shown = [(p.x, *p.quartiles) for p in s.points if p.quartiles[1] > 0]
        bars = [[mid - max(low, mid * 0.1) for _, low, mid, _ in shown], [high - mid for *_, mid, high in shown]]
        label = f"{s.name}: {exponent(s.measured)}"
        axes.errorbar(
            [p[0] for p in shown],
            [p[2] for p in shown],
            yerr=bars,
            fmt="o",
            markersize=4,
            color=colour,
            elinewidth=1.2,
            label=label,
        )
        if s.measured:
            axes.plot(s.x, [s.measured.factor * x**s.measured.exponent for x in s.x], color=colour, linewidth=1.2)
        if s.model_unit == "s":
            axes.plot(s.x, [p.model for p in s.points], ":", color=colour, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [_short(x) for x in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set_xlabel(AXES[together[0].varied], fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    low, high = axes.get_ylim()
    # room for the labels above the curves
    axes.set_ylim(low, high * (high / low) ** (0.13 * len(together)))
    axes.legend(frameon=False, fontsize=8, loc="upper left", handlelength=1)


def _short(x: float) -> str:
    return f"{x / 1000:.0f}k" if x >= 2000 else f"{x:.0f}" if x >= 100 else f"{x:.3g}"
