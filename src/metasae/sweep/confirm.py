"""The chosen cell as a recipe with new seeds and, where the text allows it, other documents; the command for it."""

import shlex
from pathlib import Path

from metasae import files
from metasae.recipe.recipe import Recipe
from metasae.sweep.folder import SweepFolder
from metasae.sweep.plan import Plan

LEAST_SEEDS = 3
# Of the text, what must be left for training.
LEAST_TRAINING_SHARE = 0.3


def write_best(folder: SweepFolder, plan: Plan, result: dict) -> dict | None:
    """Writes best.toml for the cell that sweep.json calls best; returns {cell, recipe, seeds, command, note}, or None
    without one.

    The recipe has as many new seeds as the sweep, at least three, the measures of the recipe the sweep was started
    with, and judges on documents that the sweep did not judge on: see `other_documents`.
    """
    best = next((cell for cell in result["cells"] if cell["best"]), None)
    if best is None:
        return None
    values = best["setting"] | {f"measure.{key}": value for key, value in plan.full_measure.items()}
    recipe = Recipe.load(plan.base.model_dump(mode="json"), values)
    shares, note = other_documents(recipe)
    first = max(plan.base.seeds) + 1
    seeds = list(range(first, first + max(LEAST_SEEDS, len(plan.base.seeds))))
    if recipe.measure.senses:
        note += " The words with known senses are the same sentences."
    if plan.shared_baseline:
        note += (
            " The sweep held every cell against solo of its own recipe; here solo is trained with the cell's values."
        )
    chosen = f"Chosen in the sweep '{plan.title}' (seeds {', '.join(map(str, plan.base.seeds))})"
    description = f"{chosen}; confirms it on new seeds. {note}"
    recipe = Recipe.load(recipe.model_dump(mode="json"), {**shares, "seeds": seeds, "description": description})
    path = folder.path / "best.toml"
    files.write_text(path, recipe.dump())
    return {"cell": best["name"], "recipe": path.name, "seeds": seeds, "note": note, "command": command(path, folder)}


def other_documents(recipe: Recipe) -> tuple[dict, str]:
    """(values that move the splits, what that means).

    A document's split is the place of its hash in [0, 1): calibration lies below c, evaluation from there to c + v.
    With the calibration share c' = c + v, all the documents that were judged on become calibration's, and the v after
    them, trained on until now, are the new evaluation split: no document is judged on twice.
    """
    text = recipe.text
    moved = text.calibration_share + text.evaluation_share
    if text.source == "planted":
        return {}, "The planted world and its evaluation tokens are the same."
    if moved >= 0.5 or 1 - moved - text.evaluation_share < LEAST_TRAINING_SHARE:
        note = "The evaluation documents are the same, as the shares of the text leave no others"
        return {}, f"{note}; lower text.evaluation_share."
    note = "Judged on documents that the sweep never judged on; they are left out of training here."
    return {"text.calibration_share": round(moved, 6)}, note


def command(path: Path, folder: SweepFolder) -> str:
    """The shell command, for the folder as it lies now."""
    return shlex.join(["metasae", "run", str(path), "--out", f"{folder.path}-confirmed"])
