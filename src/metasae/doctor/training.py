"""Some steps of an arm at its full size, timed."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from metasae import files
from metasae.arms.train_measure import cores_for
from metasae.data.split import Split
from metasae.data.cache.stream import Stream
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
    """Seconds: start, to make the trainer; step, a primary step with its batch and its share of penalties; meta, a meta step or None.

    n_primary, n_meta: steps of a whole run. n_steps: primary steps timed. memory: bytes that training took on the device.
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

    def as_dict(self) -> dict:
        return asdict(self) | {"seconds": self.seconds}


def try_arm(
    wanted: Recipe, arm: str, next_batch: Callable[[], Tensor], b_dec_D: Tensor, device: str = "cpu"
) -> tuple[ArmTrial, Trainer]:
    """Times steps from the middle of the arm's run: after k has come down, with its penalties. Medians, the first steps left out."""
    with cores_for(wanted, device):
        return _try_arm(wanted, arm, next_batch, b_dec_D, device)


def _try_arm(
    wanted: Recipe, arm: str, next_batch: Callable[[], Tensor], b_dec_D: Tensor, device: str
) -> tuple[ArmTrial, Trainer]:
    """`try_arm`, on as many cores as torch may use now."""
    on = torch.device(device)
    before, start = in_use(on), now(on)
    trainer = Trainer(wanted, arm, 0, b_dec_D, device)
    made = now(on) - start
    settled = round(
        max(wanted.train.penalty_start, wanted.sae.k_anneal if wanted.sae.k_start else 0.0)
        * (trainer.total_primary - 1)
    )
    trainer.done.primary = settled
    phase = min(wanted.train.n_meta_steps, BLOCK)
    for _ in range(WARM_UP):
        trainer.primary_step(next_batch())
    if trainer.meta:
        _meta_phase(trainer, 1, on)
    primary: dict[tuple[bool, bool], list[float]] = {}
    meta: list[float] = []
    begin, count = now(on), 0
    while count < BLOCK or (now(on) - begin < (LEAST_SECONDS if count >= STEPS else MOST_SECONDS)):
        for _ in range(BLOCK):
            if trainer.done.primary >= trainer.total_primary:
                trainer.done.primary = settled
            logged, charged = count % LOG_EVERY == 0, trainer.done.primary % wanted.train.penalty_every == 0
            start = now(on)
            trainer.primary_step(next_batch(), with_penalty=logged)
            primary.setdefault((logged, charged), []).append(now(on) - start)
            count += 1
        if trainer.meta:
            meta.append(_meta_phase(trainer, phase, on))
    memory = grown(on, before)
    step = _mean_step(primary, wanted.train.penalty_every)
    return ArmTrial(
        made, step, median(meta) if meta else None, trainer.total_primary, trainer.total_meta, count, memory
    ), trainer


def batches_of(split: Split, batch: int, scale: float) -> Callable[[], Tensor]:
    """Batches as training takes them."""
    return Stream(split, batch, 0, scale).next


def made_up_batches(batch: int, d: int) -> Callable[[], Tensor]:
    """Random numbers of the right size, for when there are no activations."""
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(batch, d, generator=generator)


def seconds_per_byte(folder: Path) -> float:
    """Of a file written to `folder`, as checkpoints are."""
    start = time.perf_counter()
    files.write_tensors(folder / "written.safetensors", {"x": torch.zeros(WRITTEN, dtype=torch.uint8)})
    return (time.perf_counter() - start) / WRITTEN


def _meta_phase(trainer: Trainer, steps: int, device: torch.device) -> float:
    """Seconds per meta step; the first also puts the decoder rows in order for the others."""
    start = now(device)
    for _ in range(steps):
        trainer.meta_step()
    return (now(device) - start) / steps


def _mean_step(primary: dict[tuple[bool, bool], list[float]], penalty_every: int) -> float:
    """The medians of each kind of step (logged, charged with further penalties), weighed by how often a run takes such steps."""
    shares = {
        (logged, charged): (1 / LOG_EVERY if logged else 1 - 1 / LOG_EVERY)
        * (1 / penalty_every if charged else 1 - 1 / penalty_every)
        for logged, charged in product((False, True), repeat=2)
    }
    total = sum(shares[kind] for kind in primary)
    return sum(shares[kind] * median(times) for kind, times in primary.items()) / total
