"""The figures of auto-interp scores: the scores of every arm, and what differs between arms."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metasae.report.figures import arms_of, empty_figure, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metasae.compare.compare import Measured


def interp_scores(measured: Sequence["Measured"]) -> "Figure | None":
    """Every auto-interp score's mean over an arm's latents with its interval, one mark per seed; beside it chance and shuffled explanations."""
    rows = list(dict.fromkeys(row for entry in measured for row in _score_parts(entry)))
    if not rows:
        return None
    figure, (axes,) = empty_figure(1, height=1.2 + 0.42 * len(rows))
    arms, named = arms_of(measured), set()
    for entry in measured:
        colour, _ = style_of(entry.arm)
        own = [other.seed for other in measured if other.arm == entry.arm]
        offset = 0.56 * ((arms.index(entry.arm) + (own.index(entry.seed) + 0.5) / len(own)) / len(arms) - 0.5)
        for (score, part), found in _score_parts(entry).items():
            row = rows.index((score, part)) + offset
            if found["ci95"]:
                axes.plot(found["ci95"], [row, row], color=colour, linewidth=1.4, alpha=0.6, solid_capstyle="butt")
            axes.plot(
                found["estimate"],
                row,
                "o",
                color=colour,
                markersize=4.5,
                label=entry.arm if entry.arm not in named else None,
            )
            named.add(entry.arm)
            if found.get("shuffled", {}).get("estimate") is not None:
                axes.plot(found["shuffled"]["estimate"], row, "x", color="#888888", markersize=4.5)
            chance = entry.measures["interp"]["scores"][score]["chance"]
            axes.plot(
                [chance, chance],
                [rows.index((score, part)) - 0.4, rows.index((score, part)) + 0.4],
                color="#888888",
                linewidth=1,
            )
    axes.plot([], [], "x", color="#888888", label="shuffled explanations")
    axes.plot([], [], color="#888888", linewidth=1, label="chance")
    axes.set_yticks(range(len(rows)), [f"{score}, {part}" if part != "all" else score for score, part in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("score (mean over latents, 95% interval over latents)")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    figure.legend(frameon=False, fontsize=9, loc="outside upper right", ncols=len(arms) + 2)
    return figure


def _score_parts(entry: "Measured") -> dict[tuple[str, str], dict]:
    """(score, part) -> its mean with the interval, of those that have one."""
    scores = entry.measures.get("interp", {}).get("scores", {})
    return {
        (score, part): found
        for score, one in scores.items()
        for part, found in one["parts"].items()
        if found["estimate"] is not None
    }


def score_difference(found: Sequence[dict]) -> "Figure | None":
    """Per score: which scores become more common among an arm's latents, differences within pairs of matched latents where there are any, and
    the mean differences. found: as `score_differences` gives it."""
    found = [entry for entry in found if entry["changes"]]
    if not found:
        return None
    columns = 3 if any(entry["paired"] for entry in found) else 2
    figure, panels = empty_figure(columns, height=0.6 + 3.6 * len(found), rows=len(found), width=4 * columns)
    for number, entry in enumerate(found):
        shares, *between, means = panels[number * columns : (number + 1) * columns]
        _draw_shares(shares, entry)
        for axes in between:
            _draw_pairs(axes, entry)
        _draw_means(means, entry)
    return figure


def _draw_pairs(axes: "Axes", entry: dict) -> None:
    told = []
    for arm, pairs in entry["paired"].items():
        colour, line = style_of(arm)
        axes.stairs(
            100 * np.array(pairs["mirrored"]),
            pairs["edges"],
            color="#aaaaaa",
            linewidth=1.1,
            label="mirrored",
            baseline=None,
        )
        label = f"{arm} − {entry['baseline']}"
        axes.stairs(
            100 * np.array(pairs["share"]),
            pairs["edges"],
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=label,
            baseline=None,
        )
        higher, tied = (100 * pairs[which] / pairs["n"] for which in ("higher", "tied"))
        told.append(f"{arm} higher in {higher:.1f}% of {pairs['n']:,} pairs, tied in {tied:.1f}%")
    if not told:
        axes.set_axis_off()
        axes.set_title("no matched pairs were scored", fontsize=8, loc="left")
        return
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_xlabel(f"{entry['score']}, a latent less its match")
    axes.set_ylabel("share of pairs (%)")
    axes.set_title("\n".join(told), fontsize=8, loc="left")
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_shares(axes: "Axes", entry: dict) -> None:
    edges, part = entry["edges"], "" if entry["part"] == "all" else f", {entry['part'].replace('_', ' ')} silent"
    for number, null in enumerate(entry["null"]):
        label = f"{entry['baseline']} − {entry['baseline']}, other seed" if not number else None
        axes.stairs(100 * np.array(null["change"]), edges, color="#aaaaaa", linewidth=1.1, label=label, baseline=None)
    for arm, change in entry["changes"].items():
        colour, line = style_of(arm)
        axes.stairs(
            100 * np.array(change),
            edges,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=f"{arm} − {entry['baseline']}",
            baseline=None,
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xlabel(f"{entry['score']}{part} (a latent's score)")
    axes.set_ylabel("change of the share of latents (pp)")
    judge = f",\nread by {entry['judge']}" if entry["judge"] else ""
    counts = sorted(set(entry["n"].values()))
    told = f"{counts[0]:,} to {counts[-1]:,}" if len(counts) > 1 else f"{counts[0]:,}"
    axes.set_title(f"{told} latents per SAE{judge}", fontsize=8, loc="left")
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.margins(y=0.18)


def _draw_means(axes: "Axes", entry: dict) -> None:
    rows = entry["rows"]
    for place, row in enumerate(rows):
        colour = "#888888" if row["kind"] == "null" else style_of(row["arm"])[0]
        if row["ci95"] is not None:
            axes.plot(row["ci95"], [place, place], color=colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt")
        clear = row["ci95"] is not None and not row["ci95"][0] <= 0 <= row["ci95"][1]
        axes.plot(
            row["difference"], place, "o", color=colour, markersize=5, markerfacecolor=colour if clear else "white"
        )
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['what']}\n({row['n']:,} {row['unit']})" for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # an interval over two seeds may run out of the frame rather than flatten everything
    ends = [abs(end) for row in rows if row["kind"] != "seeds" for end in row["ci95"] or ()] + [
        2 * abs(row["difference"]) for row in rows
    ]
    reach = 1.1 * max(ends, default=0.0) or 1.0
    axes.set_xlim(-reach, reach)
    axes.set_xlabel("mean difference, 95% interval")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
