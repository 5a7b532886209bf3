"""A sweep from the recipe to its table: the plan, the harvest, the workers, the results."""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from metasae import files
from metasae.doctor.sources import check_sources
from metasae.errors import Interrupted, UserError
from metasae.progress.progress import Progress
from metasae.progress.stop import StopRequest
from metasae.recipe.meaning import notes_on, refuse_what_cannot_be_meant
from metasae.recipe.recipe import Recipe
from metasae.sweep import pareto
from metasae.sweep.folder import DONE, FAILED, OPEN, STOPPED, Cell, SweepFolder
from metasae.sweep.plan import Plan, asked_plan, claim, joined

POLL_SECONDS = 0.5


def sweep(
    recipe: str | Path | dict | Recipe,
    grid: Sequence[str] | None = None,
    search: int | None = None,
    seeds: int | Sequence[int] | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    storage: str | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    early_stop: bool = False,
    objectives: Sequence[str] | None = None,
    named: str | None = None,
    show: bool = True,
    dry_run: bool = False,
) -> dict:
    """Trains and measures every setting of a grid, a named ablation or a search, and compares each with solo; returns
    the content of sweep.json.

    grid: `KEY=V,V`, `KEY=[JSON list]` or, in a search, `KEY=LOW..HIGH[:log]`; only keys of sae, meta and train.
    search: how many cells are drawn from the grid's space. named: one of `metasae.sweep.named.ABLATIONS`. Give exactly
    one of grid, named and search; only a search may also have a grid, as its space. workers: processes on this machine;
    the same call may be made on other machines that see the folder. storage: an Optuna storage URL; the cells are
    copied there at the end. overrides: as in `metasae.run`; a sweep measures less than a run
    (`metasae.sweep.plan.light`) unless overrides ask for more. objectives: keys of the catalogue with a better
    direction, the fidelity first; None takes FVU and the known features that the recipe measures. early_stop: see
    `metasae.sweep.pareto`. dry_run: write nothing, and return what the sweep would do and how long it would take
    (`metasae.sweep.preview`). A folder with the same sweep is continued, and what failed is tried again. Raises
    UserError for anything the user can correct, Interrupted after a signal, when the state is saved.
    """
    changed = {**(overrides or {}), **({} if seeds is None else {"seeds": seeds})}
    plan, folder = asked_plan(recipe, out, changed, device, grid or (), search, named, objectives, early_stop)
    if workers < 1:
        raise UserError(f"--workers {workers}: there must be at least one")
    if not folder.plan.exists():
        check_sources(plan.base)
    copies = None
    if search or storage:
        # raises UserError if Optuna is missing, before anything is trained
        from metasae.sweep.search import open_storage

        copies = open_storage(storage) if storage and not dry_run else None
    progress = Progress(show)
    _check_recipes(plan, progress)
    if dry_run:
        return _preview(folder, joined(folder, plan), workers, device, progress)
    try:
        plan = open_cells(folder, plan)
        _work(folder, plan, workers, device, progress)
    except (Interrupted, KeyboardInterrupt) as error:
        why = str(error) or "stopped at once; what is done is kept"
        raise Interrupted(f"{why}. Continue with the same command; the sweep is in {folder.path}") from None
    return conclude(folder, plan, show, copies)


def _check_recipes(plan: Plan, progress: Progress) -> None:
    """Raises UserError for a cell whose values contradict each other; shows the notes on all cells."""
    recipes = [plan.base, *(setting.recipe(plan.base) for setting in plan.settings)]
    for recipe in recipes:
        refuse_what_cannot_be_meant(recipe)
    for note in dict.fromkeys(chain.from_iterable(map(notes_on, recipes))):
        progress.say(f"note: {note}")


def _preview(folder: SweepFolder, plan: Plan, workers: int, device: str, progress: Progress) -> dict:
    from metasae.sweep.preview import preview
    from metasae.sweep.preview_table import print_preview

    places = devices(device, workers) if workers > 1 else [device]
    result = preview(folder, plan, places, threads_of_each(workers), progress)
    if progress.enabled:
        print_preview(result)
    return result


def open_cells(folder: SweepFolder, plan: Plan) -> Plan:
    """Writes the plan and the cells of a grid, and opens cells again that failed or lack a seed that was added; returns
    the current plan.

    What failed is tried again from its checkpoint. Raises UserError if the folder holds another sweep.
    """
    with folder.locked():
        plan = claim(folder, plan)
        cells = folder.cells()
        known = {cell.name for cell in cells}
        number = sum(len(cell.trials) for cell in cells)
        for setting in plan.settings:
            name = plan.name_of(setting)
            if name not in known:
                known.add(name)
                folder.write_cell(Cell(name, setting, [number]))
                number += 1
        if cells and (len(known) > len(cells) or any(cell.state == FAILED for cell in cells)):
            # with more cells, and with those that had failed, early stopping is decided again
            (folder.path / pareto.HALVING).unlink(missing_ok=True)
        decided = pareto.kept(folder) is not None
        for cell in cells:
            lacks_seeds = bool(set(plan.base.seeds) - set(cell.seeds))
            again = {DONE: lacks_seeds, FAILED: not cell.name.startswith("refused-"), STOPPED: not decided}
            if again.get(cell.state):
                for member in plan.members(cell.setting):
                    (folder.sae(member).folder / "failed.json").unlink(missing_ok=True)
                folder.write_cell(replace(cell, state=OPEN, why=""))
    return plan


