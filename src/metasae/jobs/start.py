"""A run before any model is loaded: what it would do, and its run folder claimed."""

import os
from pathlib import Path
from typing import Any

from metasae.doctor.sources import check_sources
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe


def claim(recipe: Recipe, folder: Path) -> None:
    """Writes the recipe into the run folder. A folder with another recipe is refused; arms and seeds may be added to it, and what is
    measured may change, as trained weights do not depend on it (`metasae.jobs.remeasure`).

    A folder in which no stage was finished and no arm begun holds nothing that another recipe could spoil, so a typo put right goes on in it.
    Of several processes of one job (torchrun) the first claims it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    path = folder / "recipe.toml"
    try:
        if path.exists() and ((folder / "run.json").exists() or any((folder / "arms").glob("*/checkpoints"))):
            held = Recipe.load(path)
            _refuse_another(recipe, held, folder)
            union = {
                name: tuple(dict.fromkeys([*getattr(held, name), *getattr(recipe, name)])) for name in ("arms", "seeds")
            }
            recipe = recipe.model_copy(update=union)
        else:
            check_sources(recipe)
            folder.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None


def plan(recipe: Recipe, folder: Path, show: bool) -> dict:
    """What a run would do: its folder, arms, steps and tokens. show: the recipe as TOML and a summary on stdout."""
    steps = -(-recipe.train.tokens // recipe.train.batch)
    plan = {
        "out": str(folder),
        "recipe": recipe.model_dump(mode="json"),
        "arms": [f"{arm}-s{seed}" for seed in recipe.seeds for arm in recipe.arms],
        "primary_steps_per_arm": steps,
        "tokens_harvested": sum(recipe.split_tokens.values()),
    }
    if show:
        print(recipe.dump())
        print(
            f"# would write {folder}: {len(plan['arms'])} arms of {steps:,} primary steps, {plan['tokens_harvested']:,} tokens harvested"
        )
    return plan


def _refuse_another(recipe: Recipe, held: Recipe, folder: Path) -> None:
    ours, theirs = _flat(recipe), _flat(held)
    # planted keys may be left out, on either side
    key = next((key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)), None)
    if key is not None:
        raise UserError(
            f"{folder} holds a run with {key} = {theirs.get(key)!r}, not {ours.get(key)!r}; choose another --out or delete the folder"
        )


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, without what may differ between two calls on one run folder."""
    out = {}
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            out |= {
                f"{name}.{key}": inner
                for key, inner in value.items()
                if name != "measure" and (name, key) != ("hook", "also")
            }
    return out
