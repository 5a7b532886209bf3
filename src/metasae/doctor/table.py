"""The doctor's report, and its plan for other GPUs, as tables for people."""

from rich import box
from rich.console import Console
from rich.table import Column, Table

from metasae.doctor.fit import Shortage, setting, size
from metasae.doctor.gpus import RESERVE, GpuPlan

Row = tuple[str, str, str]


def print_report(report: dict, stderr: bool = False) -> None:
    """Prints the report: what the machine has, what the run needs, how long it takes, and the verdict in the last
    lines.
    """
    columns = Column(no_wrap=True), Column(justify="right", no_wrap=True), Column()
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    for part in (_machine(report), _needs(report), _times(report)):
        for row in part:
            table.add_row(*row)
        table.add_section()
    console = Console(stderr=stderr, highlight=False, emoji=False)
    console.print(table)
    lines = [*(f"Note: {note}." for note in report["notes"]), *_verdict(report)]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def print_plan(plan: GpuPlan) -> None:
    """Prints a plan: its numbers with their origin, other numbers of GPUs, notes, and the verdict last."""
    facts, console, card = plan.as_dict(), Console(highlight=False, emoji=False), plan.card
    style = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "title_justify": "left"}
    figures = Table("", "", "from", "", title=f"{plan.gpus} x {card.name}", **style)
    for name, figure in facts["figures"].items():
        figures.add_row(name, shown(figure["value"], figure["unit"]), figure["origin"], figure["says"])
    scaling = Table(
        "GPUs", "first rank", "fits", f"{plan.arm} step", "tokens/s", title="on other numbers of GPUs", **style
    )
    for row in facts["scaling"]:
        step, rates = shown((row["floor"], row["slow"]), "s"), shown(row["tokens"], "tokens/s")
        scaling.add_row(str(row["gpus"]), size(row["first_rank"]), "yes" if row["fits"] else "no", step, rates)
    console.print(figures, scaling)
    slow = f"{plan.efficiency:g} of those rates, with every gathered row read from memory"
    there = f"{size(plan.needs.gpu)} and {size(RESERVE)} in reserve, of the {size(card.memory)} of one {card.name}"
    lines = [
        *(f"Note: {note}." for note in facts["notes"]),
        f"Times go from the least time at the datasheet's rates to the slowest: {slow}. "
        "Nothing was measured; kernel launches are not counted.",
        f"{'It fits' if plan.fits else 'It does not fit'}: {there}.",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


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
    """A number in words; a pair of different numbers as `least to most`."""
    if value is None:
        return "not known"
    words = [_in_words(number, unit) for number in (value if isinstance(value, tuple) else (value,))]
    return " to ".join(dict.fromkeys(words))


def _in_words(value: float, unit: str) -> str:
    if unit == "s":
        return duration(value) if value >= 1 else f"{1e3 * value:,.3g} ms"
    return f"{value:,.0f}/s" if unit == "tokens/s" else size(value)


def _machine(report: dict) -> list[Row]:
    here, model, room = report["machine"], report["model"], report["room"]
    bf16 = "bf16 products" if here["bf16"] else "no bf16 products, so fp32"
    limit = ", by the container's limit" if here["limited"] else ""
    processor = f"{here['cpu']}; {here['threads']} threads; {bf16}; torch {here['torch']}"
    rows = [
        ("processor", f"{here['cores']} cores", processor),
        ("memory", size(here["available"]), f"available of {size(here['memory'])}{limit}"),
        *[("GPU", size(gpu["free"]), f"free of {size(gpu['memory'])}; {gpu['name']}") for gpu in here["gpus"]],
        ("disk", size(room["cache"]), "for the activations" + (" and the run" if room["shared"] else "")),
    ]
    if not room["shared"]:
        rows.append(("", size(room["run"]), "for the run"))
    width = f"; d = {model['d']}" if model["d"] else ""
    weights = size(model["bytes"]) if model["bytes"] else "-"
    return [*rows, ("model", weights, f"{model['place'] or 'not on this machine'}{width}")]


def _needs(report: dict) -> list[Row]:
    needs = report["needs"]
    if needs is None:
        return []
    sizes = {name: size(count) for name, count in needs.items()}
    there = " (exists already)" if report["cached"] else ""
    training = f"the larger of train {sizes['train']} and measure {sizes['measure']}"
    program = f"program {sizes['process']}"
    if needs["on_gpu"]:
        memory = f"{program}, harvest {sizes['harvest']}, measure {sizes['measure']}"
    else:
        harvest = size(needs["harvest"] + needs["forward"])
        memory = f"{program}, model {sizes['model']}, harvest {harvest}, {training}"
    on_gpu = f"model {sizes['model']}, the larger of a batch {sizes['forward']} and training {sizes['train']}"
    rows = [
        ("activations", "cache", f"on disk{there}; mapped into memory if there is room"),
        ("run folder", "run_folder", f"on disk; an SAE {sizes['sae']}, a checkpoint {sizes['checkpoint']}"),
        ("peak memory", "memory", memory),
        ("peak GPU memory", "gpu", on_gpu),
    ]
    return [(name, sizes[key], words) for name, key, words in rows if needs[key]]


def _times(report: dict) -> list[Row]:
    if not report["stages"]:
        return []
    rows = [
        (stage["name"], duration(stage["seconds"]), f"{stage['rate']:,.0f} tokens/s" if stage["rate"] else "")
        for stage in report["stages"]
    ]
    arms, seeds = len(report["trials"]["arms"]), report["seeds"]
    runs = f"{arms} arms, {seeds} seed{'s' * (seeds > 1)}, without the seconds to start and to report"
    return [*rows[:-1], (*rows[-1][:2], "rough"), ("in all", duration(report["seconds"]), runs)]


def _verdict(report: dict) -> list[str]:
    if report["fits"]:
        return ["It fits."]
    shortages = [Shortage(**short) for short in report["shortages"]]
    lines = [f"It cannot run: {problem}" for problem in report["problems"]]
    lines += [f"It does not fit. {str(short)[0].upper()}{str(short)[1:]}." for short in shortages]
    if shortages and report["changes"]:
        settings = " ".join(f"--set {setting(change)}" for change in report["changes"].items())
        lines.append(f"It would fit with: {settings}")
        if any(short.resource in ("disk", "disk of the cache") for short in shortages):
            lines.append("Or set harvest.cache to a folder on a larger disk.")
    elif shortages:
        lines.append("No setting of this recipe makes it fit; use a larger machine or a smaller model.")
    return lines