def conclude(folder: SweepFolder, plan: Plan, show: bool = True, copies=None) -> dict:
    """Writes sweep.json, sweep.md, figures and best.toml from the cells that have ended; returns the content of
    sweep.json. Needs no torch.

    copies: an Optuna storage to copy the cells to.
    """
    from metasae.sweep.charts import write_figures
    from metasae.sweep.results import gather, write_best
    from metasae.sweep.table import as_markdown

    # one process at a time: on several machines all processes come here at the same time
    with folder.locked():
        result = gather(folder, plan)
        result["confirm"] = write_best(folder, plan, result)
        files.write_json(folder.path / "sweep.json", result)
        table = as_markdown(result, write_figures(folder.path, result))
        files.write_text(folder.path / "sweep.md", table)
        if copies is not None:
            from metasae.sweep.search import copy_to

            copy_to(copies, plan, folder.cells())
    if show:
        print(table)
        if result["confirm"]:
            print(f"Confirm the cell nearest to the ideal on new seeds: {result['confirm']['command']}")
    return {"folder": str(folder.path), **result}


def _work(folder: SweepFolder, plan: Plan, workers: int, device: str, progress: Progress) -> None:
    from metasae.sweep.worker import Worker

    worker = Worker(folder, device, progress)
    # a signal stops this at once: the harvest continues from its last record
    worker.harvest()
    if workers == 1:
        with StopRequest(progress.answer).listening() as stop:
            worker.work(stop)
        return
    # frees the model and the activations, which are not needed in this process
    del worker
    with StopRequest(progress.answer, "every worker's step").listening() as stop:
        _supervise(folder, plan, devices(device, workers), progress, stop)


def _supervise(folder: SweepFolder, plan: Plan, places: list[str], progress: Progress, stop: StopRequest) -> None:
    """Starts a process per place and waits for them.

    A process that is killed is not started again: the others take over its work.
    """
    started = [_start(folder, place, number, len(places)) for number, place in enumerate(places)]
    try:
        most = plan.search.trials if plan.search else len(plan.settings)
        with progress.task(f"sweep, {len(places)} workers", most, "cells") as task:
            while any(process.poll() is None for process, _ in started) and not stop.asked:
                settled = sum(cell.state != OPEN for cell in folder.cells())
                task.advance(settled - task.done)
                time.sleep(POLL_SECONDS)
    finally:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.wait()
    if stop.asked:
        raise Interrupted("stopped; every worker saved its state")
    bad = [(process, log) for process, log in started if process.returncode]
    if bad and not _all_settled(folder, plan):
        raise UserError(_last_words(*bad[0]))
    for process, log in bad:
        progress.say(f"{_last_words(process, log)} (the others did its work)")


def _all_settled(folder: SweepFolder, plan: Plan) -> bool:
    """Whether every cell of the plan has ended."""
    cells = folder.cells()
    drawn = not plan.search or sum(len(cell.trials) for cell in cells) >= plan.search.trials
    return drawn and all(cell.state != OPEN for cell in cells)


def _start(folder: SweepFolder, device: str, number: int, of: int) -> tuple[subprocess.Popen, Path]:
    """Starts a worker in a session of its own, so that a Ctrl-C reaches it only once, through this process."""
    log = folder.path / "workers" / f"{platform.node()}-{os.getpid()}-{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = threads_of_each(of)
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, "-m", "metasae.sweep", str(folder.path), device]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True), log


def threads_of_each(workers: int) -> int | None:
    """Threads of a worker: its share of the cores. None, those of this process, for a single worker and if
    OMP_NUM_THREADS says how many.
    """
    if workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // workers)


def _last_words(process: subprocess.Popen, log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with code {process.returncode}"
    words = lines[-1].removeprefix("metasae: ") if lines else "it printed nothing"
    return f"a worker ended {how}: {words}; its output is in {shlex.quote(str(log))}"


def devices(device: str, workers: int) -> list[str]:
    """A device for each worker: with `cuda` the GPUs in turn, those with more free memory first; else the named
    device.
    """
    if device != "cuda":
        return [device] * workers
    import torch

    free = {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}
    order = sorted(free, key=lambda number: (-free[number], number))
    return [f"cuda:{order[number % len(order)]}" for number in range(workers)]
