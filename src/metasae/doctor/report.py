"""The doctor: looks at the machine, the model and the recipe, tries a small piece of every stage, and says whether the
run fits.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from metasae.arms.train_measure import trains_on_one_core
from metasae.device import keep_freed_memory
from metasae.doctor import fit
from metasae.doctor.estimate import Needs, is_planted, kind_of, needs, with_measured
from metasae.doctor.machine import Machine, machine, resident
from metasae.doctor.presence import Presence, planted_presence, presence_of
from metasae.doctor.trials import Trials, try_stages
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import resolve
from metasae.sae.gradients import matmul_dtype

# A fit with less room than this share to spare is called tight.
TIGHT = 0.2


@dataclass(frozen=True)
class Stage:
    """seconds: of a stage of the run over all seeds, None where it could not be estimated. rate: tokens per second,
    None likewise.
    """

    name: str
    seconds: float | None
    rate: float | None = None


@dataclass(frozen=True)
class Report:
    """What `examine` says.

    needs: None where the model's width is not known. changes: settings with which the run would fit, None where none
    would. problems: what stops the run besides sizes. stages: empty where nothing was tried.
    """

    recipe: Recipe
    out: Path
    device: str
    machine: Machine
    model: Presence
    room: fit.Room
    needs: Needs | None
    shortages: list[fit.Shortage]
    changes: list[fit.Change] | None
    notes: list[str]
    trials: Trials
    stages: list[Stage]

    @property
    def problems(self) -> list[str]:
        return ([self.model.problem] if self.model.problem else []) + self.trials.problems

    @property
    def fits(self) -> bool:
        return not self.shortages and not self.problems

    @property
    def seconds(self) -> float | None:
        """Of the whole run; None where a stage could not be estimated."""
        seconds = [stage.seconds for stage in self.stages]
        return None if not seconds or None in seconds else sum(seconds)

    def as_dict(self) -> dict:
        """Plain JSON."""
        return {
            "fits": self.fits,
            "problems": self.problems,
            "shortages": [asdict(short) for short in self.shortages],
            "changes": None if self.changes is None else dict(self.changes),
            "notes": self.notes,
            "out": str(self.out),
            "device": self.device,
            "machine": asdict(self.machine),
            "model": asdict(self.model),
            "room": asdict(self.room),
            "needs": self.needs and self.needs.as_dict(),
            "cached": self.trials.cached,
            "stages": [asdict(stage) for stage in self.stages],
            "seconds": self.seconds,
            "trials": self.trials.as_dict(),
        }


def examine(
    recipe: str | Path | dict | Recipe,
    out: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    quick: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Says what a run would need and whether it fits; arguments as of `metasae.run`. Writes to a temporary folder only.

    quick: arithmetic alone; no model is loaded and nothing timed. A run that cannot be is a report that does not fit.
    Raises UserError for what a run refuses before it looks at the model: an unknown recipe, key, value or device.
    """
    wanted, folder = resolve(recipe, out, overrides, device)
    keep_freed_memory()
    here, own, begin = machine(), resident(), time.perf_counter()
    planted = is_planted(wanted)
    model = planted_presence(wanted.planted) if planted else presence_of(wanted.model, wanted.hook.point, device)
    # the libraries that a look at the model brings in are as slow to come in a run
    looking = time.perf_counter() - begin
    trials = Trials(Path(wanted.harvest.cache) if wanted.harvest.cache else folder.parent / "activations")
    gpu = here.gpus[int(device.partition(":")[2] or 0)].free if device != "cpu" else None
    # this process will have given its memory back when the run begins
    room = fit.disk_room(folder, trials.cache, here.available + own, gpu)

    def needs_of(some: Recipe) -> Needs:
        width = matmul_dtype(some.train.dtype, torch.device(device)).itemsize
        needed = needs(some, model.d, model.bytes, model.vocabulary, width, here.threads, device != "cpu")
        return with_measured(needed, trials.process, None, None)

    needed, short, changes = None, [], None
    if model.d is not None:
        short = [one for one in fit.shortages(needs_of(wanted), room) if one.resource.lower().endswith("memory")]
        if not quick and not short:
            try_stages(wanted, folder, model, device, trials, progress)
            room = fit.disk_room(folder, trials.cache, room.memory, room.gpu)
        forward = trials.harvest.memory if trials.harvest else None
        train = max((trial.memory for trial in trials.arms.values()), default=None)
        needed = with_measured(needs_of(wanted), None, forward, train)
        short = fit.shortages(needed, room)
        changes = fit.changes(wanted, needs_of, room) if short else []
    notes, stages = _notes(wanted, needed, room, model, trials), _stages(wanted, trials, needed, looking, device)
    return Report(wanted, folder, device, here, model, room, needed, short, changes, notes, trials, stages)


def _stages(wanted: Recipe, trials: Trials, needed: Needs | None, looking: float, device: str) -> list[Stage]:
    """Empty where no trial was made. looking: seconds until the model's configuration was known.

    Arms that are trained side by side share the time of all of them by the lanes that there are.
    """
    if not trials.arms:
        return []
    harvest, measure, seeds = trials.harvest, trials.measure, len(wanted.seeds)
    stages = [Stage("harvest", 0.0 if trials.cached else None)]
    if harvest and not trials.cached:
        seconds = harvest.seconds(wanted)
        stages = [Stage("harvest", looking + trials.load + seconds, sum(wanted.split_tokens.values()) / seconds)]
    side_by_side = trains_on_one_core(wanted, device)
    lanes = min(torch.get_num_threads(), len(wanted.arms) * seeds) if side_by_side else 1
    for arm, trial in trials.arms.items():
        written = trial.n_primary // wanted.train.checkpoint_every * needed.checkpoint + needed.sae
        seconds = trial.seconds + written * trials.seconds_per_byte + (measure.calibrate if measure else 0.0)
        stages.append(Stage(f"train {arm}", seconds * seeds / lanes, wanted.train.tokens / trial.seconds))
    return [*stages, Stage("measure", measure.seconds(wanted) if measure else None)]


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
