"""The results of a sweep: sweep.json, from the cells' run folders; and best.toml, a recipe that confirms the chosen
cell.

best.toml has new seeds and, if the text has enough documents, other documents.
"""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from metasae import files
from metasae.arms.folder import read_object
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS, BASELINE
from metasae.sweep.equal_fvu import compared_at_equal_fvu
from metasae.sweep.folder import DONE, FAILED, STOPPED, Cell, SweepFolder, times
from metasae.sweep.pareto import front, nearest_to_ideal
from metasae.sweep.plan import QUANTITIES, Plan

LEAST_SEEDS = 3
# The least share of the text that must be left for training.
LEAST_TRAINING_SHARE = 0.3


def gather(folder: SweepFolder, plan: Plan) -> dict:
    """Reads every cell that has ended; returns the content of sweep.json, whose keys are in docs/sweeps.md.

    Only `seconds` and `time` depend on the machine. A missing number is None. Cells that failed or were stopped early
    are listed, but are not on the front.
    """
    cells = [_cell(folder, plan, cell) for cell in folder.cells()]
    _mark_front(cells, plan)
    return {
        "title": plan.title,
        "objectives": list(plan.objectives),
        "seeds": list(plan.base.seeds),
        "arms": list(plan.base.arms),
        "subject": plan.subject,
        "baseline": f"{BASELINE} of the " + ("sweep's recipe" if plan.shared_baseline else "same cell"),
        "base": plan.base.model_dump(mode="json"),
        "settings": _varied(cells),
        "cells": cells,
        "front": [cell["name"] for cell in cells if cell["on_front"]],
        "best": next((cell["name"] for cell in cells if cell["best"]), None),
        "failed": {cell["name"]: cell["why"] for cell in cells if cell["state"] == FAILED},
        "stopped": [cell["name"] for cell in cells if cell["state"] == STOPPED],
        "equal_fvu": compared_at_equal_fvu(folder, plan) if plan.equal_fvu else None,
        "parallel": parallel(cells, plan),
        "time": _time(folder),
    }


def parallel(cells: list[dict], plan: Plan) -> dict:
    """Data for parallel coordinates: one column per setting and objective, one line per cell that is done."""
    done = [cell for cell in cells if cell["state"] == DONE]
    settings = [
        {"key": key, "label": key, "values": [cell["setting"].get(key) for cell in done]} for key in _varied(done)
    ]
    objectives = [
        {"key": key, "label": QUANTITIES[key].label, "values": [cell["means"].get(key) for cell in done]}
        for key in plan.objectives
    ]
    return {"cells": [cell["name"] for cell in done], "dimensions": settings + objectives}


def _varied(cells: list[dict]) -> list[str]:
    return sorted({key for cell in cells for key in cell["setting"]})


def _cell(folder: SweepFolder, plan: Plan, cell: Cell) -> dict:
    run = folder.run(cell.name).folder
    facts: dict[str, Any] = {
        "name": cell.name,
        "folder": str(run.relative_to(folder.path)),
        "setting": cell.setting.values,
        "kind": cell.setting.kind,
        "state": cell.state,
        "why": cell.why,
        "trials": list(cell.trials),
        "seeds": list(cell.seeds),
        "saes": {},
        "means": {},
        "differences": {},
        "kappa": None,
        "on_front": False,
        "best": False,
        "seconds": None,
    }
    if cell.state == FAILED:
        return facts
    members = [member for member in plan.members(cell.setting) if member.seed in cell.seeds]
    comparison = files.read_json(run / "compare.json")
    means = comparison["arms"][plan.subject]["means"]
    differences = comparison["pairs"].get(f"{plan.subject} vs {BASELINE}", {})
    spent = [times(folder.sae(member).folder) for member in members if member.arm == plan.subject]
    return facts | {
        "saes": {member.label: member.name for member in members},
        "means": {key: value for key, value in means.items() if key in plan.told},
        "differences": {key: entry for key, entry in differences.items() if key in plan.told},
        "kappa": _kappa(cell, plan, comparison),
        "seconds": {key: sum(seconds[key] for seconds in spent) for key in ("train", "steps", "measure")},
    }


def _kappa(cell: Cell, plan: Plan, comparison: dict) -> dict | None:
    """The strength of the penalty in a cell, kappa = (lambda2 / sigma^2) exp(-e / sigma^2).

    e: mean squared error of a meta SAE on decoder rows of norm 1; control's if there is one, as the penalty does not
    change it, else the subject's own. None with adaptive sigma^2, which keeps kappa at its value in the first step; no
    file records that value.
    """
    train = cell.setting.recipe(plan.base).train
    if not ARMS[plan.subject].penalty or train.adaptive_sigma:
        return None
    unmoved = [arm for arm in plan.base.arms if ARMS[arm].keeps_primary and not ARMS[arm].after]
    for arm in (*unmoved, plan.subject):
        e = comparison["arms"].get(arm, {}).get("means", {}).get("decomposability.own_meta_e")
        if e is not None:
            return {"value": train.lambda2 / train.sigma_sq * math.exp(-e / train.sigma_sq), "e": e, "e_of": arm}
    return None


