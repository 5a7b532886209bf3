"""A sweep from the recipe to its table: the plan, the harvest, the workers, the results."""

import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metasae import files
from metasae.doctor.sources import check_sources
from metasae.errors import Interrupted, UserError
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe, parse_override
from metasae.recipe.resolve import resolve
from metasae.sweep import halving
from metasae.sweep.cells import Setting
from metasae.sweep.folder import FAILED, OPEN, STOPPED, SweepFolder, locked
from metasae.sweep.grid import Range, check, expand, parse_grid
from metasae.sweep.named import Ablation
from metasae.sweep.named import named as named_sweep
from metasae.sweep.plan import OBJECTIVES, Plan, Search, check_objectives, claim
from metasae.sweep.study import SAMPLERS, STORAGE, Trials

# Where a search looks when it is not told: around the paper's choice; sigma^2 below .3 is inert (METHOD of the paper: e is .7 to .95).
SPACE = {"train.lambda2": Range(0.03, 1.0, log=True), "train.sigma_sq": Range(0.3, 3.0, log=True)}
# A sweep compares many SAEs roughly; what is chosen is measured in full when it is confirmed.
TOKENS_JUDGED = 20
OUTPUT_TOKENS_JUDGED = 200
POLL_SECONDS = 0.5


def sweep(
    recipe: str | Path | dict | Recipe,
    grid: Mapping[str, Any] | Sequence[str] | None = None,
    search: int | None = None,
    seeds: int | Sequence[int] | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    storage: str | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    early_stop: bool = False,
    objectives: Sequence[str] = OBJECTIVES,
    named: str | None = None,
    sampler: str = "tpe",
    sampler_seed: int = 0,
    show: bool = True,
) -> dict:
    """Trains and measures every setting of a grid, a named sweep or a search, and compares each with solo; returns what sweep.json holds.

    grid: key -> values (or `LOW..HIGH[:log]` in a search), or `KEY=V,V` strings; only keys of sae, meta and train. search: how many
    cells are drawn from the grid's space. named: one of `metasae.sweep.named.ABLATIONS`. Exactly one of grid, named and search says what
    is done, but that a search may have a grid as its space. workers: processes on this machine; the same call may be made on other
    machines that see the folder. storage: an Optuna storage URL instead of a journal file in the folder. overrides: as in
    `metasae.run`; a sweep measures less than a run (`light`) unless they say more. objectives: keys of the catalogue with a better
    direction, the fidelity first. early_stop: `metasae.sweep.halving`. A folder with the same sweep is gone on with; what failed is tried again.
    Raises UserError for anything the user can put right, Interrupted after a signal once the state is saved.
    """
    base, full, folder = _resolve(recipe, out, overrides, seeds, device)
    plan = _plan(base, full, grid, search, named, objectives, early_stop, sampler, sampler_seed, bool(storage))
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one")
    if workers > 1 and os.name == "nt":
        raise UserError("--workers: one on Windows, which has no lock that ends with its process")
    if not folder.plan.exists():
        check_sources(plan.base)
    progress = Progress(show)
    plan = claim(folder, plan)
    try:
        _open_again(folder, plan, storage)
        _work(folder, plan, storage, workers, device, progress)
    except Interrupted as error:
        raise Interrupted(f"{error}. Go on with the same command; the sweep lies in {folder.path}") from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped at once; what is done is kept. Go on with the same command; the sweep lies in {folder.path}"
        ) from None
    return conclude(folder, plan, show)


def run_sweep(
    recipe: str,
    grid: Sequence[str] = (),
    named: str | None = None,
    search: int | None = None,
    seeds: int | Sequence[int] | None = None,
    workers: int = 1,
    storage: str | None = None,
    objective: Sequence[str] = (),
    early_stop: bool = False,
    sampler: str = "tpe",
    sampler_seed: int = 0,
    out: str | Path | None = None,
    set_: Sequence[str] = (),
    device: str = "cpu",
    show: bool = True,
) -> dict:
    """`sweep` with the command line's plain arguments: `KEY=V,V` for grid, `KEY=VALUE` for set_, () where an option was not given."""
    return sweep(
        recipe,
        grid=list(grid),
        search=search,
        seeds=seeds,
        workers=workers,
        out=out,
        storage=storage,
        overrides=dict(parse_override(text) for text in set_),
        device=device,
        early_stop=early_stop,
        objectives=tuple(objective) or OBJECTIVES,
        named=named,
        sampler=sampler,
        sampler_seed=sampler_seed,
        show=show,
    )


