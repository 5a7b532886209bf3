"""The command line: one verb per job, no logic. Rooms are imported when a verb runs, so `--help` is quick."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from metasae.errors import UserError

app = typer.Typer(
    help="Train sparse autoencoders whose latents are meant to be atomic, and measure whether they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The `metasae` command. A user's error is one line on stderr and its exit code; no traceback."""
    try:
        app()
    except UserError as error:
        print(f"metasae: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe's name (metasae recipes) or a TOML file")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="overrides a value, e.g. train.lambda2=0.1")] = None,
    seeds: Annotated[str | None, typer.Option(help="how many seeds (3), or which (0,7)")] = None,
    arms: Annotated[str | None, typer.Option(help="which arms, e.g. solo,joint,control,sequential")] = None,
    points: Annotated[str | None, typer.Option(help="several hook points, from one harvest: a run folder each, OUT/POINT")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; runs/RECIPE when not given")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and what the run needs; write nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the result as JSON on stdout")] = False,
) -> None:
    """The main job: harvest, train every arm and seed on one stream, measure, compare, report. Goes on where it stopped."""
    from metasae import start

    # whatever can be refused without torch is refused before it is imported, which takes seconds
    resolved, folder = start.resolve(recipe, out, _overrides(set_, seeds, arms), device)
    runs = start.one_per_point(resolved, folder, [point.strip() for point in points.split(",")] if points else [])
    if dry_run:
        results = [start.plan(*each, show=not as_json) | {"doctor": _examined(*each, device, True, not as_json, stderr=True)} for each in runs]
    else:
        for each in runs:
            start.claim(*each)
        from metasae import job

        results = [job.run(each, out=place, device=device, show=not as_json) for each, place in runs]
    result = results[0] if len(results) == 1 else results
    if as_json:
        print(json.dumps(result, indent=2))


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe's name (metasae recipes) or a TOML file")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="overrides a value, e.g. train.lambda2=0.1")] = None,
    seeds: Annotated[str | None, typer.Option(help="how many seeds (3), or which (0,7)")] = None,
    arms: Annotated[str | None, typer.Option(help="which arms, e.g. solo,joint,control,sequential")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; runs/RECIPE when not given")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="arithmetic alone: load no model and time nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report as JSON on stdout")] = False,
) -> None:
    """Says before a run what it needs, how long it takes and whether it fits this machine (exit 0) or not (exit 1)."""
    from metasae import start

    report = _examined(*start.resolve(recipe, out, _overrides(set_, seeds, arms), device), device, quick, not as_json)
    if as_json:
        print(json.dumps(report, indent=2))
    raise typer.Exit(0 if report["fits"] else 1)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="print this recipe")] = None) -> None:
    """Lists the shipped recipes, or prints one as TOML."""
    from metasae import recipe

    if name:
        print(recipe.text_of(name), end="")
        return
    for each in recipe.names():
        print(f"{each:<22} {recipe.Recipe.load(each).description}")


@app.command()
def measure(
    folders: Annotated[list[Path], typer.Argument(help="run folders or SAE folders")],
    recipe: Annotated[str | None, typer.Option(help="model, hook, text and measures; the first SAE's own recipe when not given")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="overrides a value, e.g. measure.tokens=50000")] = None,
    out: Annotated[Path, typer.Option(help="a run folder for what is found; the SAEs' own folders stay as they are")] = Path("runs/measured"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="the result as JSON on stdout")] = False,
) -> None:
    """Measures SAEs that are there already, on the same held-out text, and compares them."""
    overrides = _overrides(set_, None, None)
    from metasae import measuring

    result = measuring.measure(folders, out, recipe, overrides, device, show=not as_json)
    if as_json:
        print(json.dumps(result, indent=2))


