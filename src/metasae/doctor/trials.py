"""The trials of a recipe: a small piece of every stage, one after the other, in a temporary folder."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metasae.arms.train_measure import initial_b_dec, input_scale
from metasae.data.cache.activations import fingerprint_of, identity
from metasae.data.cache.cache import ActivationCache, large_enough
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.doctor.estimate import is_planted
from metasae.doctor.harvesting import HarvestTrial, try_harvest, try_planting
from metasae.doctor.machine import peak_resident, resident
from metasae.doctor.measuring import MeasureTrial, try_measuring
from metasae.doctor.presence import Presence
from metasae.doctor.training import ArmTrial, batches_of, made_up_batches, seconds_per_byte, try_arm
from metasae.errors import UserError
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.train.trainer import Trainer

# Libraries that a run loads later than the trials do (figures), and what a heap in pieces leaves unused.
LATER = 200 << 20


@dataclass
class Trials:
    """What was measured; None or empty for what could not be. load: seconds for the model. process: bytes of the program without it.

    cache: the folder of the run's activations; cached: they are there already. problems: what the run would stumble over.
    """

    cache: Path
    load: float | None = None
    process: int | None = None
    cached: bool = False
    harvest: HarvestTrial | None = None
    arms: dict[str, ArmTrial] = field(default_factory=dict)
    measure: MeasureTrial | None = None
    seconds_per_byte: float = 0.0
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return {
            "load": self.load,
            "harvest": self.harvest and self.harvest.as_dict(),
            "arms": {arm: trial.as_dict() for arm, trial in self.arms.items()},
            "measure": self.measure and self.measure.as_dict(),
            "seconds_per_byte": self.seconds_per_byte,
            "peak_memory": peak_resident(),
        }


def try_stages(wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials, progress: Progress) -> None:
    """Fills `trials`. A model that is not here leaves the harvest and the measuring untried; training is tried on made-up numbers."""
    with tempfile.TemporaryDirectory(prefix="metasae-doctor-") as name:
        folder, host, sample = Path(name), None, None
        trials.seconds_per_byte = seconds_per_byte(folder)
        try:
            if is_planted(wanted):
                progress.say("trying the planted world")
                trials.load, trials.process = 0.0, resident() + LATER
                trials.harvest, sample = try_planting(wanted)
            elif model.place is not None and not model.problem:
                progress.say("trying the harvest")
                host = _load(wanted, out, model, device, trials)
                trials.harvest, sample = try_harvest(host, wanted, folder / "cache")
        except UserError as error:
            trials.problems.append(str(error))
        for arm in wanted.arms:
            progress.say(f"trying to train {arm}")
            trainer = None  # two at once would take twice the memory
            trials.arms[arm], trainer, scale = _try_arm(wanted, arm, model.d, sample, device)
        if sample is not None:
            try:
                progress.say("trying to measure")
                trials.measure = try_measuring(trainer.export(scale, {})["primary"], sample, wanted, host)
            except UserError as error:
                trials.problems.append(str(error))


def _load(wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials) -> Host:
    """The model; notes whether its activations are there already."""
    begin = time.perf_counter()
    host = Host.load(wanted.model, wanted.hook.point, device)
    key = fingerprint_of(identity(host, wanted.text, wanted.harvest))
    trials.load = time.perf_counter() - begin
    trials.process = resident() + LATER - (model.bytes if device == "cpu" else 0)
    if not wanted.harvest.cache:
        trials.cache = out.parent / "activations" / key[:16]
    trials.cached = large_enough(trials.cache, key, wanted.split_tokens) is not None
    return host


def _try_arm(
    wanted: Recipe, arm: str, d: int, sample: ActivationCache | PlantedCache | None, device: str
) -> tuple[ArmTrial, Trainer, float]:
    """(the trial, the trainer after it, what its inputs were multiplied by)."""
    if sample is None:
        return *try_arm(wanted, arm, made_up_batches(wanted.train.batch, d), torch.zeros(d), device), 1.0
    split = sample.split("train")
    scale = input_scale(split, wanted.sae.normalize)
    return *try_arm(
        wanted, arm, batches_of(split, wanted.train.batch, scale), initial_b_dec(split, scale, wanted), device
    ), scale
