"""The doctor's report as a table for people."""

from metasae.doctor.fit import shown, size
from metasae.doctor.report import Report, Stage


def print_report(report: Report, stderr: bool = False) -> None:
    """Prints the report: what there is, what is needed, how long it takes, and the verdict in the last lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

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
    for note in report.notes:
        console.print(f"Note: {note}.", markup=False, soft_wrap=True)
    for line in _verdict(report):
        console.print(line, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds in words: 43 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    for limit, length, unit in ((90, 60, "min"), (48, 3600, "h")):
        if seconds < limit * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def _machine(report: Report) -> list[tuple[str, str, str]]:
    here, model = report.machine, report.model
    bf16 = "bf16 products" if here.bf16 else "no bf16 products, so fp32"
    limit = ", by the container's limit" if here.limited else ""
    return [
        ("processor", f"{here.cores} cores", f"{here.cpu}; {here.threads} threads; {bf16}; torch {here.torch}"),
        ("memory", size(here.available), f"available of {size(here.memory)}{limit}"),
        *[("GPU", size(gpu.free), f"free of {size(gpu.memory)}; {gpu.name}") for gpu in here.gpus],
        ("disk", size(report.room.cache), "for the activations" + (" and the run" if report.room.shared else "")),
        *([] if report.room.shared else [("", size(report.room.run), "for the run")]),
        (
            "model",
            size(model.bytes) if model.bytes else "-",
            f"{model.place or 'not here'}" + (f"; d = {model.d}" if model.d else ""),
        ),
    ]


def _needs(report: Report) -> list[tuple[str, str, str]]:
    needs = report.needs
    if needs is None:
        return []
    on_gpu = f"model {size(needs.model)}, the larger of a batch {size(needs.forward)} and training {size(needs.train)}"
    larger = f"the larger of train {size(needs.train)} and measure {size(needs.measure)}"
    if needs.on_gpu:
        made_of = f"program {size(needs.process)}, harvest {size(needs.harvest)}, measure {size(needs.measure)}"
    else:
        made_of = f"program {size(needs.process)}, model {size(needs.model)}, harvest {size(needs.harvest + needs.forward)}, {larger}"
    there = " (there already)" if report.trials.cached else ""
    return [
        *(
            [("activations", size(needs.cache), f"on disk{there}; mapped into memory where there is room")]
            if needs.cache
            else []
        ),
        (
            "run folder",
            size(needs.run_folder),
            f"on disk; an SAE {size(needs.sae)}, a checkpoint {size(needs.checkpoint)}",
        ),
        ("peak memory", size(needs.memory), made_of),
        *([("peak GPU memory", size(needs.gpu), on_gpu)] if needs.on_gpu else []),
    ]


def _times(report: Report) -> list[tuple[str, str, str]]:
    rows = [(stage.name, _time(stage), f"{stage.rate:,.0f} tokens/s" if stage.rate else "") for stage in report.stages]
    if report.stages:
        rows = [
            (name, took, f"{rate}{'; rough' if name == 'measure' else ''}".lstrip("; ")) for name, took, rate in rows
        ]
        rows.append(("in all", "not known" if report.seconds is None else duration(report.seconds), _runs(report)))
    return rows


def _time(stage: Stage) -> str:
    return "not known" if stage.seconds is None else duration(stage.seconds)


def _runs(report: Report) -> str:
    arms, seeds = len(report.recipe.arms), len(report.recipe.seeds)
    return f"{arms} arms, {seeds} seed{'s' * (seeds > 1)}, besides some seconds to start and to report"


def _verdict(report: Report) -> list[str]:
    if report.fits:
        return ["It fits."]
    lines = [f"It cannot run: {problem}" for problem in report.problems]
    lines += [f"It does not fit. {str(short)[0].upper()}{str(short)[1:]}." for short in report.shortages]
    if report.shortages and report.changes:
        lines.append(f"It would fit with: {' '.join(f'--set {key}={shown(value)}' for key, value in report.changes)}")
        if any(short.resource in ("disk", "disk of the cache") for short in report.shortages):
            lines.append("Or set harvest.cache to a folder on a larger disk.")
    elif report.shortages:
        lines.append("No setting of this recipe would make it fit; it takes a larger machine or a smaller model.")
    return lines
