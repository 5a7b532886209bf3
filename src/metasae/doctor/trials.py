"""The trials of a recipe: a small piece of every stage, one after the other, in a temporary folder."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from metasae import files
from metasae.arms.train_measure import cores_for, initial_b_dec, input_scale
from metasae.data.cache.activations import fingerprint_of, identity
from metasae.data.cache.cache import ActivationCache, large_enough
from metasae.data.cache.stream import Stream
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.doctor.estimate import is_planted
from metasae.doctor.machine import peak_resident, resident
from metasae.doctor.presence import Presence
from metasae.doctor.stages import grown, in_use, now, try_harvest, try_measuring, try_planting
from metasae.errors import UserError
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Recipe
from metasae.train.loop import LOG_EVERY
from metasae.train.trainer import Trainer

# Primary steps that are timed, after some that are not, in blocks that a phase of meta steps follows.
STEPS, WARM_UP, BLOCK = 20, 3, 5
# Short steps are timed for so many seconds, long ones no longer than so many; one block is always finished.
LEAST_SECONDS, MOST_SECONDS = 1.0, 8.0
# Bytes written to see how fast checkpoints are.
WRITTEN = 64 << 20
# Libraries that a run loads later than the trials do (figures), and what a heap in pieces leaves unused.
LATER = 200 << 20


@dataclass
class Trials:
    """What was measured; None or empty for what could not be. load: seconds for the model. process: bytes of the
    program without it.

    harvest, arms, measure: as of `try_harvest`, `try_arm` and `try_measuring`. cache: the folder of the run's
    activations; cached: they are there already. problems: what would stop the run.
    """

    cache: Path
    load: float | None = None
    process: int | None = None
    cached: bool = False
    harvest: dict | None = None
    arms: dict[str, dict] = field(default_factory=dict)
    measure: dict | None = None
    seconds_per_byte: float = 0.0
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return {
            "load": self.load,
            "harvest": self.harvest,
            "arms": self.arms,
            "measure": self.measure,
            "seconds_per_byte": self.seconds_per_byte,
            "peak_memory": peak_resident(),
        }


def try_stages(wanted: Recipe, out: Path, model: Presence, device: str, trials: Trials, progress: Progress) -> None:
    """Fills `trials`.

    A model that is not here leaves the harvest and the measuring untried; training is tried on made-up numbers.
    """
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
) -> tuple[dict, Trainer, float]:
    """(the trial, the trainer after it, what its inputs were multiplied by)."""
    batch = wanted.train.batch
    if sample is None:
        generator = torch.Generator().manual_seed(0)
        return *try_arm(wanted, arm, lambda: torch.randn(batch, d, generator=generator), torch.zeros(d), device), 1.0
    split = sample.split("train")
    scale = input_scale(split, wanted.sae.normalize)
    stream, b_dec_D = Stream(split, batch, 0, scale), initial_b_dec(split, scale, wanted)
    return *try_arm(wanted, arm, stream.next, b_dec_D, device), scale


def try_arm(
    wanted: Recipe, arm: str, next_batch: Callable[[], Tensor], b_dec_D: Tensor, device: str = "cpu"
) -> tuple[dict, Trainer]:
    """Times steps from the middle of the arm's run, after k has come down and with its penalties; the first steps are
    left out. (the trial, the trainer after it).

    In seconds: start, to make the trainer; step, a primary step with its batch and its share of penalties, the mean;
    meta, a meta step or None, the median of the phases; seconds, of all steps of a run. n_primary, n_meta: steps of a
    whole run. n_steps: primary steps timed. memory: bytes that training took on the device.
    """
    with cores_for(wanted, device):
        on, train = torch.device(device), wanted.train
        before, start = in_use(on), now(on)
        trainer = Trainer(wanted, arm, 0, b_dec_D, device)
        starting = now(on) - start
        settling = max(train.penalty_start, wanted.sae.k_anneal if wanted.sae.k_start else 0.0)
        trainer.done.primary = settled = round(settling * (trainer.total_primary - 1))
        for _ in range(WARM_UP):
            trainer.primary_step(next_batch())
        _meta_phase(trainer, 1)
        seconds, count, meta = 0.0, 0, []
        begin = now(on)
        while count < BLOCK or (now(on) - begin < (LEAST_SECONDS if count >= STEPS else MOST_SECONDS)):
            start = now(on)
            for _ in range(BLOCK):
                if trainer.done.primary >= trainer.total_primary:
                    trainer.done.primary = settled
                trainer.primary_step(next_batch(), with_penalty=count % LOG_EVERY == 0)
                count += 1
            seconds += now(on) - start
            meta.append(_meta_phase(trainer, min(train.n_meta_steps, BLOCK)))
    trial = {
        "start": starting,
        "step": seconds / count,
        "meta": median(meta) if trainer.meta else None,
        "n_primary": trainer.total_primary,
        "n_meta": trainer.total_meta,
        "n_steps": count,
        "memory": grown(on, before),
    }
    steps = trial["n_primary"] * trial["step"] + trial["n_meta"] * (trial["meta"] or 0.0)
    return trial | {"seconds": starting + steps}, trainer


def seconds_per_byte(folder: Path) -> float:
    """Of a file written to `folder`, as checkpoints are."""
    start = time.perf_counter()
    files.write_tensors(folder / "written.safetensors", {"x": torch.zeros(WRITTEN, dtype=torch.uint8)})
    return (time.perf_counter() - start) / WRITTEN


def _meta_phase(trainer: Trainer, steps: int) -> float:
    """Seconds per meta step; the first also puts the decoder rows in order for the others. 0 without a meta SAE."""
    start = now(trainer.device)
    for _ in range(steps if trainer.meta else 0):
        trainer.meta_step()
    return (now(trainer.device) - start) / steps
