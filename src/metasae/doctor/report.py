"""The doctor: looks at the machine, the model and the recipe, tries a small piece of every stage, and says whether the
run fits.
"""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from metasae.arms.train_measure import trains_on_one_core
from metasae.device import keep_freed_memory
from metasae.doctor import fit
from metasae.doctor.estimate import Needs, kind_of, needs, with_measured
from metasae.doctor.machine import machine, resident
from metasae.doctor.presence import Presence, presence_of
from metasae.doctor.stages import harvest_seconds, measure_seconds
from metasae.doctor.trials import Trials, try_stages
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import matmul_dtype

# A fit with less room than this share to spare is called tight.
TIGHT = 0.2


def examine(
    wanted: Recipe, folder: Path, device: str = "cpu", quick: bool = False, progress: Progress = SILENT
) -> dict:
    """Says what a run would need and whether it fits, as plain JSON. wanted, folder: as `resolve` gives them. Writes to
    a temporary folder only. A run that cannot be is a report that does not fit.

    needs: None where the model's width is not known. changes: settings with which the run would fit, None where none
    would. problems: what stops the run besides sizes. stages: empty where nothing was tried; seconds over all seeds and
    tokens per second, None where they could not be estimated. seconds: of the whole run, None likewise.

    quick: arithmetic alone; no model is loaded and nothing timed.
    """
    keep_freed_memory()
    here, own, begin = machine(), resident(), time.perf_counter()
    model = presence_of(wanted, device)
    # the libraries that a look at the model brings in are as slow to come in a run
    looking = time.perf_counter() - begin
    trials = Trials(Path(wanted.harvest.cache) if wanted.harvest.cache else folder.parent / "activations")
    gpu = here["gpus"][int(device.partition(":")[2] or 0)]["free"] if device != "cpu" else None
    # this process will have given its memory back when the run begins
    room = fit.disk_room(folder, trials.cache, here["available"] + own, gpu)

    def needs_of(some: Recipe) -> Needs:
        width = matmul_dtype(some.train.dtype, torch.device(device)).itemsize
        needed = needs(some, model.d, model.bytes, model.vocabulary, width, here["threads"], device != "cpu")
        return with_measured(needed, trials.process, None, None)

    needed, short, changes = None, [], None
    if model.d is not None:
        short = [one for one in fit.shortages(needs_of(wanted), room) if one.resource.lower().endswith("memory")]
        if not quick and not short:
            try_stages(wanted, folder, model, device, trials, progress)
            room = fit.disk_room(folder, trials.cache, room.memory, room.gpu)
        forward = trials.harvest["memory"] if trials.harvest else None
        train = max((trial["memory"] for trial in trials.arms.values()), default=None)
        needed = with_measured(needs_of(wanted), None, forward, train)
        short = fit.shortages(needed, room)
        changes = fit.changes(wanted, needs_of, room) if short else []
    stages = _stages(wanted, trials, needed, looking, device)
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
        "needs": needed and needed.as_dict(),
        "cached": trials.cached,
        "seeds": len(wanted.seeds),
        "stages": stages,
        "seconds": None if not seconds or None in seconds else sum(seconds),
        "trials": trials.as_dict(),
    }


def _stages(wanted: Recipe, trials: Trials, needed: Needs | None, looking: float, device: str) -> list[dict]:
    """Empty where no trial was made. looking: seconds until the model's configuration was known.

    Arms that are trained side by side share the time of all of them by the lanes that there are.
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
        written = trial["n_primary"] // wanted.train.checkpoint_every * needed.checkpoint + needed.sae
        seconds = trial["seconds"] + written * trials.seconds_per_byte + (measure["calibrate"] if measure else 0.0)
        rows.append((f"train {arm}", seconds * seeds / lanes, wanted.train.tokens / trial["seconds"]))
    rows.append(("measure", measure_seconds(measure, wanted) if measure else None, None))
    return [{"name": name, "seconds": seconds, "rate": rate} for name, seconds, rate in rows]


def _notes(wanted: Recipe, needed: Needs | None, room: fit.Room, model: Presence, trials: Trials) -> list[str]:
    tokens, there, kind = wanted.train.tokens, wanted.split_tokens["train"], wanted.sae.architecture
    again = f"training reads each of the {there:,} cached tokens {tokens / there:.3g} times"
    absent = f"the model is not here: {fit.size(model.bytes or 0)} will be downloaded; the harvest was not tried"
    across = bool(wanted.measure.senses or wanted.measure.across)
    notes = [
        (model.place is None and not model.problem, absent),
        (there < tokens, f"{again}, in a fresh order each time (harvest.tokens)"),
        (
            trials.arms and kind_of(wanted.sae).own_threshold,
            f"a {kind} SAE begins with half of its latents on; later it trains faster than in this trial",
        ),
        (trials.measure and across, "the time for senses and for what is measured across SAEs comes on top"),
        (needed and not trials.arms, "nothing was tried: times are not known, and memory is arithmetic alone"),
    ]
    return [*(_on_memory(needed, room) if needed else ()), *(note for holds, note in notes if holds)]


def _on_memory(needed: Needs, room: fit.Room) -> list[str]:
    pairs = (("memory", needed.memory, room.memory), ("GPU memory", needed.gpu, room.gpu))
    tight = [name for name, need, there in pairs if there and (1 - TIGHT) * there < need <= there]
    notes = [f"{name} is tight: the estimate is within a fifth" for name in tight]
    if room.memory is not None and needed.memory <= room.memory < needed.memory + needed.cache:
        notes.append(
            "memory will not hold all activations, so training waits for the disk, and longer than any trial shows"
        )
    return notes
