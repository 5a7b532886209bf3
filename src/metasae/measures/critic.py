"""A fresh BatchTopK meta SAE that judges decoder rows. It never takes part in the training of what it judges."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metasae.sae.architectures import BatchTopK, Options
from metasae.sae.gradients import Arithmetic, Auxiliary, forward, matmul_dtype, sae_gradients
from metasae.sae.kernels import fast
from metasae.sae.optimiser import UnitRowAdam, learning_rate
from metasae.sae.weights import Weights

AUX_SHARE = 1 / 32


@dataclass(frozen=True)
class Critic:
    """ve: variance explained on the rows it was trained on; ve_heldout: on rows it never saw (None when there are none)."""

    ve: float | None
    ve_heldout: float | None
    n_rows: int
    n_heldout: int
    m: int
    k: int
    steps: int


@torch.no_grad()
def judge(rows: Tensor, m: int, k: int, steps: int, seed: int, lr: float = 1e-2, heldout: float = 0.2) -> Critic:
    """Trains a fresh meta SAE on 80% of the rows [R, d] and scores it on them and on the rest.

    m latents, k kept per row on average, `steps` Adam steps on all training rows at once, learning rate falling linearly
    to 0 over the second half. Latents that fire on no row are revived by a term that makes them explain the residual
    (AuxK, arXiv 2406.04093). Everything random comes from `seed`. Method: arXiv 2502.04878.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    n_heldout = int(heldout * len(rows))
    unseen, seen = rows[order[:n_heldout]], rows[order[n_heldout:]]
    weights = _initial(seen, m, generator)
    _fit(weights, seen, k, steps, lr)
    return Critic(_score(weights, seen, k), _score(weights, unseen, k), len(seen), n_heldout, m, k, steps)


def variance_explained(rows: Tensor, rebuilt: Tensor) -> float | None:
    """1 - sum ||w - w_hat||^2 / sum ||w - mean w||^2 over rows [R, d]; None when the rows do not vary."""
    total = float((rows - rows.mean(0)).double().square().sum())
    return 1 - float((rows - rebuilt).double().square().sum()) / total if total > 0 else None


def _initial(rows: Tensor, m: int, generator: torch.Generator) -> Weights:
    """Rows make good starting directions; when there are fewer than m, the rest are random."""
    bias = rows.mean(0)
    chosen = torch.randperm(len(rows), generator=generator)[:m]
    directions = torch.randn(m, rows.shape[1], generator=generator)
    directions[: len(chosen)] = rows[chosen] - bias
    directions = nn.functional.normalize(directions, dim=1)
    return Weights(directions.clone(), directions, bias, torch.zeros(m))


def _fit(weights: Weights, rows: Tensor, k: int, steps: int, lr: float) -> None:
    how = Arithmetic(fast, matmul_dtype("auto", rows.device))
    # the loss is a mean over all numbers, so its gradients are far smaller than Adam's usual eps
    adam = UnitRowAdam(weights, betas=(0.9, 0.999), eps=1e-15, clip=math.inf, renormalise="after")
    architecture, cut = BatchTopK(Options(k)), 0.0
    for step in range(steps):
        made = forward(rows, weights, architecture, k, cut, how)
        cut = made.cut
        dead = Auxiliary(~made.kept.fired(), k, AUX_SHARE, detach=True)
        gradients = sae_gradients(made, weights, architecture, dead, how).weights
        adam.step(gradients, learning_rate(step, steps, lr, warmup=0, decay=0.5))


def _score(weights: Weights, rows: Tensor, k: int) -> float | None:
    if not len(rows):
        return None
    made = forward(rows, weights, BatchTopK(Options(k)), k, 0.0, Arithmetic(fast, torch.float32))
    return variance_explained(rows, rows + made.residuals[-1])
