"""What each arm changes against solo (or another baseline): differences over paired seeds, with intervals, as JSON, Markdown and a table."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metasae import files
from metasae.compare.catalogue import CATALOGUE, GROUPS, Quantity, left_out_of, value_of
from metasae.compare.matched import MATCHED
from metasae.compare.shared_seeds import of_both, seeds_behind
from metasae.compare.verdict import change, towards, write_verdict
from metasae.errors import UserError, nearest
from metasae.intervals.families import adjust
from metasae.intervals.statistics import is_clear, leaves_out_zero, mean_interval, paired_difference
from metasae.recipe.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table

BASELINE = "solo"
ORDER = ("solo", "control", "joint", "sequential")
SAME_FOR_ALL = ("n_tokens", "data", "critic_seed", "senses")
# Alike for all SAEs that were calibrated; those that came with thresholds of their own keep them.
CALIBRATED = ("calibration_tokens", "rule")
ARM_FOLDER = re.compile(r"(?P<arm>.+)-s(?P<seed>\d+)")


@dataclass(frozen=True)
class Measured:
    """The measures.json of one trained SAE. stale: whether auto-interp scores of earlier weights were left out of the measures."""

    arm: str
    seed: int
    folder: Path
    measures: dict
    stale: bool = False


def compare(run_folder: str | Path, baseline: str | None = None) -> dict:
    """Reads arms/*/measures.json, writes compare.json and compare.md, returns what compare.json holds.

    Keys: conditions (the same for all arms), arms {arm: seeds, means, intervals, values, blocks}, pairs {"joint vs solo": {measure: a, b,
    difference, percent, ci95, n_seeds, values ...}}, missing (arms not measured yet), stale (those whose auto-interp is of an earlier SAE
    and is left out), verdict.
    baseline: the arm that the others are compared with; None takes solo, or the first arm where there is none.
    Raises UserError when nothing is measured or the arms were not judged under the same conditions.
    """
    run_folder = Path(run_folder)
    measured, missing = read_measured(run_folder)
    comparison = {
        "run": run_folder.resolve().name,
        "conditions": shared_conditions(measured) | _trained_on(run_folder),
        "arms": _arms(measured),
        "missing": missing,
        "stale": [entry.folder.name for entry in measured if entry.stale],
    }
    comparison["baseline"] = _baseline(comparison["arms"], baseline)
    comparison["pairs"] = _pairs(comparison["arms"], measured, comparison["baseline"])
    comparison["verdict"] = write_verdict(comparison)
    files.write_json(run_folder / "compare.json", comparison)
    files.write_text(run_folder / "compare.md", as_markdown(comparison))
    return comparison


def read_measured(run_folder: Path) -> tuple[list[Measured], list[str]]:
    """(every measured SAE of a run in the order of arms and seeds, the names of arm folders without measures.json)."""
    if not (run_folder / "arms").is_dir():
        raise UserError(f"{run_folder} is not a run folder: it has no arms/; give the --out folder of `metasae run`")
    measured, missing = [], []
    across, interp = (_beside(run_folder / f"{name}.json") for name in ("across", "interp"))
    scored = interp.get("arms", {})
    for folder in sorted((run_folder / "arms").iterdir()):
        name = ARM_FOLDER.fullmatch(folder.name)
        if name is None or not folder.is_dir():
            continue
        if not (folder / "measures.json").is_file():
            missing.append(folder.name)
            continue
        measures = files.read_json(folder / "measures.json")
        if not isinstance(measures, dict) or not isinstance(measures.get("conditions"), dict):
            raise UserError(f"{folder / 'measures.json'} holds no measures; delete it and run again")
        own = scored.get(folder.name, {})
        stale = bool(own) and _of_another(own, measures)
        measures |= across.get(folder.name, {}) | ({} if stale else own)
        measured.append(Measured(name["arm"], int(name["seed"]), folder, measures, stale))
    if not measured:
        raise UserError(f"no arm in {run_folder} is measured yet; run `metasae run` on it to the end first")
    return sorted(measured, key=lambda entry: (_place(entry.arm), entry.seed)), missing


def _trained_on(run_folder: Path) -> dict:
    """How many tokens the arms of a run were trained on, and how many different ones those were; nothing where the folder does not say."""
    recipe, state = run_folder / "recipe.toml", run_folder / "run.json"
    if not (recipe.is_file() and state.is_file()):
        return {}
    different = files.read_json(state).get("stages", {}).get("harvest", {}).get("training_tokens")
    return (
        {}
        if different is None
        else {"training_tokens": Recipe.load(recipe).train.tokens, "different_training_tokens": different}
    )


def _of_another(scored: dict, measures: dict) -> bool:
    """Whether scores are of other weights than the measures. Files of earlier releases do not say."""
    of = scored["interp"].get("conditions", {}).get("of")
    return of is not None and of["sae"] != measures["conditions"].get("sae")


def _beside(path: Path) -> dict:
    """What lies beside the arms where it was worked out: across.json, interp.json."""
    return files.read_json(path) if path.is_file() else {}


def _place(arm: str) -> tuple[int, str]:
    return (ORDER.index(arm) if arm in ORDER else len(ORDER), arm)


def shared_conditions(measured: list[Measured]) -> dict:
    """What all SAEs were judged under. Raises UserError where they were not."""
    calibrated = [entry for entry in measured if entry.measures["conditions"].get("rule") != "own"]
    shared = _alike(measured, SAME_FOR_ALL) | _alike(calibrated or measured, CALIBRATED)
    own = sorted({entry.arm for entry in measured if entry not in calibrated})
    return shared | ({"own_thresholds": own} if calibrated and own else {})


def _alike(entries: list[Measured], keys: tuple[str, ...]) -> dict:
    first = entries[0]
    for other in entries[1:]:
        for key in keys:
            if first.measures["conditions"].get(key) != other.measures["conditions"].get(key):
                raise UserError(
                    f"{first.folder.name} and {other.folder.name} were judged differently ({key}: "
                    f"{first.measures['conditions'].get(key)} and {other.measures['conditions'].get(key)}); measure them again alike"
                )
    return {key: first.measures["conditions"].get(key) for key in keys}


def _arms(measured: list[Measured]) -> dict:
    arms: dict[str, dict] = {}
    for entry in measured:
        arm = arms.setdefault(entry.arm, {"seeds": [], "means": {}, "intervals": {}, "values": {}, "blocks": {}})
        arm["seeds"].append(entry.seed)
        for quantity in CATALOGUE:
            value = value_of(entry.measures, quantity)
            if value is not None:
                arm["values"].setdefault(quantity.key, {})[str(entry.seed)] = value
                blocks = left_out_of(entry.measures, quantity)
                if blocks:
                    arm["blocks"].setdefault(quantity.key, {})[str(entry.seed)] = blocks
    for name, arm in arms.items():
        of_arm = {entry.seed: entry.measures for entry in measured if entry.arm == name}
        found = {
            q.key: mean_interval(_of_all_seeds(arm, q.key), _by_seed(arm["blocks"], q.key), _behind(of_arm, q))
            for q in CATALOGUE
            if q.key in arm["values"]
        }
        arm["means"] = {key: entry.mean for key, entry in found.items()}
        arm["intervals"] = {key: entry.as_dict() for key, entry in found.items()}
    return arms


def _baseline(arms: dict, wanted: str | None) -> str:
    if wanted is not None and wanted not in arms:
        raise UserError(f"no arm '{wanted}' is measured{nearest(wanted, arms)}")
    return wanted or (BASELINE if BASELINE in arms else next(iter(arms)))


def _pairs(arms: dict, measured: list[Measured], baseline: str) -> dict:
    """Every other arm against the baseline; joint first, as it is the question. p-values are adjusted within what speaks of the same."""
    by_arm = {arm: {entry.seed: entry.measures for entry in measured if entry.arm == arm} for arm in arms}
    others = sorted((arm for arm in arms if arm != baseline), key=lambda arm: (arm != "joint", _place(arm)))
    families = {q.key: q.speaks_of if q.main else None for q in CATALOGUE}
    pairs = {}
    for arm in others:
        shared = [q for q in CATALOGUE if q.key in arms[arm]["values"] and q.key in arms[baseline]["values"]]
        between = {q.key: of_both(_behind(by_arm[arm], q), _behind(by_arm[baseline], q)) for q in shared}
        differences = {key: _difference(arms[arm], arms[baseline], key, of) for key, of in between.items()}
        differences |= _matched(by_arm[arm], by_arm[baseline])
        pairs[f"{arm} vs {baseline}"] = {
            key: difference.as_dict() for key, difference in adjust(differences, families).items()
        }
    return pairs


def _matched(a: dict[int, dict], b: dict[int, dict]) -> dict:
    """The measures that exist for two SAEs only; a seed that one arm lacks has none."""
    found = {}
    for key, numbers in MATCHED.items():
        values = {
            seed: numbers(a[seed], b[seed]) if seed in a and seed in b else (None, None)
            for seed in sorted(a.keys() | b.keys())
        }
        if any(None not in pair for pair in values.values()):
            found[key] = paired_difference(
                {seed: pair[0] for seed, pair in values.items()}, {seed: pair[1] for seed, pair in values.items()}
            )
    return found


def _difference(a: dict, b: dict, key: str, between: dict):
    """Where only one arm has values without blocks, neither's count. between: seed -> the seeds that its difference takes."""
    blocks = [_by_seed(arm["blocks"], key) for arm in (a, b)]
    if None in blocks:
        blocks = [None, None]
    return paired_difference(_of_all_seeds(a, key), _of_all_seeds(b, key), *blocks, between)


def _behind(of_arm: dict[int, dict], quantity: Quantity) -> dict[int, frozenset[int] | None]:
    """The seeds that each number of an arm takes. of_arm: seed -> measures."""
    return {
        seed: seeds_behind(measures, quantity, seed)
        for seed, measures in of_arm.items()
        if value_of(measures, quantity) is not None
    }


def _of_all_seeds(arm: dict, key: str) -> dict[int, float | None]:
    """The value of every seed measured, None where it has none, so that this is told."""
    return dict.fromkeys(arm["seeds"]) | _by_seed(arm["values"], key)


def _by_seed(table: dict, key: str) -> dict | None:
    return {int(seed): value for seed, value in table[key].items()} if key in table else None


def as_markdown(comparison: dict) -> str:
    """compare.md: verdict, conditions, and one table per group and pair."""
    lines = [f"# Comparison: {comparison['run']}", "", comparison["verdict"], "", conditions_line(comparison), ""]
    if comparison["missing"]:
        lines += [f"Not measured yet: {', '.join(comparison['missing'])}.", ""]
    if comparison["stale"]:
        lines += [
            f"Left out, as it is of an earlier SAE: the auto-interp of {', '.join(comparison['stale'])}; run `metasae interp` again.",
            "",
        ]
    for name, pair in comparison["pairs"].items():
        a, b = name.split(" vs ")
        for group, title in GROUPS.items():
            quantities = [q for q in CATALOGUE if q.group == group and q.key in pair]
            if not quantities:
                continue
            lines += [f"## {title}: {name}", "", conditions_line(comparison, (a, b)), ""]
            lines += [
                f"| measure | better | {b} | {a} | change, 95% interval | seeds | |",
                "|---|---|---:|---:|---:|---:|---|",
            ]
            for q in quantities:
                entry = pair[q.key]
                label = q.label.replace("|", "\\|")
                cells = (
                    label,
                    q.better or "",
                    number(entry["b"]),
                    number(entry["a"]),
                    change(q, entry),
                    str(entry["n_seeds"]),
                    reading(q, entry),
                )
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
    lines += [
        "Percentages are of the baseline's mean, whose own error is in their interval; pp is a hundredth of the measure's own unit. "
        "Intervals are over paired seeds, the unit being a trained SAE, and over blocks of documents where the measure looks at text.",
        "",
    ]
    return "\n".join(lines)


def conditions_line(comparison: dict, arms: tuple[str, ...] | None = None) -> str:
    """Tokens, seeds and realised L0 that every number below rests on."""
    shown = []
    for arm in arms or tuple(comparison["arms"]):
        entry = comparison["arms"][arm]
        l0 = entry["means"].get("fidelity.l0")
        seeds = ", ".join(map(str, entry["seeds"]))
        shown.append(
            f"{arm}: seed{'s' if len(entry['seeds']) > 1 else ''} {seeds}"
            + (f", realised L0 {l0:.2f}" if l0 is not None else "")
        )
    conditions = comparison["conditions"]
    tokens = f"{conditions['n_tokens']:,} evaluation tokens, thresholds from {conditions['calibration_tokens']:,} calibration tokens"
    own = (
        f" (thresholds of their own: {', '.join(conditions['own_thresholds'])})"
        if "own_thresholds" in conditions
        else ""
    )
    return f"{_training(conditions)}{tokens} by `{conditions['rule']}`{own}; {'; '.join(shown)}."


def _training(conditions: dict) -> str:
    """The training tokens of every arm, and how often each was read where there are fewer of them; nothing where that is not known."""
    tokens, different = (conditions.get(key) for key in ("training_tokens", "different_training_tokens"))
    if not different:
        return ""
    again = f", {different:,} different ones read {tokens / different:.3g} times" if different < tokens else ""
    return f"{tokens:,} training tokens{again}; "


def reading(quantity, entry: dict) -> str:
    """What a row says: `more atomic`, `less faithful (1 seed)`, `unclear` ..., "" for a plain description."""
    direction = towards(quantity, entry)
    if not direction:
        return ""
    if direction == "same":
        return "no change"
    words = {"atomicity": "atomic", "fidelity": "faithful", "explanation": "explainable"}[quantity.speaks_of]
    if is_clear(entry):
        return f"{'more' if direction == 'better' else 'less'} {words}"
    if entry["ci95"] is None:
        return entry["note"]
    return (
        f"{'more' if direction == 'better' else 'less'} {words}, not after Holm"
        if leaves_out_zero(entry)
        else "interval includes 0"
    )


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; - for none."""
    return "-" if value is None else f"{value:.{digits}g}"


def summary_table(comparison: dict) -> "Table":
    """The main measures, each arm's mean over its seeds, and the change of joint (or the first other arm) against solo.

    Fits 80 columns with three arms. A change is green where clearly better, red where clearly worse.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    arms, pairs = comparison["arms"], comparison["pairs"]
    pair_name = next(iter(pairs), None)
    seeds = ", ".join(f"{arm} {len(entry['seeds'])}" for arm, entry in arms.items())
    title = escape(f"{comparison['run']}: {comparison['conditions']['n_tokens']:,} held-out tokens; seeds: {seeds}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure", no_wrap=True)
    for arm in arms:
        table.add_column(escape(arm), justify="right", no_wrap=True)
    if pair_name:
        table.add_column(escape(pair_name), justify="right", no_wrap=True)
    for quantity in CATALOGUE:
        if not quantity.main or not any(quantity.key in entry["means"] for entry in arms.values()):
            continue
        row = [quantity.label, *(number(entry["means"].get(quantity.key), 3) for entry in arms.values())]
        if pair_name:
            entry = pairs[pair_name].get(quantity.key)
            row.append(Text(change(quantity, entry), style=_colour(quantity, entry)) if entry else "-")
        table.add_row(*row)
    table.caption = "95% intervals over paired seeds and document blocks; green clearly better, red clearly worse"
    return table


def _colour(quantity, entry: dict) -> str:
    return {"better": "green", "worse": "red"}.get(towards(quantity, entry), "") if is_clear(entry) else ""
