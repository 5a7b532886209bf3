"""A run before any model is loaded: its run folder claimed, or what it would do.

Needs no torch, so a mistake is answered at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metasae.doctor.sources import check_sources
from metasae.errors import UserError
from metasae.locks import alone_on
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import first_difference

# What may differ between two calls on one run folder: its arms and seeds grow, its arms may be measured again.
FREE = ("description", "arms", "seeds", "measure", "hook.also")


@contextmanager
def started(recipe: Recipe, folder: Path, track: str | None = None, progress: Progress = SILENT) -> Iterator[None]:
    """Holds a run's folder, with the recipe in it, for as long as the block lasts. track: as of `metasae.jobs.run.run`.

    Raises UserError where another process holds the folder, where it holds a run of another recipe, where it cannot be
    written, and for a text, a model or a sink that is not there.
    """
    if track is not None:
        from metasae.tracking.follow import check_sink

        check_sink(track)
    # of several processes of one job (torchrun) the first claims the folder, and the others work under its lock
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with alone_on(folder, progress):
        claim(recipe, folder)
        yield


def claim(recipe: Recipe, folder: Path) -> None:
    """Writes the recipe into the run folder. A folder with another recipe is refused; arms and seeds may be added to
    it, and what is measured may change, as trained weights do not depend on it (`metasae.jobs.remeasure`).

    A folder in which no stage was finished and no arm begun holds nothing that another recipe could spoil, so a typo
    put right goes on in it.
    """
    path = folder / "recipe.toml"
    if path.exists() and ((folder / "run.json").exists() or any((folder / "arms").glob("*/checkpoints"))):
        before = Recipe.load(path)
        difference = first_difference(recipe, before, FREE)
        if difference:
            key, ours, theirs = difference
            raise UserError(
                f"{folder} holds a run with {key} = {theirs!r}, not {ours!r}; choose another --out or delete the folder"
            )
        union = {
            name: tuple(dict.fromkeys([*getattr(before, name), *getattr(recipe, name)])) for name in ("arms", "seeds")
        }
        recipe = recipe.model_copy(update=union)
    else:
        check_sources(recipe)
    write_recipe(recipe, folder)


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Raises UserError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save(folder / "recipe.toml")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None


def dry_run(recipe: Recipe, folder: Path, show: bool) -> dict:
    """What a run would do: its folder, arms, steps and tokens. show: the recipe as TOML and a summary on stdout."""
    steps, tokens = -(-recipe.train.tokens // recipe.train.batch), sum(recipe.split_tokens.values())
    arms = [f"{arm}-s{seed}" for seed in recipe.seeds for arm in recipe.arms]
    if show:
        print(recipe.dump())
        print(f"# would write {folder}: {len(arms)} arms of {steps:,} primary steps, {tokens:,} tokens harvested")
    return {
        "out": str(folder),
        "recipe": recipe.model_dump(mode="json"),
        "arms": arms,
        "primary_steps_per_arm": steps,
        "tokens_harvested": tokens,
    }
