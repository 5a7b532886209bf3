"""Verbs of training, measuring and comparing."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from metasae.cli.app import Arms, AsJson, Device, Out, RecipeName, Seeds, Set, app, overrides, print_json
from metasae.errors import UserError


@app.command()
def run(
    recipe: RecipeName,
    set_: Set = None,
    seeds: Seeds = None,
    arms: Arms = None,
    points: Annotated[
        str | None,
        typer.Option(help="several hook points, separated by commas: one harvest, and a run folder OUT/POINT for each"),
    ] = None,
    out: Out = None,
    device: Device = "cpu",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print the recipe and what the run needs, and write nothing; exit code 1 if it cannot run"
        ),
    ] = False,
    track: Annotated[
        str | None, typer.Option(help="tensorboard or wandb: send training curves and measures there during the run")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains the SAEs of a recipe, measures and compares them, and writes a report.

    The language model reads the text once and its activations are stored (the harvest). Every arm and seed is trained
    on them in the same order. An arm is a way of training: solo is a plain SAE; joint adds a penalty on decoder rows
    that its meta SAE can rebuild; control trains the meta SAE without the penalty. The same command continues a run
    that stopped.
    """
    from metasae.jobs import start
    from metasae.recipe.resolve import one_per_point, resolve

    resolved, folder = resolve(recipe, out, overrides(set_, seeds, arms), device)
    runs = one_per_point(resolved, folder, [point.strip() for point in points.split(",")] if points else [])
    show = not as_json
    if dry_run:
        results = [
            start.dry_run(one, place, show) | {"doctor": _examined(one, place, device, True, show, stderr=True)}
            for one, place in runs
        ]
    else:
        with ExitStack() as stack:
            # importing torch takes seconds, so all checks that need no torch come first
            for one, place in runs:
                stack.enter_context(start.started(one, place, track))
            from metasae.jobs.run import carry_out

            results = [carry_out(one, place, device, show, track) for one, place in runs]
    result = results[0] if len(results) == 1 else results
    print_json(result, as_json)
    if dry_run and not all(planned["doctor"]["fits"] for planned in results):
        raise typer.Exit(1)


@app.command()
def doctor(
    recipe: RecipeName,
    set_: Set = None,
    seeds: Seeds = None,
    arms: Arms = None,
    out: Out = None,
    device: Device = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="calculate sizes only: load no model and time nothing")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help="plan for GPUs of this name instead of this machine, e.g. h200")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="how many of these GPUs; 1 by default")] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(help="the share of the datasheet's rates that the slowest time of a plan assumes; 0.5 by default"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON on stdout")] = False,
) -> None:
    """Says before a run what it needs, how long it takes and whether it fits this machine.

    With --gpu it plans for GPUs that this machine does not have. Exit code 0: the run fits; 1: it does not.
    """
    from metasae.recipe.resolve import resolve

    if gpu or gpus is not None or efficiency is not None:
        if device != "cpu":
            raise UserError(
                "--device is a device of this machine; a plan for other GPUs takes --gpu and --gpus instead"
            )
        raise typer.Exit(_planned(recipe, overrides(set_, seeds, arms), gpu, gpus, efficiency, as_json))
    report = _examined(*resolve(recipe, out, overrides(set_, seeds, arms), device), device, quick, not as_json)
    print_json(report, as_json)
    raise typer.Exit(0 if report["fits"] else 1)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="the recipe to print; without it all are listed")] = None,
) -> None:
    """Lists the recipes that ship with metasae, or prints one as TOML."""
    from metasae.recipe import recipe

    if name:
        print(recipe.text_of(name), end="")
        return
    for shipped in recipe.names():
        print(f"{shipped:<22} {recipe.Recipe.load(shipped).description}")


