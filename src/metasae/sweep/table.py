"""sweep.md: the paper's table with intervals, the measures that no known case fools, and what is at equal FVU."""

from collections.abc import Sequence

from metasae.compare.catalogue import ROBUST, change
from metasae.intervals.statistics import is_clear
from metasae.sweep.folder import DONE, FAILED, STOPPED
from metasae.sweep.plan import QUANTITIES
from metasae.sweep.results import OUTPUT, PAPER

FIGURES = {"pareto": "Objectives and their front", "dose-response": "Change over the penalty's strength"}
OVER = "95% interval over paired seeds, and document blocks where the measure has them"
BOLD = (
    "Bold: clear after Holm's correction among the main measures of the cell. The intervals are those of each cell by "
    "itself: of many cells some look clear by chance, so choose here and confirm on new seeds (best.toml)."
)
FRONT = (
    "Front: no other cell is at least as good in every objective and better in one, by the means over seeds. Nearest "
    "to the ideal: each objective scaled to the front's range. It is where to look first, not a finding."
)
READING = (
    "Read off each kind's curve over k, linear in ln FVU, seed by seed. Reading: how far off it was, at most, where an "
    "inner k was left out and read off its neighbours. An estimate: the gaps that are read over here are narrower, but "
    "a curve may bend between two k."
)


def columns(result: dict) -> list[str]:
    """The measures shown: the paper's, the robust ones, and the objectives, each where any cell has it."""
    known = {key for cell in result["cells"] for key in cell["differences"]}
    output = [key for key in OUTPUT if key in known][:1]
    return [key for key in dict.fromkeys([*PAPER, *output, *ROBUST, *result["objectives"]]) if key in known]


def as_markdown(result: dict, drawn: Sequence[str] = ()) -> str:
    """drawn: names of the figures that were drawn."""
    shown, settings = columns(result), result["settings"]
    lines = [f"# Sweep: {result['title']}", "", _summary(result), ""]
    lines += [f"Change of {result['subject']} against {result['baseline']}, {OVER}.", ""]
    head = [*settings, *map(_label, shown), "seeds", ""]
    lines += [_row(head), _row(["---:"] * (len(head) - 1) + ["---"])]
    for cell in result["cells"]:
        values = [cell["setting"].get(key) for key in settings]
        own = ["" if value is None else str(value) for value in values]
        lines.append(_row([*own, *_changes(cell, shown), str(len(cell["seeds"])), _remark(cell)]))
    lines += ["", BOLD, *([FRONT] if result["front"] else []), ""]
    if result["equal_fvu"]:
        lines += [*_equal_fvu(result["equal_fvu"], shown), ""]
    figures = [f"![{title}](figures/{name}.png)\n" for name, title in FIGURES.items() if name in drawn]
    return "\n".join([*lines, *_time(result["time"]), "", *figures])


def _summary(result: dict) -> str:
    states = [cell["state"] for cell in result["cells"]]
    words = {DONE: "done", STOPPED: "stopped early", FAILED: "failed"}
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)
    seeds = ", ".join(map(str, result["seeds"]))
    return f"{len(states)} cells ({counts}); seeds {seeds}; objectives: {', '.join(result['objectives'])}."


def _changes(cell: dict, shown: list[str]) -> list[str]:
    texts = []
    for key in shown:
        entry = cell["differences"].get(key)
        clear = entry is not None and entry.get("p_holm") is not None and is_clear(entry)
        text = _change(entry, key)
        texts.append(f"**{text}**" if clear else text)
    return texts


def _remark(cell: dict) -> str:
    if cell["state"] != DONE:
        return f"{cell['state']}: {cell['why']}".replace("|", "\\|")
    return "front, nearest to the ideal" if cell["best"] else "front" if cell["on_front"] else cell["why"]


def _equal_fvu(result: dict, shown: list[str]) -> list[str]:
    target, sign = result["target"], "target - curve" if result["baseline"] == "curve" else "curve - target"
    lines = [
        f"## At the FVU of {target['kind']} with k = {target['k']}",
        "",
        READING,
        "",
        f"Differences are {sign}.",
        "",
    ]
    keys = [key for key in dict.fromkeys([*shown, "fidelity.l0"]) if key != "fidelity.fvu"]
    lines += [_row(["kind", "k trained", *map(_label, keys)]), _row(["---", "---", *["---:"] * len(keys)])]
    for kind, rows in result["kinds"].items():
        ks = [k for k in result["k"][kind] if (kind, k) != (target["kind"], target["k"])]
        name = f"{kind}'s own curve: the error of reading" if kind == target["kind"] else kind
        lines.append(_row([name, ", ".join(map(str, ks)), *(_read_off(rows.get(key), key) for key in keys)]))
    if any(result["equal_k"].values()):
        lines += ["", *_equal_k(result, shown)]
    return [*lines, "", *(f"{kind or 'a cell'} is not done: {why}" for kind, why in result["not_done"].items())]


def _equal_k(result: dict, shown: list[str]) -> list[str]:
    keys = list(dict.fromkeys([*shown, "fidelity.l0"]))
    title = f"## Against {result['target']['kind']} with the same k"
    lines = [title, "", "What is left when k, which moves every measure, is the same.", ""]
    lines += [_row(["kind", "k", *map(_label, keys)]), _row(["---", "---:", *["---:"] * len(keys)])]
    for kind, by_k in result["equal_k"].items():
        lines += [_row([kind, k, *(_change(rows.get(key), key) for key in keys)]) for k, rows in by_k.items()]
    return lines


def _read_off(entry: dict | None, key: str) -> str:
    if entry is None:
        return "-"
    if entry["difference"] is None:
        return "FVU not reached"
    return f"{_change(entry, key)}{_reading(entry, QUANTITIES[key].relative)}, {entry['n_seeds']} seeds"


def _reading(entry: dict, relative: bool) -> str:
    """The error of reading in the unit of the change."""
    error, baseline = entry["interpolation_error"], entry["b"]
    if error is None or (relative and not baseline):
        return ""
    return f" (reading ± {100 * error / abs(baseline):.2g}%)" if relative else f" (reading ± {100 * error:.2g} pp)"


def _time(time: dict) -> list[str]:
    if not time["steps"]:
        return []
    memory = "" if time["peak_memory_gib"] is None else f"; peak memory of a worker {time['peak_memory_gib']:.1f} GiB"
    return [
        f"{time['saes']} SAEs trained by {time['workers']} workers: {time['steps']:.0f} s of training steps, "
        f"{time['measure']:.0f} s of measuring, {time['whole']:.0f} s in all (harvest {time['harvest']:.0f} s), "
        f"{100 * time['overhead']:+.0f}% on the steps{memory}."
    ]


def _label(key: str) -> str:
    return QUANTITIES[key].label.replace("|", "\\|")


def _change(entry: dict | None, key: str) -> str:
    return "-" if entry is None else change(QUANTITIES[key], entry)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
