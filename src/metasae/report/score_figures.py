"""The figures of auto-interp scores: the scores of every arm, and the differences between arms."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metasae.compare.compare import Measured, by_arm
from metasae.intervals.statistics import leaves_out_zero
from metasae.report.figures import (
    GREY,
    draw_grid,
    draw_interval,
    draw_legend,
    empty_figure,
    set_rows,
    style_of,
)


def interp_scores(measured: Sequence[Measured]) -> Figure | None:
    """Every auto-interp score's mean over an arm's latents with its interval, one mark per seed.

    Chance and the score of shuffled explanations are drawn too.
    """
    rows = list(dict.fromkeys(row for entry in measured for row in _score_parts(entry)))
    if not rows:
        return None
    figure, (axes,) = empty_figure(1, height=1.2 + 0.42 * len(rows))
    arms = by_arm(measured)
    for place, (arm, of_arm) in enumerate(arms.items()):
        for turn, entry in enumerate(of_arm.values()):
            offset = 0.56 * ((place + (turn + 0.5) / len(of_arm)) / len(arms) - 0.5)
            for part, mean in _score_parts(entry).items():
                _draw_score(axes, rows.index(part), offset, mean, arm)
    axes.plot([], [], "x", color=GREY, label="shuffled explanations")
    axes.plot([], [], color=GREY, linewidth=1, label="chance")
    set_rows(axes, [f"{score}, {part}" if part != "all" else score for score, part in rows])
    axes.set_xlabel("score (mean over latents, 95% interval over latents)")
    draw_legend(axes, on=figure, loc="outside upper right", ncols=len(arms) + 2)
    return figure


def _draw_score(axes: Axes, row: int, offset: float, mean: dict, arm: str) -> None:
    """Draws a score's mean with its interval, the score of shuffled explanations, and chance."""
    colour, y = style_of(arm)["color"], row + offset
    if mean["ci95"]:
        axes.plot(mean["ci95"], [y, y], color=colour, linewidth=1.4, alpha=0.6, solid_capstyle="butt")
    axes.plot(mean["estimate"], y, "o", color=colour, markersize=4.5, label=arm)
    if mean.get("shuffled", {}).get("estimate") is not None:
        axes.plot(mean["shuffled"]["estimate"], y, "x", color=GREY, markersize=4.5)
    axes.plot([mean["chance"]] * 2, [row - 0.4, row + 0.4], color=GREY, linewidth=1)


def _score_parts(entry: Measured) -> dict[tuple[str, str], dict]:
    """{(score, part): its mean with interval and chance}, for those that have a mean."""
    scores = entry.measures.get("interp", {}).get("scores", {})
    return {
        (name, part): {**mean, "chance": score["chance"]}
        for name, score in scores.items()
        for part, mean in score["parts"].items()
        if mean["estimate"] is not None
    }


def score_difference(differences: Sequence[dict]) -> Figure | None:
    """For each score: which values become more common among an arm's latents, and the mean differences.

    Between the two panels are the differences within pairs of matched latents, if there are any. differences: as
    `metasae.interp.differences.score_differences` gives them.
    """
    differences = [difference for difference in differences if difference["changes"]]
    if not differences:
        return None
    columns = 3 if any(difference["paired"] for difference in differences) else 2
    figure, all_axes = empty_figure(
        columns, height=0.6 + 3.6 * len(differences), rows=len(differences), width=4 * columns
    )
    for row, difference in enumerate(differences):
        shares, *between, means = all_axes[row * columns : (row + 1) * columns]
        _draw_shares(shares, difference)
        for axes in between:
            _draw_pairs(axes, difference)
        _draw_means(means, difference)
    return figure


def _draw_steps(axes: Axes, shares: Sequence[float], edges: Sequence[float], label: str, arm: str = "") -> None:
    """Draws a histogram as a line, in percent. arm: "" for a null distribution, which is grey."""
    style = {**style_of(arm), "linewidth": 1.8} if arm else {"color": "#aaaaaa", "linewidth": 1.1}
    axes.stairs(100 * np.array(shares), edges, **style, label=label, baseline=None)


def _draw_pairs(axes: Axes, difference: dict) -> None:
    title = "\n".join(
        f"{arm} higher in {100 * pairs['higher'] / pairs['n']:.1f}% of {pairs['n']:,} pairs, "
        f"tied in {100 * pairs['tied'] / pairs['n']:.1f}%"
        for arm, pairs in difference["paired"].items()
    )
    axes.set_title(title or "no matched pairs were scored", fontsize=8, loc="left")
    if not title:
        axes.set_axis_off()
        return
    for arm, pairs in difference["paired"].items():
        _draw_steps(axes, pairs["mirrored"], pairs["edges"], "mirrored")
        _draw_steps(axes, pairs["share"], pairs["edges"], f"{arm} − {difference['baseline']}", arm)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set(xlabel=f"{difference['score']}, a latent minus its match", ylabel="share of pairs (%)")
    draw_grid(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_shares(axes: Axes, difference: dict) -> None:
    edges, baseline = difference["edges"], difference["baseline"]
    for null in difference["null"]:
        _draw_steps(axes, null["change"], edges, f"{baseline} − {baseline}, other seed")
    for arm, change in difference["changes"].items():
        _draw_steps(axes, change, edges, f"{arm} − {baseline}", arm)
    axes.axhline(0, color=GREY, linewidth=1)
    part = "" if difference["part"] == "all" else f", {difference['part'].replace('_', ' ')} silent"
    axes.set(xlabel=f"{difference['score']}{part} (a latent's score)", ylabel="change of the share of latents (pp)")
    judge = f",\nread by {difference['judge']}" if difference["judge"] else ""
    counts = difference["n"].values()
    latents = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    axes.set_title(f"{latents} latents per SAE{judge}", fontsize=8, loc="left")
    draw_grid(axes)
    draw_legend(axes, fontsize=8, loc="lower right")
    axes.margins(y=0.18)


def _draw_means(axes: Axes, difference: dict) -> None:
    rows = difference["rows"]
    for place, row in enumerate(rows):
        colour = GREY if row["kind"] == "null" else style_of(row["arm"])["color"]
        draw_interval(axes, place, row["difference"], row["ci95"], colour, leaves_out_zero(row), 5)
    axes.axvline(0, color=GREY, linewidth=1)
    set_rows(axes, [f"{row['what']}\n({row['n']:,} {row['unit']})" for row in rows], 7)
    # an interval over two seeds may extend beyond the frame rather than flatten everything
    ends = [abs(end) for row in rows if row["kind"] != "seeds" for end in row["ci95"] or ()]
    points = [2 * abs(row["difference"]) for row in rows]
    reach = 1.1 * max(ends + points, default=0.0) or 1.0
    axes.set(xlim=(-reach, reach), xlabel="mean difference, 95% interval")
    axes.locator_params(axis="x", nbins=5)
