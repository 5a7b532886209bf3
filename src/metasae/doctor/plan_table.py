"""A plan as tables for people."""

from metasae.doctor.figures import Figure, rates_of
from metasae.doctor.fit import size
from metasae.doctor.plan import Plan
from metasae.doctor.setup import RESERVE, Span
from metasae.doctor.table import duration


def print_plan(plan: Plan) -> None:
    """Prints a plan: figures with where each is from, the parts of a step, other numbers of GPUs, and the verdict last."""
    from rich.console import Console

    console = Console(highlight=False)
    for table in (_figures(plan), _parts(plan), _others(plan)):
        console.print(table)
    for line in (*(f"Note: {note}." for note in plan.notes), *_verdict(plan)):
        console.print(line, markup=False, soft_wrap=True)


def shown(figure: Figure) -> str:
    """A figure's value in words; a pair as `least to most`."""
    return (
        "not known"
        if figure.value is None
        else span(figure.value if isinstance(figure.value, tuple) else (figure.value,), figure.unit)
    )


def span(values: Span | tuple[float], unit: str) -> str:
    """Numbers of a unit in words, `least to most` where they differ."""
    words = [_in_words(value, unit) for value in values]
    return " to ".join(dict.fromkeys(words))


def _in_words(value: float, unit: str) -> str:
    if unit == "s":
        return duration(value) if value >= 10 else f"{value:.2g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if unit == "tokens/s":
        return (
            f"{value / 1e6:.3g}M/s" if value >= 1e6 else f"{value / 1e3:,.0f}k/s" if value >= 1e4 else f"{value:,.0f}/s"
        )
    return size(value) + "/s" * (unit == "bytes/s")


def _figures(plan: Plan):
    table = _table(f"{plan.setup.gpus} x {plan.setup.card.name}")
    for heading, options in (
        ("", {"no_wrap": True}),
        ("", {"justify": "right", "no_wrap": True}),
        ("from", {"no_wrap": True}),
        ("", {}),
    ):
        table.add_column(heading, **options)
    for name, figure in plan.figures.items():
        table.add_row(name, shown(figure), figure.origin, figure.says)
    return table


def _parts(plan: Plan):
    setup, arm = plan.setup, plan.setup.arm
    table = _table(f"the {arm} step on one rank, at least")
    for heading in ("", "GFLOP", "MB", "ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for part in setup.parts(arm):
        row = (part.products / 1e9, part.moved / 1e6, 1e3 * part.floor(setup.card, setup.width))
        table.add_row(part.name, *(f"{number:,.3g}" if number < 1000 else f"{number:,.0f}" for number in row))
    if setup.gpus > 1:
        table.add_row("sending", "", f"{setup.sent(arm) / 1e6:,.3g}", f"{1e3 * setup.step(arm).sending:,.3g}")
    return table


def _others(plan: Plan):
    table, arm = _table("on so many GPUs"), plan.setup.arm
    for heading in ("GPUs", "first rank", "fits", f"{arm} step", "tokens/s"):
        table.add_column(heading, justify="right")
    for gpus, other in plan.others.items():
        times, rates = span(other.step(arm).span, "s"), span(rates_of(other, arm), "tokens/s")
        table.add_row(str(gpus), size(other.memory.first), "yes" if other.fits else "no", times, rates)
    return table


def _table(title: str):
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")


def _verdict(plan: Plan) -> list[str]:
    setup = plan.setup
    there = f"{size(setup.memory.first)} and {size(RESERVE)} in reserve, of the {size(setup.card.memory)} of one {setup.card.name}"
    slow = f"{setup.efficiency:g} of those rates, every gathered row from memory"
    return [
        f"Times run from the floor at the datasheet's rates to a slow end: {slow}. Nothing was measured; kernel launches are not counted.",
        f"{'It fits' if setup.fits else 'It does not fit'}: {there}.",
    ]
