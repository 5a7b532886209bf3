"""Verbs that exchange SAEs with other libraries and the hub."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from metasae.cli.app import AsJson, Device, app


@app.command()
def export(
    folder: Annotated[
        Path,
        typer.Argument(help="an SAE: a folder or file in any format metasae reads, or hf:OWNER/NAME/FOLDER@REVISION"),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="for the SAE: saelens, dictionary_learning, sparsify, paper, metasae; for firings: delphi, "
            "neuronpedia, paper_cache"
        ),
    ],
    out: Annotated[Path, typer.Option(help="where to write; must not exist yet")],
    context: Annotated[int | None, typer.Option(help="for firings: tokens in a row of text")] = None,
    other: Annotated[Path | None, typer.Option(help="for paper_cache: the folder of the arm to pair with")] = None,
) -> None:
    """Writes an SAE in another library's format, or an arm's firings for another tool.

    The SAE has the same outputs in the other library.
    """
    from metasae.interop.detection import FIRINGS, check_export

    options = {name: value for name, value in (("context", context), ("other", other)) if value is not None}
    check_export(str(folder), to, out, options)
    if to in FIRINGS:
        from metasae.interop.formats import export_activations
        from metasae.progress.progress import Progress

        export_activations(folder, to, out, progress=Progress(), **options)
        print(out)
    else:
        from metasae import interop

        print(interop.export(str(folder), to, out))


@app.command(name="import")
def import_(
    path: Annotated[
        str, typer.Argument(help="an SAE of another library: a folder, a file, or hf:OWNER/NAME/FOLDER@REVISION")
    ],
    out: Annotated[Path, typer.Option(help="the SAE folder to write; must not exist yet")],
    thresholds: Annotated[Path | None, typer.Option(help="the paper's thresholds (.npy) beside its .pt")] = None,
) -> None:
    """Reads an SAE of another library, checks it, and writes it as a metasae SAE folder."""
    from metasae.interop.detection import sae_at
    from metasae.interop.outputs import refuse_taken

    sae_at(path, thresholds=thresholds)
    refuse_taken(out)
    from metasae import interop

    print(interop.export(interop.load(path, thresholds=thresholds), "metasae", out))


@app.command()
def track(
    run_folder: Annotated[Path, typer.Argument(help="the folder of a run or a sweep, finished or not")],
    to: Annotated[
        str, typer.Option(help="tensorboard or wandb (WANDB_MODE=offline keeps everything on this machine)")
    ] = "tensorboard",
    project: Annotated[
        str | None, typer.Option(help="the project on Weights & Biases; WANDB_PROJECT or metasae by default")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="keep sending what is new until Ctrl-C")] = False,
) -> None:
    """Sends a run's or sweep's training curves and measures to TensorBoard or Weights & Biases.

    What was sent before is not sent again.
    """
    from metasae.tracking.follow import track as send

    lines = send(run_folder, to, project, follow)
    where = (
        f"; look at them with: tensorboard --logdir {shlex.quote(str(run_folder / 'tensorboard'))}"
        if to == "tensorboard"
        else ""
    )
    print(f"{lines} new lines of curves and sets of measures{where}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="a finished run folder, or one SAE folder")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the hub; created if it does not exist")],
    license: Annotated[
        str, typer.Option(help="the licence of the weights, as the hub names it: mit, apache-2.0, other")
    ],
    revision: Annotated[str | None, typer.Option(help="a branch; main by default")] = None,
    private: Annotated[bool, typer.Option("--private", help="create the repository as private")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything and print the card; send nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sends a run's SAEs, measures and figures to the hub, with a model card made from its numbers.

    The token is read from HF_TOKEN.
    """
    from metasae.interop.push import push as send

    result = send(folder, repo, license=license, revision=revision, private=private, dry_run=dry_run)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for place in result["local_paths"]:
        print(f"this path is in the recipe and becomes public with it: {place}")
    print(result["card"] if dry_run else result["url"])
    print(f"{len(result['files'])} files, {result['bytes'] / 1e6:.1f} MB{', nothing sent' if dry_run else ''}")


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(help="an SAE: a folder or file in any format metasae reads")],
    out: Annotated[Path, typer.Option(help="the folder for the results")],
    evals: Annotated[
        str,
        typer.Option(help="SAEBench's evaluations, separated by commas; meta_structure needs neither model nor hub"),
    ] = "meta_structure",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Runs SAEBench's evaluations on an SAE. Needs the extra `saebench`."""
    from metasae.device import check_device
    from metasae.interop.detection import sae_at
    from metasae.interop.saebench_names import check_evals

    names = [name.strip() for name in evals.split(",") if name.strip()]
    check_evals(names)
    sae_at(folder)
    check_device(device)
    from metasae.interop.saebench import evaluate

    result = evaluate(folder, out, names, device=device)
    print(json.dumps(result, indent=2) if as_json else out)