def _mark_front(cells: list[dict], plan: Plan) -> None:
    done = [cell for cell in cells if cell["state"] == DONE and plan.objective_values(cell["means"])]
    if not done:
        return
    costs = np.array([plan.objective_values(cell["means"]) for cell in done]) * plan.signs
    for cell, on in zip(done, front(costs), strict=True):
        cell["on_front"] = bool(on)
    done[nearest_to_ideal(costs)]["best"] = True


def _time(folder: SweepFolder) -> dict:
    """Seconds of all workers together. steps: of training steps only; whole: from each worker's first SAE to its end,
    without the harvest.

    overhead: whole / steps - 1; overhead_with_harvest: the same with the harvest, which other runs may share. The steps
    of a killed worker's last SAE are missing.
    """
    saes = [times(path.parent) for path in sorted(folder.path.glob("saes/*/sae.json"))]
    workers = [files.read_json(path) for path in sorted(folder.path.glob("workers/*.json"))]
    harvest = read_object(folder.path / "harvest.json").get("seconds", 0.0)
    steps, whole = sum(sae["steps"] for sae in saes), sum(worker["seconds"] for worker in workers)
    return {
        "steps": steps,
        "train": sum(sae["train"] for sae in saes),
        "measure": sum(sae["measure"] for sae in saes),
        "harvest": harvest,
        "whole": whole,
        "overhead": whole / steps - 1 if steps else None,
        "overhead_with_harvest": (whole + harvest) / steps - 1 if steps else None,
        "saes": len(saes),
        "workers": len(workers),
        "peak_memory_gib": max((worker["peak_memory_gib"] for worker in workers), default=None),
    }


def write_best(folder: SweepFolder, plan: Plan, result: dict) -> dict | None:
    """Writes best.toml for the best cell of sweep.json; returns {cell, recipe, seeds, command, note}, or None if there
    is no best cell.

    The recipe has as many new seeds as the sweep, at least three, and the measures of the recipe that the sweep was
    started with. It measures on documents that the sweep did not measure on (`other_documents`).
    """
    best = next((cell for cell in result["cells"] if cell["best"]), None)
    if best is None:
        return None
    values = best["setting"] | {f"measure.{key}": value for key, value in plan.full_measure.items()}
    shares, note = other_documents(plan.base)
    first = max(plan.base.seeds) + 1
    seeds = list(range(first, first + max(LEAST_SEEDS, len(plan.base.seeds))))
    if plan.base.measure.senses:
        note += " The sense-tagged sentences are the same."
    if plan.shared_baseline:
        note += (
            " The sweep compared every cell with solo of the sweep's recipe; here solo is trained with the cell's "
            "values."
        )
    chosen = f"Chosen in the sweep '{plan.title}' (seeds {', '.join(map(str, plan.base.seeds))})"
    description = f"{chosen}; confirms it on new seeds. {note}"
    values |= {**shares, "seeds": seeds, "description": description}
    recipe = Recipe.load(plan.base.model_dump(mode="json"), values)
    path = folder.path / "best.toml"
    files.write_text(path, recipe.dump())
    return {
        "cell": best["name"],
        "recipe": path.name,
        "seeds": seeds,
        "note": note,
        "command": command(path, folder.path),
    }


def other_documents(recipe: Recipe) -> tuple[dict, str]:
    """(values that change the splits, a note on what that means).

    A document's split follows from the place of its hash in [0, 1): calibration is below c, evaluation from c to c + v.
    With the calibration share c' = c + v, all documents that were measured on become calibration documents, and the
    next v, which the sweep trained on, are the new evaluation split. So no document is measured on twice.
    """
    text = recipe.text
    moved = text.calibration_share + text.evaluation_share
    if text.source == "planted":
        return {}, "The planted world and its evaluation tokens are the same."
    if moved >= 0.5 or 1 - moved - text.evaluation_share < LEAST_TRAINING_SHARE:
        note = "The evaluation documents are the same, as the text has too few others"
        return {}, f"{note}; lower text.evaluation_share."
    note = "Measured on documents that the sweep did not measure on; here they are left out of training."
    return {"text.calibration_share": round(moved, 6)}, note


def command(recipe: Path, folder: Path) -> str:
    """The shell command that confirms a sweep by its best.toml."""
    return shlex.join(["metasae", "run", str(recipe), "--out", f"{folder}-confirmed"])
