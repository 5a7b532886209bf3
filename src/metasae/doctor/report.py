"""The doctor's report: examines the machine, the model and the recipe, tries a small piece of every stage, and says
whether the run fits.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from metasae.arms.train import trains_on_one_core
from metasae.device import keep_freed_memory
from metasae.doctor import fit
from metasae.doctor.estimate import Needs, kind_of, needs
from metasae.doctor.machine import machine, peak_resident, resident
from metasae.doctor.measure_trial import measure_seconds
from metasae.doctor.piece import Trials, piece_of
from metasae.doctor.presence import Presence, presence_of
from metasae.doctor.trials import harvest_seconds
from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.meaning import notes_on
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import matmul_dtype

# A fit with less than this share of room to spare is called tight.
TIGHT = 0.2


def try_stages(wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials, progress: Progress) -> None:
    """Tries each stage of a run and fills `trials`.

    If the model is not here, harvest and measuring are not tried; training is tried on random numbers.
    """
    with piece_of(wanted, out, model, device, trials, progress) as piece:
        for arm in wanted.arms:
            progress.say(f"trying to train {arm}")
            trained = None  # drops the last trainer first, as two would take twice the memory
            trials.arms[arm], trained = piece.try_training(wanted, arm)
        if piece.sample is not None:
            try:
                progress.say("trying to measure")
                trials.measure = piece.try_measuring(wanted, trained)
            except UserError as error:
                trials.problems.append(str(error))


def examine(
    wanted: Recipe, folder: Path, device: str = "cpu", quick: bool = False, progress: Progress = SILENT
) -> dict:
    """Examines what a run would need and whether it fits; returns plain JSON. Writes to a temporary folder only.

    quick: calculate sizes only; no model is loaded and nothing is timed. In the result, needs: None if the model's
    width is not known. changes: settings with which the run would fit, None if there are none. problems: what stops the
    run besides sizes. stages: empty if nothing was tried; seconds over all seeds and tokens per second, None if not
    known.
    """
    keep_freed_memory()
    here, own, begin = machine(), resident(), time.perf_counter()
    model = presence_of(wanted, device)
    # a run needs the same time to import the libraries that read the model's configuration
    looking = time.perf_counter() - begin
    trials = Trials(Path(wanted.harvest.cache) if wanted.harvest.cache else folder.parent / "activations")
    gpu = here["gpus"][int(device.partition(":")[2] or 0)]["free"] if device != "cpu" else None
    # this process's memory will be free when the run begins
    room = fit.disk_room(folder, trials.cache, here["available"] + own, gpu)

    def needs_of(some: Recipe) -> Needs:
        width = matmul_dtype(some.train.dtype, torch.device(device)).itemsize
        needed = needs(some, model.d, model.bytes, model.vocabulary, width, here["threads"], device != "cpu")
        return replace(needed, process=needed.process if trials.process is None else trials.process)

    needed, short, changes = None, [], None
    if model.d is not None:
        short = [one for one in fit.shortages(needs_of(wanted), room) if one.resource.lower().endswith("memory")]
        if not quick and not short:
            try_stages(wanted, folder, model, device, trials, progress)
            room = fit.disk_room(folder, trials.cache, room.memory, room.gpu)
        needed = needs_of(wanted)
        # measured values replace calculated ones; for training the larger of the two counts
        train = max(needed.train, *(trial["memory"] for trial in trials.arms.values()), 0)
        needed = replace(needed, train=train, forward=trials.harvest["memory"] if trials.harvest else needed.forward)
        short = fit.shortages(needed, room)
        changes = fit.changes(wanted, needs_of, room) if short else []
    stages = _stages(wanted, trials, looking, device)
    seconds = [stage["seconds"] for stage in stages]
    problems = ([model.problem] if model.problem else []) + trials.problems
    return {
        "fits": not short and not problems,
        "problems": problems,
        "shortages": [asdict(one) for one in short],
        "changes": None if changes is None else dict(changes),
        "notes": _notes(wanted, needed, room, model, trials),
        "out": str(folder),
        "device": device,
        "machine": here,
        "model": asdict(model),
        "room": asdict(room),
        "needs": needed and asdict(needed) | {"memory": needed.memory, "gpu": needed.gpu},
        "cached": trials.cached,
        "seeds": len(wanted.seeds),
        "stages": stages,
        "seconds": None if not seconds or None in seconds else sum(seconds),
        "trials": {name: getattr(trials, name) for name in ("load", "harvest", "arms", "measure")}
        | {"peak_memory": peak_resident()},
    }


def _stages(wanted: Recipe, trials: Trials, looking: float, device: str) -> list[dict]:
    """The stages with their estimated seconds; empty if nothing was tried. looking: seconds until the model's
    configuration was known.

    For arms that are trained side by side, the time is divided by the number of lanes.
    """
    if not trials.arms:
        return []
    harvest, measure, seeds = trials.harvest, trials.measure, len(wanted.seeds)
    rows = [("harvest", 0.0 if trials.cached else None, None)]
    if harvest and not trials.cached:
        seconds = harvest_seconds(harvest, wanted)
        rows = [("harvest", looking + trials.load + seconds, sum(wanted.split_tokens.values()) / seconds)]
    side_by_side = trains_on_one_core(wanted, device)
    lanes = min(torch.get_num_threads(), len(wanted.arms) * seeds) if side_by_side else 1
    for arm, trial in trials.arms.items():
        seconds = trial["seconds"] + (measure["calibrate"] if measure else 0.0)
        rows.append((f"train {arm}", seconds * seeds / lanes, wanted.train.tokens / trial["seconds"]))
    rows.append(("measure", measure_seconds(measure, wanted) if measure else None, None))
    return [{"name": name, "seconds": seconds, "rate": rate} for name, seconds, rate in rows]


def _notes(wanted: Recipe, needed: Needs | None, room: fit.Room, model: Presence, trials: Trials) -> list[str]:
    tokens, there, kind = wanted.train.tokens, wanted.split_tokens["train"], wanted.sae.architecture
    again = f"training reads each of the {there:,} cached tokens {tokens / there:.3g} times"
    absent = (
        f"the model is not on this machine: {fit.size(model.bytes or 0)} will be downloaded; the harvest was not tried"
    )
    across = bool(wanted.measure.senses or wanted.measure.labels or wanted.measure.across)

    def tight(need: int, there: int | None) -> bool:
        return there is not None and (1 - TIGHT) * there < need <= there

    notes = [
        (needed and tight(needed.memory, room.memory), "memory is tight: the estimate is within a fifth"),
        (needed and tight(needed.gpu, room.gpu), "GPU memory is tight: the estimate is within a fifth"),
        (
            needed and room.memory and needed.memory <= room.memory < needed.memory + needed.cache,
            "memory cannot hold all activations, so training waits for the disk and takes longer than the trial shows",
        ),
        (model.place is None and not model.problem, absent),
        (there < tokens, f"{again}, in a new order each time (harvest.tokens)"),
        (
            trials.arms and kind_of(wanted.sae).own_threshold and not kind_of(wanted.sae).follows,
            f"a {kind} SAE begins with half of its latents active; later it trains faster than in this trial",
        ),
        (
            trials.measure and across,
            "the time for tagged sentences and for measures that take two SAEs is not included",
        ),
        (needed and not trials.arms, "nothing was tried: times are not known, and memory is only calculated"),
    ]
    return [note for holds, note in notes if holds] + notes_on(wanted)
