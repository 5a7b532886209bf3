"""Whole training steps on a device, every engine beside its floor in time and in memory."""

import gc
import statistics
import sys
from dataclasses import replace

import torch
from dense import DenseJoint
from gpu_captured import CapturedStep
from gpu_clock import allocated, peak, seconds_of
from gpu_table import Row
from step import N_META, N_PRIMARY, Shape

from metasae.doctor import estimate, gpus
from metasae.doctor.cards import Card
from metasae.recipe.recipe import Recipe
from metasae.sae.kernels import kernels
from metasae.train.trainer import Trainer

DEAD = 0.1
ENGINES = (
    "triton bf16",
    "triton bf16, dead latents",
    "triton bf16 solo",
    "torch bf16",
    "captured bf16, primary only",
    "dense bf16",
    "dense fp32",
)


def recipe_for(shape: Shape, dtype: str, arm: str = "joint") -> Recipe:
    tables = {
        "tokens": shape.batch * 100_000,
        "batch": shape.batch,
        "lr": 3e-4,
        "dtype": dtype,
        "k_aux": 0,
        "dead_after": 10**12,
    }
    return Recipe.load(
        {"sae": {"n": shape.n, "k": shape.k}, "meta": {"n": shape.m, "k": shape.k_m}, "train": tables, "arms": [arm]}
    )


def trainer_for(
    shape: Shape, dtype: str, name: str, device: torch.device, arm: str = "joint", dead: float = 0.0
) -> Trainer:
    """A trainer with the kernels of that name, and with their optimiser where they have one."""
    recipe = recipe_for(shape, dtype)
    trainer, module = Trainer(recipe, arm, 0, torch.zeros(shape.d), str(device)), kernels(name)
    trainer.how, trainer.meta_how = replace(trainer.how, kernels=module), replace(trainer.meta_how, kernels=module)
    for learner in (trainer.primary, trainer.meta):
        if learner and name == "triton":
            given = (recipe.train.betas, recipe.train.eps, recipe.train.clip, recipe.train.renormalise)
            learner.optimiser = module.RowAdam(learner.weights, *given, learner.optimiser.norm)
    if dead:
        # silent for longer than the limit, and with encoder rows so short that they are not selected
        count = int(dead * shape.n)
        trainer.primary.weights.W_enc_ND[:count].mul_(1e-3)
        trainer.primary.silent_N[:count] = 2 * 10**12
    return trainer


def dense_for(shape: Shape, dtype: torch.dtype, device: torch.device) -> DenseJoint:
    engine = DenseJoint(shape.d, shape.n, shape.k, shape.m, shape.k_m)
    for sae in (engine.primary, engine.meta):
        for name in ("W_dec", "W_enc", "b_dec"):
            setattr(sae, name, getattr(sae, name).detach().to(device, dtype).requires_grad_())
        sae.adam = torch.optim.Adam([sae.W_dec, sae.W_enc, sae.b_dec], lr=3e-4)
        sae.silent = sae.silent.to(device)
    return engine


class _Cast:
    """The dense step on activations in its own dtype."""

    def __init__(self, engine: DenseJoint, dtype: torch.dtype):
        self.engine, self.dtype = engine, dtype

    def primary_step(self, x: torch.Tensor):
        return self.engine.primary_step(x.to(self.dtype))

    def meta_step(self):
        return self.engine.meta_step()


def engine(name: str, shape: Shape, device: torch.device):
    """One of ENGINES."""
    if name == "dense bf16":
        return _Cast(dense_for(shape, torch.bfloat16, device), torch.bfloat16)
    if name == "dense fp32":
        return dense_for(shape, torch.float32, device)
    own = "fast" if name.startswith("torch") else "triton"
    trainer = trainer_for(shape, "bf16", own, device, arm_of(name), DEAD if "dead" in name else 0.0)
    return CapturedStep(trainer) if name.startswith("captured") else trainer


def arm_of(name: str) -> str:
    return "solo" if "solo" in name else "joint"


def step_floors(name: str, shape: Shape, card: Card) -> tuple[float, float]:
    """(seconds of a step with its share of meta steps, bytes on the device) at least: `metasae doctor --gpus` at the
    rates of `card`.

    Bytes: weights, moments and gradients, and a batch.
    """
    width = 4 if name.endswith("fp32") else 2
    recipe = recipe_for(shape, "fp32" if width == 4 else "bf16", arm_of(name))
    parts = gpus.parts_of(recipe, shape.d, arm_of(name))
    if "primary only" in name:
        parts = [part for part in parts if not part.name.startswith("meta")]
    # the dense step keeps all that it has in its dtype, the others their weights in fp32
    share = 0.5 if name == "dense bf16" else 1.0
    in_memory = share * (sum(estimate.weight_bytes(recipe, shape.d)) + 4 * shape.batch * shape.d)
    return sum(part.floor(card, width) for part in parts), in_memory


def step_rows(
    shape: Shape, device: torch.device, batches: list[torch.Tensor], card: Card, names=ENGINES, macros: int = 5
) -> list[Row]:
    """Milliseconds of a step, meta steps shared out, and the most memory that each engine took. Macro-steps
    alternate; the first does not count.
    """
    engines, most = {}, {}
    for name in names:
        gc.collect()
        before = allocated(device)
        engines[name] = engine(name, shape, device)
        _macro(engines[name], batches)
        most[name] = peak(device) - before
    times = {name: [] for name in engines}
    for _ in range(macros):
        for name, one in engines.items():
            times[name].append(seconds_of(lambda one=one: _macro(one, batches)) / N_PRIMARY)
    rows = []
    for name, one in engines.items():
        if isinstance(one, CapturedStep) and not one.enough():
            print(
                f"{name}: the last step's searches found too few or too many candidates, so its time says nothing",
                file=sys.stderr,
            )
            continue
        rows.append(
            _row(name, statistics.median(times[name]), most[name], step_floors(name, shape, card), batches[0].shape[0])
        )
    return rows


def _row(name: str, seconds: float, most: int, floor: tuple[float, float], batch: int) -> Row:
    return Row(f"step, {name}", 1e3 * seconds, 1e3 * floor[0], batch / seconds, most, floor[1])


def _macro(engine, batches: list[torch.Tensor]) -> None:
    for number in range(N_PRIMARY):
        engine.primary_step(batches[number % len(batches)])
    if getattr(engine, "meta", True):
        for _ in range(N_META):
            engine.meta_step()
