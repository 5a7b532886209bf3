"""`metasae.train`: trains the arms of a recipe on activations that a user gives; the result is an ordinary run
folder.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metasae.data.cache.given import CUTS, GivenCache, GivenRows, keep
from metasae.device import check_device
from metasae.jobs.given_recipe import asked_tokens, recipe_for, refuse_unknown_arms
from metasae.jobs.results import Run
from metasae.jobs.run import carry_out
from metasae.jobs.start import claim
from metasae.locks import alone_on
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe

# Rows that are read from a stream if the recipe does not say how many it trains on.
MOST_ROWS = 1_000_000


def train(
    x: Any,
    arms: Sequence[str] | None = None,
    recipe: str | Path | dict | Recipe | None = None,
    out: str | Path | None = None,
    *,
    documents: Any = None,
    seeds: int | Sequence[int] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> Run:
    """Trains SAEs on your own activations, measures and compares them; returns the run.

    x: activations in the model's units, a tensor or array [T, d] or [..., d], or an iterable of such batches (a
    DataLoader, a generator); their order matters, as a tenth of the rows is held out for thresholds and the last tenth
    for measuring. From a stream as many rows are read as the recipe trains on and measures with, a million if it does
    not say. If x has fewer rows than `train.tokens`, they are read again, each time in a new order.
    arms: which of solo, control, joint, sequential, ...; None: those of the recipe, or solo and joint without a recipe.
    recipe: a shipped name, a TOML file, a `Recipe`, or a dictionary of values by dotted keys or tables,
    {"sae.n": 64, "train": {"lr": 1e-3}}. What a dictionary leaves out is set for a small run by the size of x: n = 4 d
    latents, k = n / 16 and at most 32, batches of 512, at least 300 steps unless each row were read more than 20 times,
    learning rate 1e-3. `model` and `hook` only record where x was read, so that `sae.latents` finds the model; what
    needs text (spike-ins, concepts, the model's output) is left out.
    out: the run folder; a second call with the same x and folder continues the run. None: a temporary folder that is
    deleted with the returned run. documents: int [T], the document of each row; the rows of a document must be
    adjacent. They stay in one split and are resampled together. None: each sequence of a tensor [S, L, d] is a
    document, otherwise each of at least 200 blocks of at most 128 rows. seeds: a count or a list. show: print progress
    on stderr.

    Raises UserError for x with a NaN, with rows of different widths or too few rows, for a wrong recipe, and for a
    folder that holds another run or other activations; Interrupted after a signal, when the state is saved.
    """
    refuse_unknown_arms(arms)
    check_device(device)
    progress, rows = Progress(show), GivenRows(x)
    # refuses a wrong key before a long stream is read
    recipe_for(recipe, arms, seeds, rows.d, rows.total or MOST_ROWS, Path("activations"))
    tokens = asked_tokens(recipe)
    stream = MOST_ROWS if rows.total is None else None
    most = stream if tokens is None else int(tokens / CUTS[0]) + 1
    keeper = TemporaryDirectory(prefix="metasae-") if out is None else None
    folder = Path(keeper.name) / "run" if out is None else Path(out)
    with alone_on(folder, progress):
        cache = folder.resolve() / "activations"
        keep(rows, cache, documents, most, progress)
        resolved = _resolved(recipe, arms, seeds, cache, progress)
        claim(resolved, folder)
        result = carry_out(resolved, folder, device, show, tables=False)
    if keeper is not None:
        progress.say(f"the run is in {folder}, which is deleted with the returned run; give out= to keep it")
    return Run(folder, result, keeper)


def _resolved(recipe, arms, seeds, cache: Path, progress: Progress) -> Recipe:
    """The recipe for the rows in `cache`. Prints how the rows are split and how often they are read."""
    given = GivenCache(cache, {})
    counts = {name: stop - start for name, (start, stop) in given.parts.items()}
    resolved = recipe_for(recipe, arms, seeds, given.d, sum(counts.values()), cache)
    progress.say(
        f"{sum(counts.values()):,} rows of width {given.d:,}: the first {counts['train']:,} to train on, then "
        f"{counts['calibration']:,} for thresholds and {counts['evaluation']:,} for measuring, each from the beginning "
        "of a document"
    )
    tokens = resolved.train.tokens
    if tokens > counts["train"]:
        progress.say(
            f"train.tokens = {tokens:,}, so the {counts['train']:,} training rows are read "
            f"{tokens / counts['train']:.3g} times, each time in a fresh order"
        )
    return resolved
