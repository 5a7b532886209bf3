"""What a sweep gave: sweep.json, from the cells' run folders."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metasae import files
from metasae.arms.folder import read_object
from metasae.compare.catalogue import CATALOGUE, Quantity, value_of
from metasae.recipe.registry import ARMS, BASELINE
from metasae.sweep.assemble import times
from metasae.sweep.equal_fvu import FVU, at_equal_fvu, at_equal_k
from metasae.sweep.folder import DONE, FAILED, STOPPED, Cell, SweepFolder
from metasae.sweep.pareto import front, nearest_to_ideal
from metasae.sweep.plan import QUANTITIES, Plan

# The paper's table: L2 changes by the same percentage as FVU; of the output, what the model has.
PAPER = ("cooccurrence.mean_abs_phi", "fidelity.fvu")
OUTPUT = ("fidelity.ce_delta", "fidelity.output_cosine_distance")


def gather(folder: SweepFolder, plan: Plan) -> dict:
    """Reads every settled cell and returns what sweep.json holds. Keys as docs/sweeps.md says.

    Only `seconds` and `time` depend on the machine. A number that does not exist is None. Cells that failed or were
    stopped early are listed, and are not on the front.
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
        "equal_fvu": _at_equal_fvu(folder, plan) if plan.equal_fvu else None,
        "parallel": parallel(cells, plan),
        "time": _time(folder),
    }


def parallel(cells: list[dict], plan: Plan) -> dict:
    """Parallel coordinates: one column per setting and objective, one line per cell that is done."""
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
    kept = {*_shown(plan, lambda quantity: quantity.main)}
    pair = comparison["pairs"].get(f"{plan.subject} vs {BASELINE}", {})
    spent = [times(folder.sae(member).folder) for member in members if member.arm == plan.subject]
    return facts | {
        "saes": {member.label: member.name for member in members},
        "means": {key: value for key, value in comparison["arms"][plan.subject]["means"].items() if key in kept},
        "differences": {key: entry for key, entry in pair.items() if key in kept},
        "kappa": _kappa(cell, plan, comparison),
        "seconds": {key: sum(seconds[key] for seconds in spent) for key in ("train", "steps", "measure")},
    }


def _shown(plan: Plan, also: Callable[[Quantity], bool]) -> list[str]:
    """Keys of the catalogue: the paper's, the model's output, the objectives, and those that `also` says."""
    named = {*PAPER, *OUTPUT, *plan.objectives}
    return [quantity.key for quantity in CATALOGUE if quantity.key in named or also(quantity)]


def _kappa(cell: Cell, plan: Plan, comparison: dict) -> dict | None:
    """The penalty's strength, kappa = (lambda2 / sigma^2) exp(-e / sigma^2), of a cell.

    e: mean squared error of a meta SAE on unit decoder rows; control's where there is one, as the penalty cannot move
    it, else the subject's own. None where adaptive sigma^2 holds kappa at what it was in the first step, which no file
    says.
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


def _at_equal_fvu(folder: SweepFolder, plan: Plan) -> dict:
    """kinds: kind -> measure -> the difference at equal FVU; equal_k: kind -> k -> measure -> the difference against
    the target's kind.

    The target's own kind is read off its curve without the target itself. A kind whose cells are not all done is named
    with why.
    """
    spec, (curves, missing) = plan.equal_fvu, _curves(folder, plan)
    kind, k = spec["target"]["kind"], spec["target"]["k"]
    own = curves.get(kind, {})
    quantities = _read_quantities(own.get(k, {}), plan)
    kinds, equal_k = {}, {}
    for name in spec["curves"]:
        curve = {other: saes for other, saes in curves.get(name, {}).items() if (name, other) != (kind, k)}
        if k not in own or not curve:
            continue
        rows = {key: at_equal_fvu(curve, own[k], QUANTITIES[key], spec["baseline"] == "curve") for key in quantities}
        kinds[name] = {key: row.as_dict() for key, row in rows.items()}
        if name != kind:
            equal_k[name] = _by_k(curve, own, [FVU.key, *quantities])
    return {
        "target": spec["target"],
        "baseline": spec["baseline"],
        "kinds": kinds,
        "equal_k": equal_k,
        "k": {name: sorted(curve) for name, curve in curves.items()},
        "not_done": missing,
    }


def _curves(folder: SweepFolder, plan: Plan) -> tuple[dict[str, dict[int, dict[int, dict]]], dict[str, str]]:
    """(kind -> k -> seed -> measures, kind -> why one of its cells is missing)."""
    curves, missing = {}, {}
    for cell in folder.cells():
        if cell.state != DONE:
            missing[cell.setting.kind] = f"{cell.setting.values}: {cell.state}, {cell.why}"
            continue
        k = cell.setting.recipe(plan.base).sae.k
        saes = [arm for arm in folder.run(cell.name).arms() if arm.name == plan.subject and arm.is_measured]
        curves.setdefault(cell.setting.kind, {})[k] = {arm.seed: arm.measures() for arm in saes}
    return curves, missing


def _read_quantities(target: Mapping[int, dict], plan: Plan) -> list[str]:
    """Keys of the measures read off curves, where the target SAE has them; not FVU, which is equal."""

    def is_read(key: str) -> bool:
        return key != FVU.key and any(value_of(sae, QUANTITIES[key]) is not None for sae in target.values())

    return list(filter(is_read, _shown(plan, lambda quantity: quantity.main or quantity.robust)))


def _by_k(curve: dict, baseline: dict, keys: list[str]) -> dict[str, dict[str, dict]]:
    """k -> measure -> the difference, for every k that both have."""
    rows = {key: at_equal_k(curve, baseline, QUANTITIES[key]) for key in keys}
    ks = sorted(set(curve) & set(baseline))
    return {str(k): {key: differences[k].as_dict() for key, differences in rows.items()} for k in ks}


def _time(folder: SweepFolder) -> dict:
    """Seconds of all workers together. steps: of training steps alone; whole: from each worker's first SAE to its end,
    without the harvest.

    overhead: whole / steps - 1; overhead_with_harvest: likewise with the harvest, which other runs may share. A worker
    that was killed takes the seconds of its last SAE's steps with it.
    """
    saes = [times(path.parent) for path in sorted(folder.path.glob("saes/*/sae.json"))]
    workers = [files.read_json(path) for path in sorted(folder.path.glob("workers/*.json"))]
    harvest = read_object(folder.path / "harvest.json").get("seconds", 0.0)
    steps, whole = sum(sae["steps"] for sae in saes), sum(worker["seconds"] for worker in workers)
    peaks = [worker["peak_memory_gib"] for worker in workers if worker["peak_memory_gib"] is not None]
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
        "peak_memory_gib": max(peaks, default=None),
    }