def conclude(folder: SweepFolder, plan: Plan, show: bool = True) -> dict:
    """Writes sweep.json, sweep.md, figures and best.toml from the settled cells; returns what sweep.json holds. Needs no torch."""
    from metasae.sweep.confirm import write_best
    from metasae.sweep.figures import write_figures
    from metasae.sweep.results import gather, write
    from metasae.sweep.table import as_markdown

    # one at a time: on many machines all processes come here at once
    with locked(folder.path / "conclude.lock"):
        result = gather(folder, plan)
        result["confirm"] = write_best(folder, plan, result)
        write(folder, result)
        table = as_markdown(result, [path.stem for path in write_figures(folder.path, result)])
        files.write_text(folder.path / "sweep.md", table)
    if show:
        print(table)
        if result["confirm"]:
            print(f"Confirm the cell nearest to the ideal on new seeds: {result['confirm']['command']}")
    return {"folder": str(folder.path), **result}


def light(base: Recipe) -> dict[str, Any]:
    """What a sweep measures less than a run, as overrides: no firings kept, nothing across SAEs, no shifted text, no pursuit, the
    excess over fixed marginals with an interval over seeds alone, and one evaluation token per 20 training tokens (at least 20,000), an
    output token per 200 (at least 2,000), where the recipe has more."""
    spec, tokens = base.measure, base.train.tokens
    fewer = {
        "measure.tokens": min(spec.tokens, max(20_000, tokens // TOKENS_JUDGED)),
        "measure.output_tokens": min(spec.output_tokens, max(2_000, tokens // OUTPUT_TOKENS_JUDGED)),
    }
    return fewer | {
        "measure.keep_firings": False,
        "measure.across": False,
        "measure.shifts": 0,
        "measure.pursuit_k": 0,
        "measure.excess_blocks": False,
    }


def _resolve(recipe, out, overrides, seeds, device) -> tuple[Recipe, dict, SweepFolder]:
    """(the sweep's recipe, the measure table of a run of it, its folder)."""
    asked = dict(overrides or {})
    if seeds is not None:
        asked["seeds"] = seeds
    whole, place = resolve(recipe, out, asked, device)
    if asked.get("measure.across"):
        raise UserError("a sweep measures nothing across SAEs; confirm its best recipe with `metasae run`, which does")
    if whole.harvest.window_tokens:
        raise UserError(
            "a sweep trains its SAEs at different times on one harvest, which must stay: set harvest.window_tokens=0"
        )
    mine = {key: value for key, value in light(whole).items() if key not in asked}
    base = Recipe.load(whole.model_dump(mode="json"), mine)
    full = {key.partition(".")[2]: getattr(whole.measure, key.partition(".")[2]) for key in mine}
    return base, full, SweepFolder(place if out is not None else place.with_name(f"{place.name}-sweep"))


def _plan(base: Recipe, full: dict, grid, search, name, objectives, early_stop, sampler, sampler_seed, storage) -> Plan:
    if sum(map(bool, (name, grid or search))) != 1:
        raise UserError("say what is swept: --grid KEY=V,V, --named NAME, or --search N (with --grid as its space)")
    if search is not None and search < 1:
        raise UserError(f"--search {search}: at least one trial")
    if sampler not in SAMPLERS:
        raise UserError(f"no sampler '{sampler}'; known: {', '.join(SAMPLERS)}")
    if early_stop and (search or name in ("kinds", "k")):
        raise UserError(
            "--early-stop goes with a grid: a search chooses by itself, and curves at equal FVU need all their points"
        )
    axes = parse_grid(grid)
    check(base, axes)
    study, held = (
        f"metasae-{uuid.uuid4().hex[:12]}",
        {"base": base, "objectives": check_objectives(objectives), "storage": storage},
    )
    held |= {"early_stop": early_stop, "full_measure": full}
    if search:
        space = axes or SPACE
        title = f"search over {', '.join(space)}"
        return Plan(study, title, settings=(), search=Search(dict(space), search, sampler, sampler_seed), **held)
    if name:
        ablation: Ablation = named_sweep(name, base)
        if ablation.arms:
            held["base"] = base.model_copy(update={"arms": ablation.arms})
        return Plan(
            study,
            name,
            settings=ablation.settings,
            shared_baseline=ablation.shared_baseline,
            equal_fvu=ablation.equal_fvu,
            **held,
        )
    return Plan(
        study, f"grid over {', '.join(axes)}", settings=tuple(Setting(values) for values in expand(axes)), **held
    )


def _open_again(folder: SweepFolder, plan: Plan, storage: str | None) -> None:
    """Fills the study, and opens cells that failed, or that lack a seed which came later; what failed is tried again from its checkpoint."""
    trials = Trials(folder, plan, storage)
    with locked(folder.path / "study.lock"):
        cells = folder.cells()
        more = {plan.name_of(setting) for setting in plan.settings} - {cell.name for cell in cells}
        if (more and cells) or any(cell.state == FAILED for cell in cells):
            # with further cells, and with those that had failed, early stopping is decided anew
            (folder.path / halving.FILE).unlink(missing_ok=True)
        if not plan.search:
            trials.enqueue()
        decided = halving.read(folder) is not None
        for cell in cells:
            lacks = set(plan.base.seeds) - set(cell.seeds)
            again = (
                cell.state == FAILED
                or (cell.state == STOPPED and not decided)
                or (cell.state not in (OPEN, STOPPED) and lacks)
            )
            if not again or cell.name.startswith("refused-"):
                continue
            for member in plan.members(cell.setting):
                (folder.sae(member.name) / "failed.json").unlink(missing_ok=True)
            folder.write_cell(replace(cell, state=OPEN, why=""))


def _work(folder: SweepFolder, plan: Plan, storage: str | None, workers: int, device: str, progress: Progress) -> None:
    from metasae.progress.stop import StopRequest
    from metasae.sweep.worker import Worker

    worker = Worker(folder, device, progress, storage)
    # stopped at once by a signal: the harvest goes on from its last note
    worker.harvest()
    if workers == 1:
        with StopRequest(progress.answer).listening() as stop:
            worker.work(stop)
        return
    # its model and its activations are not needed here any more
    del worker
    with StopRequest(progress.answer, "every worker's step").listening() as stop:
        _supervise(folder, plan, storage, devices(device, workers), progress, stop)


def _supervise(
    folder: SweepFolder, plan: Plan, storage: str | None, places: list[str], progress: Progress, stop
) -> None:
    """Starts a process per place and waits for them. One that is killed is not started again: the others take up its work."""
    started = [_start(folder, storage, place, number, len(places)) for number, place in enumerate(places)]
    total = len(plan.settings) or plan.search.trials
    try:
        with progress.task(f"sweep, {len(places)} workers", total, "cells") as task:
            shown = 0
            while any(process.poll() is None for process, _ in started):
                if stop.asked:
                    break
                settled = sum(cell.state != OPEN for cell in folder.cells())
                task.advance(max(0, settled - shown))
                shown = max(settled, shown)
                time.sleep(POLL_SECONDS)
    finally:
        for process, _ in started:
            if process.poll() is None:
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
    """Whether every cell that the plan asks for has come to its end."""
    cells = folder.cells()
    taken = sum(len(cell.trials) for cell in cells)
    missing = (
        taken < plan.search.trials
        if plan.search
        else {plan.name_of(setting) for setting in plan.settings} - {cell.name for cell in cells}
    )
    return not missing and all(cell.state != OPEN for cell in cells)


def _start(
    folder: SweepFolder, storage: str | None, device: str, number: int, of: int
) -> tuple[subprocess.Popen, Path]:
    """A worker in a session of its own, so that a Ctrl-C reaches it through this process only, once."""
    log = folder.path / "workers" / f"{platform.node()}-{os.getpid()}-{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ} | ({STORAGE: storage} if storage else {})
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // of)))
    command = [sys.executable, "-m", "metasae.sweep", str(folder.path), device]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True), log


def _last_words(process: subprocess.Popen, log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with code {process.returncode}"
    return f"a worker ended {how}: {lines[-1].removeprefix('metasae: ') if lines else 'it said nothing'}; its output is in {shlex.quote(str(log))}"


def devices(device: str, workers: int) -> list[str]:
    """A device for each worker: with `cuda`, the GPUs in the order of their free memory, in turn; else the one that is named."""
    if device != "cuda":
        return [device] * workers
    import torch

    free = {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}
    order = sorted(free, key=lambda number: (-free[number], number))
    return [f"cuda:{order[number % len(order)]}" for number in range(workers)]
