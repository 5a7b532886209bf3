"""A fresh BatchTopK meta SAE that judges decoder rows. It never takes part in the training of what it judges."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


class MetaSAE(nn.Module):
    """a = relu((w - b) W_enc + b_enc), the k * R largest of all R x m kept, w_hat = z W_dec + b. Decoder rows have unit length."""

    def __init__(self, rows: Tensor, m: int, generator: torch.Generator):
        super().__init__()
        bias = rows.mean(0)
        chosen = torch.randperm(len(rows), generator=generator)[:m]
        directions = torch.randn(m, rows.shape[1], generator=generator)
        # data rows make good starting directions; when there are fewer than m, the rest are random
        directions[: len(chosen)] = rows[chosen] - bias
        directions = nn.functional.normalize(directions, dim=1)
        self.bias = nn.Parameter(bias.clone())
        self.w_dec = nn.Parameter(directions.clone())
        self.w_enc = nn.Parameter(directions.t().contiguous())
        self.b_enc = nn.Parameter(torch.zeros(m))

    def activations(self, rows: Tensor) -> Tensor:
        """rows [R, d] -> a [R, m], not yet sparse."""
        return torch.relu(torch.addmm(self.b_enc, rows - self.bias, self.w_enc))

    def decode(self, z: Tensor) -> Tensor:
        """z [R, m] -> w_hat [R, d]."""
        return torch.addmm(self.bias, z, self.w_dec)


def batch_topk(a: Tensor, k: int, guess: float = 0.0) -> tuple[Tensor, float]:
    """a [R, m], no negative entries -> (a with all but its k * R largest entries set to 0, the smallest entry kept).

    Entries tied at the cut are all kept. guess: a number the cut is expected to lie above; it only saves time.
    """
    flat, count = a.detach().flatten(), min(k * len(a), a.numel())
    survivors = flat[flat > guess]
    if len(survivors) < count:
        survivors = flat
    cut = survivors.kthvalue(len(survivors) - count + 1).values
    return torch.where(a >= cut, a, 0), float(cut)


def variance_explained(rows: Tensor, rebuilt: Tensor) -> float | None:
    """1 - sum ||w - w_hat||^2 / sum ||w - mean w||^2 over rows [R, d]; None when the rows do not vary."""
    total = float((rows - rows.mean(0)).double().square().sum())
    return 1 - float((rows - rebuilt).double().square().sum()) / total if total > 0 else None


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
    sae = MetaSAE(seen, m, generator)
    with torch.enable_grad():
        _fit(sae, seen, k, steps, lr)
    with torch.no_grad():
        ve, ve_heldout = (_score(sae, part, k) for part in (seen, unseen))
    return Critic(ve, ve_heldout, len(seen), n_heldout, m, k, steps)


def _score(sae: MetaSAE, rows: Tensor, k: int) -> float | None:
    if not len(rows):
        return None
    z, _ = batch_topk(sae.activations(rows), k)
    return variance_explained(rows, sae.decode(z))


def _fit(sae: MetaSAE, rows: Tensor, k: int, steps: int, lr: float) -> None:
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))
    cut = 0.0
    for _ in range(steps):
        a = sae.activations(rows)
        z, cut = batch_topk(a, k, guess=0.8 * cut)
        residual = rows - sae.decode(z)
        loss = residual.square().sum(1).mean()
        dead = (z.detach() > 0).sum(0) == 0
        if bool(dead.any()):
            loss = loss + AUX_SHARE * _auxk(sae, a, dead, residual.detach(), k)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            sae.w_dec.copy_(nn.functional.normalize(sae.w_dec, dim=1))


def _auxk(sae: MetaSAE, a: Tensor, dead: Tensor, residual: Tensor, k: int) -> Tensor:
    """Squared error of the residual [R, d] rebuilt by the latents that fired on no row, k of them per row."""
    silent = a[:, dead]
    kept = torch.zeros_like(silent)
    top = silent.topk(min(k, silent.shape[1]), dim=1)
    kept = kept.scatter(1, top.indices, top.values)
    return (residual - kept @ sae.w_dec[dead]).square().sum(1).mean()
