"""Some steps of an arm at its full size, timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from metasae import files
from metasae.arms.train_measure import cores_for
from metasae.doctor.clock import grown, in_use, now
from metasae.recipe.recipe import Recipe
from metasae.train.loop import LOG_EVERY
from metasae.train.trainer import Trainer

# Primary steps that are timed, after some that are not, in blocks that a phase of meta steps follows.
STEPS, WARM_UP, BLOCK = 20, 3, 5
# Short steps are timed for so many seconds, long ones no longer than so many; one block is always finished.
LEAST_SECONDS, MOST_SECONDS = 1.0, 8.0
# Bytes written to see how fast checkpoints are.
WRITTEN = 64 << 20


@dataclass(frozen=True)
class ArmTrial:
    """Seconds: start, to make the trainer; step, a primary step with its batch and its share of penalties; meta, a meta
    step or None.

    n_primary, n_meta: steps of a whole run. n_steps: primary steps timed. memory: bytes that training took on the
    device.
    """

    start: float
    step: float
    meta: float | None
    n_primary: int
    n_meta: int
    n_steps: int
    memory: int

    @property
    def seconds(self) -> float:
        """Of all steps of a run."""
        return self.start + self.n_primary * self.step + self.n_meta * (self.meta or 0.0)


def try_arm(
    wanted: Recipe, arm: str, next_batch: Callable[[], Tensor], b_dec_D: Tensor, device: str = "cpu"
) -> tuple[ArmTrial, Trainer]:
    """Times steps from the middle of the arm's run, after k has come down and with its penalties: medians.

    The first steps are left out.
    """
    with cores_for(wanted, device):
        on, train = torch.device(device), wanted.train
        before, start = in_use(on), now(on)
        trainer = Trainer(wanted, arm, 0, b_dec_D, device)
        seconds = now(on) - start
        settling = max(train.penalty_start, wanted.sae.k_anneal if wanted.sae.k_start else 0.0)
        trainer.done.primary = settled = round(settling * (trainer.total_primary - 1))
        for _ in range(WARM_UP):
            trainer.primary_step(next_batch())
        _meta_phase(trainer, 1)
        primary: dict[tuple[bool, bool], list[float]] = {}
        meta: list[float] = []
        begin, count = now(on), 0
        while count < BLOCK or (now(on) - begin < (LEAST_SECONDS if count >= STEPS else MOST_SECONDS)):
            for _ in range(BLOCK):
                if trainer.done.primary >= trainer.total_primary:
                    trainer.done.primary = settled
                logged, charged = count % LOG_EVERY == 0, trainer.done.primary % train.penalty_every == 0
                start = now(on)
                trainer.primary_step(next_batch(), with_penalty=logged)
                primary.setdefault((logged, charged), []).append(now(on) - start)
                count += 1
            meta.append(_meta_phase(trainer, min(train.n_meta_steps, BLOCK)))
        memory, step = grown(on, before), _mean_step(primary, train.penalty_every)
        meta_step = median(meta) if trainer.meta else None
        steps = trainer.total_primary, trainer.total_meta
        return ArmTrial(seconds, step, meta_step, *steps, count, memory), trainer


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


def _mean_step(primary: dict[tuple[bool, bool], list[float]], penalty_every: int) -> float:
    """The medians of each kind of step (logged, charged with further penalties), weighed by how often a run takes such
    steps.
    """
    shares = {
        (logged, charged): (1 / LOG_EVERY if logged else 1 - 1 / LOG_EVERY)
        * (1 / penalty_every if charged else 1 - 1 / penalty_every)
        for logged, charged in product((False, True), repeat=2)
    }
    total = sum(shares[kind] for kind in primary)
    return sum(shares[kind] * median(times) for kind, times in primary.items()) / total
