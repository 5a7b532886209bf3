"""A small piece of a recipe's activations, on which training and measuring are tried. Making it is the trial of the
harvest. The doctor tries the arms of a run on it, a preview of a sweep the SAEs of its cells.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from metasae.arms.train import initial_b_dec, input_scale
from metasae.data.cache.activations import fingerprint_of, identity
from metasae.data.cache.cache import ActivationCache, large_enough
from metasae.data.cache.stream import Stream
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.doctor.estimate import is_planted
from metasae.doctor.machine import resident
from metasae.doctor.measure_trial import try_measuring
from metasae.doctor.presence import Presence
from metasae.doctor.trials import try_arm, try_harvest, try_planting
from metasae.errors import UserError
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.train.trainer import Trainer

# Bytes for libraries that a run loads after the trials (figures), and for memory lost to fragmentation.
LATER = 200 << 20
# A trainer after its trial, and the factor by which its inputs were multiplied.
Trained = tuple[Trainer, float]


@dataclass
class Trials:
    """The results of the trials; None or empty for what could not be tried. load: seconds to load the model. process:
    bytes of the program without the model.

    harvest, arms, measure: results of `try_harvest`, `try_arm` and `try_measuring`. cache: the folder of the run's
    activations; cached: whether they exist already. problems: what would stop the run.
    """

    cache: Path
    load: float | None = None
    process: int | None = None
    cached: bool = False
    harvest: dict | None = None
    arms: dict[str, dict] = field(default_factory=dict)
    measure: dict | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """sample: some activations of each split; host: the model. Both are None if the model is not here or the harvest is
    impossible, host also for a planted world. d: width of the activations.
    """

    sample: ActivationCache | PlantedCache | None
    host: Host | None
    d: int
    device: str

    def try_training(self, wanted: Recipe, arm: str) -> tuple[dict, Trained]:
        """Tries to train an arm, on random numbers if there is no sample. Returns (the trial of `try_arm`, what
        `try_measuring` takes).
        """
        batch = wanted.train.batch
        if self.sample is None:
            generator = torch.Generator().manual_seed(0)
            next_batch = partial(torch.randn, batch, self.d, generator=generator)
            scale, b_dec_D = 1.0, torch.zeros(self.d)
        else:
            split = self.sample.split("train")
            scale = input_scale(split, wanted.sae.normalize)
            next_batch, b_dec_D = Stream(split, batch, 0, scale).next, initial_b_dec(split, scale, wanted)
        trial, trainer = try_arm(wanted, arm, next_batch, b_dec_D, self.device)
        return trial, (trainer, scale)

    def try_measuring(self, wanted: Recipe, trained: Trained) -> dict:
        """Tries to measure an SAE that `try_training` began to train; returns the trial. There has to be a sample.

        Raises UserError if the run's own measuring would.
        """
        trainer, scale = trained
        return try_measuring(trainer.export(scale, {})["primary"], self.sample, wanted, self.host)


@contextmanager
def piece_of(
    wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials, progress: Progress
) -> Iterator[Piece]:
    """Tries the harvest, notes in `trials` what it took and whether the activations exist already, and yields the piece
    that it gave. The piece is on disk until the block ends.

    out: the run folder, beside which its activations would be. What stops the harvest is one of `trials.problems`.
    """
    with tempfile.TemporaryDirectory(prefix="metasae-doctor-") as name:
        host = sample = None
        try:
            if is_planted(wanted):
                progress.say("trying the planted world")
                trials.load, trials.process = 0.0, resident() + LATER
                trials.harvest, sample = try_planting(wanted)
            elif model.place is not None and not model.problem:
                progress.say("trying the harvest")
                host = _load(wanted, out, model, device, trials)
                trials.harvest, sample = try_harvest(host, wanted, Path(name) / "cache")
        except UserError as error:
            trials.problems.append(str(error))
        yield Piece(sample, host, model.d, device)


def _load(wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials) -> Host:
    """Loads the model; notes in `trials` whether its activations exist already."""
    begin = time.perf_counter()
    host = Host.load(wanted.model, wanted.hook.point, device)
    key = fingerprint_of(identity(host, wanted.text, wanted.harvest))
    trials.load = time.perf_counter() - begin
    trials.process = resident() + LATER - (model.bytes if device == "cpu" else 0)
    if not wanted.harvest.cache:
        trials.cache = out.parent / "activations" / key[:16]
    trials.cached = large_enough(trials.cache, key, wanted.split_tokens) is not None
    return host
