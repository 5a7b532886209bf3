"""What a sweep found: sweep.json, from the cells' run folders."""

import math
from pathlib import Path

import numpy as np

from metasae import files
from metasae.compare.catalogue import CATALOGUE, Quantity, value_of
from metasae.compare.measured import read_measured
from metasae.compare.pair import Pair
from metasae.intervals.statistics import Difference
from metasae.sweep.assemble import times
from metasae.sweep.equal_fvu import FVU, at_equal_fvu, at_equal_k
from metasae.sweep.folder import DONE, FAILED, STOPPED, Cell, SweepFolder
from metasae.sweep.pareto import as_costs, front, nearest_to_ideal
from metasae.sweep.plan import Plan

# The paper's table: L2 changes by the same percentage as FVU; of the output, what the model has.
PAPER = ("cooccurrence.mean_abs_phi", "fidelity.fvu")
OUTPUT = ("fidelity.ce_delta", "fidelity.output_cosine_distance")
BASELINE = "solo"


def gather(folder: SweepFolder, plan: Plan) -> dict:
    """Reads every settled cell and returns what sweep.json holds. Keys as docs/sweeps.md says; `seconds` and `time` alone depend on the machine.

    A number that does not exist is None. Cells that failed or were stopped early are listed, and are not on the front.
    """
    cells = [_cell(folder, plan, cell) for cell in folder.cells()]
    _mark_front(cells, plan)
    best = next((cell["name"] for cell in cells if cell["best"]), None)
    return {
        "title": plan.title,
        "objectives": list(plan.objectives),
        "seeds": list(plan.base.seeds),
        "arms": list(plan.base.arms),
        "subject": plan.subject,
        "baseline": "solo of the sweep's recipe" if plan.shared_baseline else "solo of the same cell",
        "base": plan.base.model_dump(mode="json"),
        "settings": sorted({key for cell in cells for key in cell["setting"]}),
        "cells": cells,
        "front": [cell["name"] for cell in cells if cell["on_front"]],
        "best": best,
        "failed": {cell["name"]: cell["why"] for cell in cells if cell["state"] == FAILED},
        "stopped": [cell["name"] for cell in cells if cell["state"] == STOPPED],
        "equal_fvu": _at_equal_fvu(folder, plan) if plan.equal_fvu else None,
        "parallel": parallel(cells, plan),
        "time": _time(folder, plan),
    }


def kappa(recipe, e: float | None) -> float | None:
    """The penalty's strength, (lambda2 / sigma^2) exp(-e / sigma^2); e: mean squared error of a meta SAE on unit decoder rows."""
    train = recipe.train
    return None if e is None else train.lambda2 / train.sigma_sq * math.exp(-e / train.sigma_sq)


def parallel(cells: list[dict], plan: Plan) -> dict:
    """Parallel coordinates: one column per setting and objective, one line per cell that is done."""
    done = [cell for cell in cells if cell["state"] == DONE]
    labels = {quantity.key: quantity.label for quantity in CATALOGUE}
    settings = [
        {"key": key, "label": key, "values": [cell["setting"].get(key) for cell in done]} for key in _varied(done)
    ]
    objectives = [
        {"key": key, "label": labels[key], "values": [cell["means"].get(key) for cell in done]}
        for key in plan.objectives
    ]
    return {"cells": [cell["name"] for cell in done], "dimensions": settings + objectives}


