"""A preview of a sweep: its cells, the SAEs that they add, and the hours, estimated from short trials. It writes
nothing.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace

import torch

from metasae.arms.train import trains_on_one_core
from metasae.doctor import fit
from metasae.doctor.estimate import Needs
from metasae.doctor.presence import Presence
from metasae.doctor.report import examine
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe
from metasae.sweep.estimate import Estimate, try_out
from metasae.sweep.folder import SweepFolder
from metasae.sweep.plan import Plan
from metasae.sweep.remaining import Row, Work, rows_of


def preview(
    folder: SweepFolder, plan: Plan, places: Sequence[str], threads: int | None = None, progress: Progress = SILENT
) -> dict:
    """What a sweep would do and how long it would take; returns plain JSON.

    places: the device of each worker. threads: of a worker on a processor; None for those of this process. In the
    result: saes of a cell, those that no earlier cell has; trained, those of them that exist already; seconds, None for
    what could not be tried, whole with the workers side by side and all else summed up.
    """
    rows = rows_of(plan, folder)
    works = [work for row in rows for work in row.works]
    wanted = _largest(plan, works)
    report = examine(wanted, folder.path, places[0], quick=True)
    short, model = _shortages(report, wanted, places, len(works)), Presence(**report["model"])
    estimate = Estimate(problems=report["problems"])
    if not short and not estimate.problems:
        estimate = try_out(folder, rows, wanted, model, places[0], threads, progress)
    to_harvest = wanted.reads_text and estimate.harvest != 0 and not folder.is_harvested(wanted.split_tokens)
    lanes = _lanes(works, places, threads, report["machine"]["cores"])
    seconds = _seconds(estimate, works, lanes)
    return {
        "folder": str(folder.path),
        "title": plan.title,
        "fits": not short and not estimate.problems,
        "problems": estimate.problems,
        "shortages": [asdict(one) for one in short],
        "notes": _notes(plan, model, len(places), lanes),
        "device": places[0],
        "workers": len(places),
        "threads": threads or torch.get_num_threads(),
        "seeds": list(plan.base.seeds),
        "cells": [_cell(row, estimate) for row in rows],
        "saes": len(works),
        "saes_to_train": sum(work.to_train for work in works),
        "saes_to_measure": sum(work.to_measure for work in works),
        "tokens_to_harvest": sum(wanted.split_tokens.values()) if to_harvest else 0,
        "seconds": seconds,
        "hours": None if seconds["whole"] is None else seconds["whole"] / 3600,
    }


def _largest(plan: Plan, works: list[Work]) -> Recipe:
    """The recipe that decides whether the sweep fits: that of the largest SAE, with the training tokens of the longest
    cell.
    """
    recipes = [work.member.recipe for work in works] or [plan.base]
    recipe = max(recipes, key=lambda recipe: (recipe.sae.n, recipe.train.batch))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"tokens": plan.most_tokens})})


def _shortages(report: dict, wanted: Recipe, places: Sequence[str], saes: int) -> list[fit.Shortage]:
    """What the sweep's SAEs and workers need and this machine lacks. report: the doctor's, on one run of `wanted`.

    Workers train at the same time, each in a process of its own beside this one; several may share a GPU.
    """
    if report["needs"] is None:
        return []
    needed = Needs(**{field.name: report["needs"][field.name] for field in fields(Needs)})
    on_one = max(Counter(places).values())
    of_sweep = replace(
        needed,
        run_folder=needed.run_folder * saes // (len(wanted.arms) * len(wanted.seeds)),
        process=needed.process * (len(places) + (len(places) > 1)),
        model=needed.model * on_one,
        train=needed.train * on_one,
        measure=needed.measure * len(places),
    )
    return fit.shortages(of_sweep, fit.Room(**report["room"]))


def _lanes(works: list[Work], places: Sequence[str], threads: int | None, cores: int) -> int:
    """How many SAEs are trained at the same time: on GPUs one on each, on a processor as many as its cores allow."""
    if places[0] != "cpu":
        return len(set(places))
    small = all(trains_on_one_core(work.member.recipe, "cpu") for work in works)
    width = 1 if small else threads or torch.get_num_threads()
    return min(len(places), max(1, cores // width))


def _seconds(estimate: Estimate, works: list[Work], lanes: int) -> dict[str, float | None]:
    training, measuring = list(map(estimate.to_train, works)), list(map(estimate.to_measure, works))
    train, measure = _sum(training), _sum(measuring)
    busy = min(lanes, sum(work.to_measure for work in works))
    if measure is not None:
        measure += busy * estimate.reference
    whole = None
    if None not in (estimate.harvest, train, measure):
        both = [sum(pair) for pair in zip(training, measuring, strict=True)]
        whole = estimate.harvest + estimate.reference * (busy > 0) + _side_by_side(both, lanes)
    return {"harvest": estimate.harvest, "train": train, "measure": measure, "whole": whole}


def _sum(seconds: Iterable[float | None]) -> float | None:
    known = list(seconds)
    return None if None in known else sum(known)


def _side_by_side(seconds: list[float], lanes: int) -> float:
    """The time until all SAEs are done, if each is taken up, in order, by the worker that is free first."""
    ends = [0.0] * lanes
    for needed in seconds:
        heapq.heapreplace(ends, ends[0] + needed)
    return max(ends)


def _cell(row: Row, estimate: Estimate) -> dict:
    spent = [step(work) for work in row.works for step in (estimate.to_train, estimate.to_measure)]
    return {
        "label": row.label,
        "setting": row.setting.values,
        "kind": row.setting.kind,
        "trials": row.trials,
        "saes": len(row.works),
        "trained": sum(not work.to_train for work in row.works),
        "seconds": _sum(spent),
    }


def _notes(plan: Plan, model: Presence, workers: int, lanes: int) -> list[str]:
    absent = "the model is not on this machine and will be downloaded; harvest and measuring were not tried"
    notes = [
        (plan.halves, "--early-stop stops cells after their first seed, so this is the most that the sweep can take"),
        (plan.search, "trials that are not drawn yet are estimated by the recipe without the searched values"),
        (model.place is None and not model.problem, absent),
        (lanes < workers, f"only {lanes} of {workers} workers can compute at the same time here"),
    ]
    return [note for holds, note in notes if holds]