@app.command()
def steer(
    folder: Annotated[Path, typer.Argument(help="an SAE folder, or an arm's folder")],
    latent: Annotated[list[str], typer.Option(help="an edit: 17=5 sets, 17+=2 adds, 17*=0.5 scales, 17=off ablates; may be repeated")],
    prompt: Annotated[list[str], typer.Option(help="text to go on from; may be repeated")],
    tokens: Annotated[int, typer.Option(help="new tokens per prompt")] = 40,
    point: Annotated[str | None, typer.Option(help="hook point; the SAE's own when not given")] = None,
    model: Annotated[str | None, typer.Option(help="a folder or a name on the hub; the SAE's own when not given")] = None,
    seed: Annotated[int | None, typer.Option(help="samples with this seed; without it the likeliest token is taken")] = None,
    error: Annotated[bool, typer.Option("--error/--no-error", help="keep what the SAE does not rebuild")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="the result as JSON on stdout")] = False,
) -> None:
    """Writes on from prompts with the model as it is, and with latents set, added to, scaled or ablated."""
    from metasae.steering import run_steer

    folder = folder / "primary" if (folder / "primary").is_dir() else folder
    result = run_steer(folder, latent, prompt, tokens=tokens, point=point, model=model, error=error, seed=seed, device=device)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for text in result["texts"]:
        print(f"{text['prompt']}\n  as it is: {text['without']!r}\n  steered:  {text['with']!r}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="an SAE: a folder or file in any format that is read, or hf:OWNER/NAME/FOLDER@REVISION")],
    to: Annotated[str, typer.Option(help="saelens, dictionary_learning, sparsify, paper or metasae")],
    out: Annotated[Path, typer.Option(help="where it is written; must not exist yet")],
) -> None:
    """Writes an SAE in another library's format, with the same activations and outputs there."""
    from metasae import interop

    print(interop.export(str(folder), to, out))


@app.command(name="import")
def import_(
    path: Annotated[str, typer.Argument(help="an SAE of another library: a folder or file, or hf:OWNER/NAME/FOLDER@REVISION")],
    out: Annotated[Path, typer.Option(help="the SAE folder to write; must not exist yet")],
    thresholds: Annotated[Path | None, typer.Option(help="the paper's thresholds (.npy) beside its .pt")] = None,
) -> None:
    """Reads another library's SAE, checks it, and writes it as an SAE folder of ours."""
    from metasae import interop

    print(interop.export(interop.load(path, thresholds=thresholds), "metasae", out))


@app.command()
def compare(
    run_folder: Annotated[Path, typer.Argument(help="a run folder")],
    baseline: Annotated[str | None, typer.Option(help="the arm that the others are compared with; solo when not given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the comparison as JSON on stdout")] = False,
) -> None:
    """Compares the measured arms of a run again and writes compare.json, compare.md and the report."""
    from metasae.conclusion import conclude

    result = conclude(run_folder, show=not as_json, baseline=baseline)
    if as_json:
        print(json.dumps(result, indent=2))


def _examined(resolved, folder: Path, device: str, quick: bool, show: bool, stderr: bool = False) -> dict:
    """What the doctor says; with `show` as a table too, which a dry run keeps off stdout so that stdout is a recipe."""
    from metasae.doctor.report import examine
    from metasae.doctor.table import print_report
    from metasae.progress import Progress

    report = examine(resolved, folder, device=device, quick=quick, progress=Progress())
    if show:
        print_report(report, stderr)
    return report.as_dict()


def _overrides(set_: list[str] | None, seeds: str | None, arms: str | None) -> dict[str, Any]:
    from metasae.recipe import parse_override

    out = dict(parse_override(text) for text in set_ or [])
    if seeds is not None:
        numbers = [part.strip() for part in seeds.split(",")]
        if not all(number.isdigit() for number in numbers):
            raise UserError(f"--seeds takes a count (3) or a list (0,7), not '{seeds}'")
        out["seeds"] = int(numbers[0]) if len(numbers) == 1 else [int(number) for number in numbers]
    if arms is not None:
        out["arms"] = [arm.strip() for arm in arms.split(",")]
    return out


if __name__ == "__main__":
    main()