@app.command()
def measure(
    folders: Annotated[list[str], typer.Argument(help="run folders or SAE folders, each as PATH or NAME=PATH")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="a recipe with model, hook, text and measures; by default the one that the first SAE was trained by"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="sets a value of the recipe, e.g. measure.tokens=50000; may be repeated"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="the run folder for the results; the SAEs' own folders are not changed")
    ] = Path("runs/measured"),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measures existing SAEs on the same held-out text and compares them."""
    from metasae.jobs.start import claimed

    with claimed(folders, out, recipe, overrides(set_, None, None), device) as (targets, resolved):
        # importing torch takes seconds, so it comes after all checks that need no torch
        from metasae.jobs.measure import carry_out

        result = carry_out(targets, resolved, out, device, show=not as_json)
    print_json(result, as_json)


@app.command()
def compare(
    run_folder: Annotated[Path, typer.Argument(help="a run folder")],
    baseline: Annotated[
        str | None, typer.Option(help="the arm that the others are compared with; solo by default")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON on stdout")] = False,
) -> None:
    """Compares the measured arms of a run again and writes compare.json, compare.md and the report."""
    from metasae.jobs.conclude import conclude

    result = conclude(run_folder, show=not as_json, baseline=baseline)
    print_json(result, as_json)


@app.command()
def sweep(
    recipe: RecipeName,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,V", help="values of one key, e.g. train.lambda2=0.1,0.3; may be repeated"),
    ] = None,
    named: Annotated[str | None, typer.Option(help="an ablation that ships with metasae, e.g. lambda2-sigma")] = None,
    search: Annotated[
        int | None,
        typer.Option(help="search: draw this many trials from the grid's values instead of training all cells"),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="a measure to judge cells by, e.g. spikes.recovery_f1; may be repeated, fidelity first"),
    ] = None,
    early_stop: Annotated[
        bool,
        typer.Option("--early-stop", help="stop cells that fall behind after their first seed (successive halving)"),
    ] = False,
    set_: Set = None,
    seeds: Seeds = None,
    workers: Annotated[
        int, typer.Option(help="processes on this machine; the same command on another machine adds more")
    ] = 1,
    storage: Annotated[
        str | None, typer.Option(help="an Optuna storage URL; the cells are copied there at the end")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the sweep's folder; runs/RECIPE-sweep by default")] = None,
    device: Device = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print cells and estimated hours, write nothing; exit code 1: cannot run")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Trains many variants of a recipe on one harvest and writes a table, a Pareto front and the best recipe.

    A cell is one combination of values. Give --grid, --named or --search; a search may have a grid as its space.
    """
    from metasae.sweep import sweep as run_sweep

    result = run_sweep(
        recipe,
        grid=grid,
        named=named,
        search=search,
        workers=workers,
        storage=storage,
        objectives=objective or None,
        early_stop=early_stop,
        out=out,
        overrides=overrides(set_, seeds, None),
        device=device,
        show=not as_json,
        dry_run=dry_run,
    )
    print_json(result, as_json)
    if dry_run and not result["fits"]:
        raise typer.Exit(1)


def _planned(
    recipe: str, changed: dict, gpu: str | None, gpus: int | None, efficiency: float | None, as_json: bool
) -> int:
    """Prints the plan for GPUs that this machine does not have; returns the exit code."""
    from metasae.doctor.cards import EFFICIENCY, asked_card
    from metasae.recipe.resolve import resolve

    gpus, efficiency = 1 if gpus is None else gpus, EFFICIENCY if efficiency is None else efficiency
    name = asked_card(gpu, gpus, efficiency).name
    resolve(recipe, None, changed, "cpu")
    from metasae.doctor.gpus import plan
    from metasae.doctor.table import print_plan

    result = plan(recipe, gpus, name, changed, efficiency)
    print_json(result.as_dict(), as_json)
    if not as_json:
        print_plan(result)
    return 0 if result.fits else 1


def _examined(resolved, folder: Path, device: str, quick: bool, show: bool, stderr: bool = False) -> dict:
    """Returns the doctor's report. show: it is printed as a table too. stderr: the table goes there, as a dry run
    prints the recipe alone on stdout.
    """
    from metasae.doctor.report import examine
    from metasae.doctor.table import print_report
    from metasae.progress.progress import Progress

    report = examine(resolved, folder, device, quick, Progress())
    if show:
        print_report(report, stderr)
    return report
