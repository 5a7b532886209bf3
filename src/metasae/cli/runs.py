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
        str | None, typer.Option(help="several hook points, from one harvest: a run folder each, OUT/POINT")
    ] = None,
    out: Out = None,
    device: Device = "cpu",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="print the recipe and what the run needs; write nothing; exit 1 where it cannot run"
        ),
    ] = False,
    track: Annotated[
        str | None, typer.Option(help="send curves and measures on as they are written: tensorboard or wandb")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The main job: harvest, train every arm and seed on one stream, measure, compare, report. Goes on where it
    stopped.
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
            # whatever can be refused without torch is refused before it is imported, which takes seconds
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
    quick: Annotated[bool, typer.Option("--quick", help="arithmetic alone: load no model and time nothing")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="a plan for GPUs of this name in place of this machine, e.g. h200")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="how many of them; 1 when not given")] = None,
    efficiency: Annotated[
        float | None, typer.Option(help="the share of the datasheet's rates that a plan's slow end counts with; 0.5")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON on stdout")] = False,
) -> None:
    """Says before a run what it needs, how long it takes and whether it fits this machine, or GPUs one does not have
    (exit 0), or not (exit 1).
    """
    from metasae.recipe.resolve import resolve

    if gpu or gpus is not None or efficiency is not None:
        if device != "cpu":
            raise UserError("--device is a device of this machine; a plan takes --gpu and --gpus alone")
        raise typer.Exit(_planned(recipe, overrides(set_, seeds, arms), gpu, gpus, efficiency, as_json))
    report = _examined(*resolve(recipe, out, overrides(set_, seeds, arms), device), device, quick, not as_json)
    print_json(report, as_json)
    raise typer.Exit(0 if report["fits"] else 1)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="print this recipe")] = None) -> None:
    """Lists the shipped recipes, or prints one as TOML."""
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
        str | None, typer.Option(help="model, hook, text and measures; the first SAE's own recipe when not given")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="overrides a value, e.g. measure.tokens=50000"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="a run folder for what is found; the SAEs' own folders stay as they are")
    ] = Path("runs/measured"),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measures SAEs that are there already, on the same held-out text, and compares them."""
    from metasae.jobs.start import claimed

    with claimed(folders, out, recipe, overrides(set_, None, None), device) as (targets, resolved):
        # torch is imported, which takes seconds, once nothing can be refused without it
        from metasae.jobs.measure import carry_out

        result = carry_out(targets, resolved, out, device, show=not as_json)
    print_json(result, as_json)


@app.command()
def compare(
    run_folder: Annotated[Path, typer.Argument(help="a run folder")],
    baseline: Annotated[
        str | None, typer.Option(help="the arm that the others are compared with; solo when not given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the comparison as JSON on stdout")] = False,
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
    named: Annotated[str | None, typer.Option(help="an ablation that ships, e.g. lambda2-sigma")] = None,
    search: Annotated[
        int | None, typer.Option(help="so many trials of a search within the grid's values instead of all its cells")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="what is weighed against fidelity, e.g. spikes.recovery_f1")
    ] = None,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="give up cells that fall behind, by successive halving")
    ] = False,
    set_: Set = None,
    seeds: Seeds = None,
    workers: Annotated[int, typer.Option(help="processes on this machine; the same command elsewhere adds more")] = 1,
    storage: Annotated[
        str | None, typer.Option(help="an Optuna storage URL that is given a copy of the cells at the end")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the sweep's folder; runs/RECIPE-sweep when not given")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Many recipes on one harvest: a grid or a search, with a table, a Pareto front and the best recipe."""
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
    )
    print_json(result, as_json)


def _planned(
    recipe: str, changed: dict, gpu: str | None, gpus: int | None, efficiency: float | None, as_json: bool
) -> int:
    """Prints the plan for GPUs that are not here; the exit code."""
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
    """What the doctor says; with `show` as a table too, which a dry run keeps off stdout so that stdout is a recipe."""
    from metasae.doctor.report import examine
    from metasae.doctor.table import print_report
    from metasae.progress.progress import Progress

    report = examine(resolved, folder, device, quick, Progress())
    if show:
        print_report(report, stderr)
    return report
