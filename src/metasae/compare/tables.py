"""A comparison as tables: compare.md for reading, the summary that is printed, and how templates are filled.

The templates (jinja2) are files beside the code that fills them.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from metasae.compare.catalogue import (
    CATALOGUE,
    Pair,
    Quantity,
    by_pair,
    change,
    grouped,
    is_established,
    named_side,
    number,
    reading,
)


def fill(template: Path, **values: object) -> str:
    """Fills a template with values; they are escaped if the template is HTML."""
    return _environment(template.parent).get_template(template.name).render(**values)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {
        "change": change,
        "grouped": grouped,
        "is_established": is_established,
        "named_side": named_side,
        "number": number,
        "reading": reading,
    }
    return environment


def as_markdown(comparison: dict) -> str:
    """compare.md: verdict, conditions, and one table per group and pair."""
    return fill(
        Path(__file__).with_name("compare.md"),
        comparison=comparison,
        pairs=by_pair(comparison["pairs"]),
        conditions_line=conditions_line,
    )


def conditions_line(comparison: dict, pair: Pair | None = None) -> str:
    """One line with the tokens, seeds and realised L0 behind the numbers. pair: name its two arms; None names all arms,
    the model and the text.
    """
    conditions = comparison["conditions"]
    trained, different = (conditions.get(key) for key in ("training_tokens", "different_training_tokens"))
    training = f"{trained:,} training tokens" if different else ""
    if different and different < trained:
        training += f" ({different:,} different ones, each read {trained / different:.3g} times)"
    if conditions.get("spikes"):
        training += f", with {conditions['spikes']:,} spike-ins (held-out text has none)"
    sources = "" if pair else "".join(f" {line}" for line in source_lines(conditions))
    own = ", ".join(conditions.get("own_thresholds", ()))
    arms = [_arm(name, comparison["arms"][name]) for name in pair or comparison["arms"]]
    return (
        f"{training and training + '; '}{conditions['n_tokens']:,} evaluation tokens, "
        f"thresholds from {conditions['calibration_tokens']:,} calibration tokens by `{conditions['rule']}`"
        f"{own and f' (thresholds of their own: {own})'}; {'; '.join(arms)}.{sources}"
    )


def source_lines(conditions: dict) -> list[str]:
    """Sentences on the model, the text and the tokens left out, as far as known; then on SAEs that miss the L0 that was
    asked for, and on each SAE that was trained under other conditions than it is measured under.
    """
    named = (("Model", "model"), ("Text", "text"), ("Left out of training and measuring", "left_out"))
    otherwise = conditions.get("trained_otherwise", {})
    missed = [f"{label} {l0:.3g} (k {k:g})" for label, (l0, k) in conditions.get("missed_l0", {}).items()]
    return [
        *(f"{name}: {conditions[key]}." for name, key in named if conditions.get(key)),
        *([f"L0 misses k by more than a tenth: {', '.join(missed)}."] if missed else []),
        *(f"{trained_otherwise(label, different)}." for label, different in otherwise.items()),
    ]


def trained_otherwise(label: str, different: dict[str, list]) -> str:
    """One line on an SAE that was trained under other conditions than it is measured under. different: {condition: [in
    training, in measuring]}.
    """
    pairs = (f"{key} {_shown(there)} in training, {_shown(here)} here" for key, (there, here) in different.items())
    return f"{label} was trained under other conditions than it is measured under: {'; '.join(pairs)}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _arm(name: str, arm: dict) -> str:
    l0 = arm["means"].get("fidelity.l0")
    realised = "" if l0 is None else f", realised L0 {l0:.2f}"
    return f"{name}: seed{'s' if len(arm['seeds']) > 1 else ''} {', '.join(map(str, arm['seeds']))}{realised}"


def summary_table(comparison: dict) -> Table:
    """The table of main measures: each arm's mean over its seeds, and the change of joint (or the first other arm)
    against solo.

    Fits 80 columns with three arms. A change is green if clearly better, red if clearly worse.
    """
    arms = comparison["arms"]
    first_pair = dict(list(comparison["pairs"].items())[:1])
    seeds = ", ".join(f"{name} {len(arm['seeds'])}" for name, arm in arms.items())
    title = escape(f"{comparison['run']}: {comparison['conditions']['n_tokens']:,} held-out tokens; seeds: {seeds}")
    caption = "95% intervals over paired seeds and document blocks; green clearly better, red clearly worse"
    table = Table(title=title, caption=caption, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure", no_wrap=True)
    for name in (*arms, *first_pair):
        table.add_column(escape(name), justify="right", no_wrap=True)
    for q in CATALOGUE:
        means = [arm["means"].get(q.key) for arm in arms.values()]
        if q.main and any(mean is not None for mean in means):
            changes = [_coloured(q, entries.get(q.key), comparison) for entries in first_pair.values()]
            table.add_row(q.label, *(number(mean, 3) for mean in means), *changes)
    return table


def _coloured(quantity: Quantity, entry: dict | None, comparison: dict) -> Text:
    if entry is None:
        return Text("-")
    colours = {"better": "green", "worse": "red"}
    side = named_side(quantity, entry, comparison["trained"]["enough"])
    return Text(change(quantity, entry), colours.get(side, ""))
