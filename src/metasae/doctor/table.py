"""The doctor's report, and its plan for other GPUs, as tables for people."""

from rich import box
from rich.console import Console
from rich.table import Table

from metasae.doctor.fit import setting, size
from metasae.doctor.plan import RESERVE, Plan
from metasae.doctor.report import Report

Row = tuple[str, str, str]


def print_report(report: Report, stderr: bool = False) -> None:
    """Prints the report: what there is, what is needed, how long it takes, and the verdict in the last lines."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for part in (_machine(report), _needs(report), _times(report)):
        for row in part:
            table.add_row(*row)
        table.add_section()
    console = Console(stderr=stderr, highlight=False)
    console.print(table)
    for line in (*(f"Note: {note}." for note in report.notes), *_verdict(report)):
        console.print(line, markup=False, soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """Prints a plan: figures with where each is from, other numbers of GPUs, notes, and the verdict last."""
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


def duration(seconds: float | None) -> str:
    """Seconds in words: 43 s, 12 min, 3.4 h, 2.1 days."""
    if seconds is None:
        return "not known"
    if seconds < 90:
        return f"{seconds:.0f} s"
    for limit, length, unit in ((90, 60, "min"), (48, 3600, "h")):
        if seconds < limit * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


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


def _machine(report: Report) -> list[Row]:
    here, model, room = report.machine, report.model, report.room
    bf16 = "bf16 products" if here.bf16 else "no bf16 products, so fp32"
    limit = ", by the container's limit" if here.limited else ""
    rows = [
        ("processor", f"{here.cores} cores", f"{here.cpu}; {here.threads} threads; {bf16}; torch {here.torch}"),
        ("memory", size(here.available), f"available of {size(here.memory)}{limit}"),
        *[("GPU", size(gpu.free), f"free of {size(gpu.memory)}; {gpu.name}") for gpu in here.gpus],
        ("disk", size(room.cache), "for the activations" + (" and the run" if room.shared else "")),
    ]
    if not room.shared:
        rows.append(("", size(room.run), "for the run"))
    width = f"; d = {model.d}" if model.d else ""
    return [*rows, ("model", size(model.bytes) if model.bytes else "-", f"{model.place or 'not here'}{width}")]


def _needs(report: Report) -> list[Row]:
    needs = report.needs
    if needs is None:
        return []
    there = " (there already)" if report.trials.cached else ""
    kept = f"on disk; an SAE {size(needs.sae)}, a checkpoint {size(needs.checkpoint)}"
    training = f"the larger of train {size(needs.train)} and measure {size(needs.measure)}"
    program = f"program {size(needs.process)}"
    if needs.on_gpu:
        memory = f"{program}, harvest {size(needs.harvest)}, measure {size(needs.measure)}"
    else:
        harvest = size(needs.harvest + needs.forward)
        memory = f"{program}, model {size(needs.model)}, harvest {harvest}, {training}"
    on_gpu = f"model {size(needs.model)}, the larger of a batch {size(needs.forward)} and training {size(needs.train)}"
    rows = [
        ("activations", needs.cache, f"on disk{there}; mapped into memory where there is room"),
        ("run folder", needs.run_folder, kept),
        ("peak memory", needs.memory, memory),
        ("peak GPU memory", needs.gpu, on_gpu),
    ]
    return [(name, size(count), words) for name, count, words in rows if count]


def _times(report: Report) -> list[Row]:
    if not report.stages:
        return []
    rows = [
        (stage.name, duration(stage.seconds), f"{stage.rate:,.0f} tokens/s" if stage.rate else "")
        for stage in report.stages
    ]
    arms, seeds = len(report.recipe.arms), len(report.recipe.seeds)
    runs = f"{arms} arms, {seeds} seed{'s' * (seeds > 1)}, besides some seconds to start and to report"
    return [*rows[:-1], (*rows[-1][:2], "rough"), ("in all", duration(report.seconds), runs)]


def _verdict(report: Report) -> list[str]:
    if report.fits:
        return ["It fits."]
    lines = [f"It cannot run: {problem}" for problem in report.problems]
    lines += [f"It does not fit. {str(short)[0].upper()}{str(short)[1:]}." for short in report.shortages]
    if report.shortages and report.changes:
        lines.append(f"It would fit with: {' '.join(f'--set {setting(change)}' for change in report.changes)}")
        if any(short.resource in ("disk", "disk of the cache") for short in report.shortages):
            lines.append("Or set harvest.cache to a folder on a larger disk.")
    elif report.shortages:
        lines.append("No setting of this recipe would make it fit; it takes a larger machine or a smaller model.")
    return lines