def _cell(folder: SweepFolder, plan: Plan, cell: Cell) -> dict:
    found = {
        "name": cell.name,
        "folder": str(folder.cell(cell.name).relative_to(folder.path)),
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
        return found
    members = [member for member in plan.members(cell.setting) if member.seed in cell.seeds]
    comparison = files.read_json(folder.cell(cell.name) / "compare.json")
    kept = {quantity.key for quantity in CATALOGUE if quantity.main} | {*PAPER, *OUTPUT, *plan.objectives}
    pair = comparison["pairs"].get(str(Pair(plan.subject, BASELINE)), {})
    spent = [times(folder.sae(member.name)) for member in members if member.arm == plan.subject]
    return found | {
        "saes": {member.label: member.name for member in members},
        "means": {key: value for key, value in comparison["arms"][plan.subject]["means"].items() if key in kept},
        "differences": {key: entry for key, entry in pair.items() if key in kept},
        "kappa": _kappa_of(cell, plan, comparison),
        "seconds": {key: sum(each[key] for each in spent) for key in ("train", "steps", "measure")},
    }


def _kappa_of(cell: Cell, plan: Plan, comparison: dict) -> dict | None:
    """kappa with the e of control where there is one, which the penalty cannot move, else with the subject's own."""
    key, recipe = "decomposability.own_meta_e", cell.setting.recipe(plan.base)
    if plan.subject != "joint" or recipe.train.adaptive_sigma:
        # adaptive sigma^2 holds kappa at what it was in the first step, which no file says
        return None
    for arm in ("control", plan.subject):
        e = comparison["arms"].get(arm, {}).get("means", {}).get(key)
        if e is not None:
            return {"value": kappa(recipe, e), "e": e, "e_of": arm}
    return None


def _mark_front(cells: list[dict], plan: Plan) -> None:
    done = [
        cell
        for cell in cells
        if cell["state"] == DONE and all(cell["means"].get(key) is not None for key in plan.objectives)
    ]
    if not done:
        return
    better = {quantity.key: quantity.better for quantity in CATALOGUE}
    costs = as_costs(
        np.array([[cell["means"][key] for key in plan.objectives] for cell in done]),
        [better[key] for key in plan.objectives],
    )
    for cell, on in zip(done, front(costs), strict=True):
        cell["on_front"] = bool(on)
    done[nearest_to_ideal(costs)]["best"] = True


def _at_equal_fvu(folder: SweepFolder, plan: Plan) -> dict:
    """kinds: kind -> measure -> the difference at equal FVU; equal_k: kind -> k -> measure -> the difference against the target's kind.

    The target's own kind is read off its curve without the target itself. A kind whose cells are not all done is named with why.
    """
    spec, (curves, missing) = plan.equal_fvu, _curves(folder, plan)
    kind, k = spec["target"]["kind"], spec["target"]["k"]
    own = curves.get(kind, {})
    wanted = _read_quantities(own.get(k, {}), plan)
    found, equal_k = {}, {}
    for name in spec["curves"]:
        curve = {each: saes for each, saes in curves.get(name, {}).items() if (name, each) != (kind, k)}
        if k not in own or not curve:
            continue
        rows = {quantity.key: at_equal_fvu(curve, own[k], quantity, spec["baseline"] == "curve") for quantity in wanted}
        found[name] = {key: row.as_dict() for key, row in rows.items()}
        if name != kind:
            equal_k[name] = _by_k({quantity.key: at_equal_k(curve, own, quantity) for quantity in (FVU, *wanted)})
    ks = {name: sorted(curve) for name, curve in curves.items()}
    return {
        "target": spec["target"],
        "baseline": spec["baseline"],
        "kinds": found,
        "equal_k": equal_k,
        "k": ks,
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
        measured = [entry for entry in read_measured(folder.cell(cell.name))[0] if entry.arm.name == plan.subject]
        curves.setdefault(cell.setting.kind, {})[k] = {entry.arm.seed: entry.measures for entry in measured}
    return curves, missing


def _read_quantities(target: dict[int, dict], plan: Plan) -> list[Quantity]:
    """The measures read off curves, where the target SAE has them; not FVU, which is equal."""
    kept = [quantity for quantity in CATALOGUE if quantity.key != FVU.key]
    kept = [
        quantity
        for quantity in kept
        if quantity.main or quantity.robust or quantity.key in (*PAPER, *OUTPUT, *plan.objectives)
    ]
    return [
        quantity for quantity in kept if any(value_of(measures, quantity) is not None for measures in target.values())
    ]


def _by_k(found: dict[str, dict[int, Difference]]) -> dict[str, dict[str, dict]]:
    ks = sorted({k for rows in found.values() for k in rows})
    return {str(k): {key: rows[k].as_dict() for key, rows in found.items() if k in rows} for k in ks}


def _varied(cells: list[dict]) -> list[str]:
    return sorted({key for cell in cells for key in cell["setting"]})


def _time(folder: SweepFolder, plan: Plan) -> dict:
    """Seconds of all workers together. steps: of training steps alone; whole: from each worker's first SAE to its end, without the harvest.

    overhead: whole / steps - 1; overhead_with_harvest: likewise with the harvest, which other runs may share. A worker that was killed
    takes the seconds of its last SAE's steps with it.
    """
    saes = [times(path.parent) for path in sorted(folder.path.glob("saes/*/sae.json"))]
    workers = [files.read_json(path) for path in sorted(folder.path.glob("workers/*.json"))]
    note = folder.path / "harvest.json"
    harvest = files.read_json(note)["seconds"] if note.exists() else 0.0
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


def write(folder: SweepFolder, result: dict) -> Path:
    path = folder.path / "sweep.json"
    files.write_json(path, result)
    return path
