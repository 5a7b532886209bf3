"""A plan as tables for people."""

from metasae.doctor.fit import size
from metasae.doctor.plan import RESERVE, Plan
from metasae.doctor.table import duration


def print_plan(plan: Plan) -> None:
    """Prints a plan: figures with where each is from, other numbers of GPUs, notes, and the verdict last."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    facts, console, card = plan.as_dict(), Console(highlight=False), plan.card
    style = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "title_justify": "left"}
    figures = Table("", "", "from", "", title=f"{plan.gpus} x {card.name}", **style)
    for name, figure in facts["figures"].items():
        figures.add_row(name, shown(figure["value"], figure["unit"]), figure["origin"], figure["says"])
    scaling = Table("GPUs", "first rank", "fits", f"{plan.arm} step", "tokens/s", title="on so many GPUs", **style)
    for row in facts["scaling"]:
        step, rates = shown((row["floor"], row["slow"]), "s"), shown(row["tokens"], "tokens/s")
        scaling.add_row(str(row["gpus"]), size(row["first_rank"]), "yes" if row["fits"] else "no", step, rates)
    console.print(figures, scaling)
    slow = f"{plan.efficiency:g} of those rates, every gathered row from memory"
    there = f"{size(plan.needs.gpu)} and {size(RESERVE)} in reserve, of the {size(card.memory)} of one {card.name}"
    lines = [
        *(f"Note: {note}." for note in facts["notes"]),
        f"Times run from the floor at the datasheet's rates to a slow end: {slow}. "
        "Nothing was measured; kernel launches are not counted.",
        f"{'It fits' if plan.fits else 'It does not fit'}: {there}.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def shown(value: float | tuple[float, float] | None, unit: str) -> str:
    """A figure's value in words: `least to most` where it is a pair that differs."""
    if value is None:
        return "not known"
    words = [_in_words(number, unit) for number in (value if isinstance(value, tuple) else (value,))]
    return " to ".join(dict.fromkeys(words))


def _in_words(value: float, unit: str) -> str:
    if unit == "s":
        return duration(value) if value >= 1 else f"{1e3 * value:,.3g} ms"
    return f"{value:,.0f}/s" if unit == "tokens/s" else size(value)
