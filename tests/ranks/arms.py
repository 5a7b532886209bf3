"""What the ranks of a test run: an arm trained on the planted directions of `sources.py`, with everything that is
compared.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from metasae.progress.progress import Task
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE, SAEConfig
from metasae.train.loop import train
from metasae.train.sharded import checkpoint
from metasae.train.sharded.trainer import gathered, trainer_of
from metasae.train.start import start_from
from sources import Batches

BATCH, D, N = 64, 16, 64


def values(steps=40, **tables) -> dict:
    """A recipe of N latents over D dimensions whose dead latents come and go."""
    table = {
        "tokens": BATCH * steps,
        "batch": BATCH,
        "n_primary_steps": 4,
        "n_meta_steps": 3,
        "dead_after": 300,
        "k_aux": 4,
        "dtype": "fp32",
    }
    return {
        "sae": {"n": N, "k": 3, **tables.pop("sae", {})},
        "meta": {"n": 8, "k": 2, **tables.pop("meta", {})},
        "train": {**table, "lr": 3e-4, "checkpoint_every": 7, **tables.pop("train", {})},
    }


def an_sae() -> SAE:
    """With rows of any length, biases and thresholds."""
    generator, sae = torch.Generator().manual_seed(7), SAE(SAEConfig(D, N, k=3))
    sae.init_weights(generator)
    sae.W_dec.data.mul_(0.5 + torch.rand(N, 1, generator=generator))
    sae.b_enc.data.copy_(0.1 * torch.randn(N, generator=generator))
    sae.threshold = torch.rand(N, generator=generator)
    return sae


def arm_trained(
    ranks,
    recipe: dict,
    arm: str,
    folder: str | None = None,
    until: int | None = None,
    after=None,
    stop_at: int | None = None,
    existing: bool = False,
) -> dict:
    """Trains an arm; what each step chose and lost, and the state at its end.

    until: actions after which it breaks off. stop_at: actions after which the last rank is asked to stop. existing: it
    starts from an existing SAE.
    """
    start = start_from(an_sae(), 0.7) if existing else None
    trainer = trainer_of(Recipe.load(recipe), arm, 0, torch.full((D,), 0.3), "cpu", ranks, start)
    trace = {"losses": [], "numbers": [], "primary": [], "meta": []}
    _watch(trainer, trace)
    if folder is None:
        source = Batches(BATCH, D)
        while action := trainer.next_action():
            losses, numbers = trainer.primary_step(source.next()) if action == "primary" else (trainer.meta_step(), {})
            trace["losses"].append([float(loss) for loss in vars(losses).values()])
            trace["numbers"].append({name: float(number) for name, number in numbers.items()})
    else:
        done, stop = [], StopRequest()

        def count(action):
            done.append(action)
            if after is not None:
                after(ranks, len(done))
            stop.asked = len(done) == stop_at and ranks.rank == ranks.size - 1
            if len(done) == until:
                raise StopIteration

        with suppress(StopIteration):
            train(
                trainer,
                Batches(BATCH, D),
                Path(folder),
                Task(None, None),
                stop,
                after_step=count,
                checkpoints=checkpoint,
            )
    return trace | {"state": whole_state(trainer, ranks)}


def whole_state(trainer, ranks) -> dict[str, np.ndarray]:
    """Weights, moments and counters of the whole SAE, on the first rank; the meta SAE's as each rank has them."""
    tensors = {
        name: tensor for name, tensor in checkpoint.checkpoint.tensors_of(trainer).items() if not name.endswith(".step")
    }
    out = {}
    for name, tensor in tensors.items():
        if ranks.size > 1 and checkpoint._spread(name):
            tensor = ranks.gather_rows(tensor, trainer.spans)
        out[name] = tensor.numpy().copy()
    if ranks.size > 1:
        weights = gathered(trainer.primary, trainer.spans, ranks)
        assert weights is None or np.array_equal(weights.W_dec_ND.numpy(), out["primary.W_dec_ND"])
    return out


def _watch(trainer, trace) -> None:
    """Notes what each step chooses, as flat indices into the whole matrix."""
    start = trainer.own.start if trainer.own else 0
    primary, meta = trainer.primary.count, trainer.meta.count if trainer.meta else None

    def of_primary(kept, *rest):
        trace["primary"].append(_on(kept, kept.rows.long() * trainer.recipe.sae.n + kept.latents + start))
        return primary(kept, *rest)

    def of_meta(kept, *rest):
        trace["meta"].append(_on(kept, (kept.rows.long() + start) * kept.n_latents + kept.latents))
        return meta(kept, *rest)

    trainer.primary.count = of_primary
    if meta:
        trainer.meta.count = of_meta


def _on(kept, flat) -> np.ndarray:
    return flat[kept.values > 0].numpy()
