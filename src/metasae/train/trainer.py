"""One arm's training state, its primary step and its meta step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasae.recipe import Recipe
from metasae.sae.gradients import Arithmetic, forward, matmul_dtype, sae_gradients
from metasae.sae.kernels import kernels
from metasae.sae.optimiser import UnitRowAdam, learning_rate, unit_rows_
from metasae.sae.sae import SAE, SAEConfig, token_normalise
from metasae.sae.weights import Weights
from metasae.train.objective import Losses, meta_input
from metasae.train.penalties import meta_residual, penalty_gradient

# Which arms train a meta SAE, and when.
WITH_META = ("joint", "control", "sequential")


@dataclass
class Learner:
    """An SAE being trained. silent_N: int64 tokens (rows, for the meta SAE) since each latent last fired. cut: the selection's warm start."""

    weights: Weights
    optimiser: UnitRowAdam
    silent_N: Tensor
    k: int
    cut: float = 0.0
    probe_cut: float = 0.0


@dataclass
class Progress:
    """Optimiser steps done."""

    primary: int = 0
    meta: int = 0


class Trainer:
    """Trains one arm with one seed. Same seed = same initial weights in every arm.

    d: width of the activations; b_dec_D: what b_dec starts from, in the units the SAE is trained in.
    """

    def __init__(self, recipe: Recipe, arm: str, seed: int, b_dec_D: Tensor, device: str = "cpu"):
        train = recipe.train
        self.recipe, self.arm, self.seed = recipe, arm, seed
        self.device = torch.device(device)
        self.how = Arithmetic(kernels(train.kernels), matmul_dtype(train.dtype, self.device))
        self.d = b_dec_D.numel()
        self.k_aux = train.k_aux or max(1, self.d // 2)
        self.primary = self._learner(recipe.sae.n, recipe.sae.k, recipe.sae.b_enc, b_dec_D, stream=0)
        self.meta = self._learner(recipe.meta.n, recipe.meta.k, False, torch.zeros(self.d), stream=1) if arm in WITH_META else None
        self.lambda2 = train.lambda2 if arm == "joint" else 0.0
        self.done = Progress()
        self.total_primary = -(-train.tokens // train.batch)
        self.total_meta = (self.total_primary // train.n_primary_steps) * train.n_meta_steps if self.meta else 0

    def next_action(self) -> str | None:
        """'primary', 'meta' or None at the end. A pure function of the step counts, so a resumed run takes the same turns."""
        due = self.done.primary if self.arm != "sequential" else self.done.primary * (self.done.primary == self.total_primary)
        if self.meta and self.done.meta < (due // self.recipe.train.n_primary_steps) * self.recipe.train.n_meta_steps:
            return "meta"
        return "primary" if self.done.primary < self.total_primary else None

    @torch.no_grad()
    def primary_step(self, x_BD: Tensor, with_penalty: bool = True) -> tuple[Losses, dict[str, Tensor]]:
        """One step on activations x [B, d]; see `primary_gradients` for what comes back."""
        train = self.recipe.train
        losses, numbers, gradients = self.primary_gradients(x_BD, with_penalty)
        rate = learning_rate(self.done.primary, self.total_primary, train.lr, train.warmup, train.decay)
        self.primary.optimiser.step(gradients, rate)
        self.done.primary += 1
        return losses, numbers

    @torch.no_grad()
    def primary_gradients(self, x_BD: Tensor, with_penalty: bool = True) -> tuple[Losses, dict[str, Tensor], Weights]:
        """The losses on activations x [B, d] (fp32, globally scaled where the recipe says so) and their gradients.

        Between them, further numbers as 0-dim tensors: fvu, l0, dead. Counts firings, changes no weight.
        `with_penalty` False leaves the penalty's value out where lambda2 = 0.
        """
        train, learner = self.recipe.train, self.primary
        x = x_BD.to(self.device)
        if self.recipe.sae.normalize == "token":
            x = token_normalise(x)[0]
        made = forward(x, learner.weights, learner.k * x.shape[0], learner.cut, self.how)
        learner.cut = made.cut
        dead = _count_silence(learner, made.kept.fired(), x.shape[0], train.dead_after)
        detach = train.aux_residual == "detached"
        l2, aux, gradients = sae_gradients(made, learner.weights, dead, self.k_aux, train.aux_coef, detach, self.how)
        penalty = torch.zeros_like(l2)
        if self.meta and self.arm != "sequential" and (self.lambda2 > 0 or with_penalty):
            penalty = self._penalty(gradients.W_dec_ND if self.lambda2 > 0 else None)
        variance = (x - x.mean(0)).square().mean()
        numbers = {"fvu": l2 / variance, "l0": l2.new_tensor(made.kept.values.numel() / x.shape[0]), "dead": dead.sum().float()}
        return Losses(l2, aux, penalty, l2 + aux + self.lambda2 * penalty), numbers, gradients

    @torch.no_grad()
    def meta_step(self) -> Losses:
        """One step of the meta SAE on all rows of the primary's decoder, as they are now."""
        train, learner = self.recipe.train, self.meta
        rows, _, _ = meta_input(self.primary.weights.W_dec_ND, self.recipe.meta.input)
        made = forward(rows, learner.weights, learner.k * rows.shape[0], learner.cut, self.how)
        learner.cut = made.cut
        dead = _count_silence(learner, made.kept.fired(), rows.shape[0], train.meta_dead_after)
        detach = train.aux_residual == "detached"
        l2, aux, gradients = sae_gradients(made, learner.weights, dead, self.k_aux, train.aux_coef, detach, self.how)
        rate = learning_rate(self.done.meta, self.total_meta, train.meta_lr or train.lr, train.warmup, train.decay)
        learner.optimiser.step(gradients, rate)
        self.done.meta += 1
        return Losses(l2, aux, torch.zeros_like(l2), l2 + aux)

    def _penalty(self, into_ND: Tensor | None) -> Tensor:
        """mean_i p_i against the frozen meta SAE, and its gradient. Nothing of the meta SAE changes but the selection's own warm start."""
        difference, self.meta.probe_cut = meta_residual(
            self.primary.weights.W_dec_ND,
            self.meta.weights,
            self.meta.k * self.recipe.sae.n,
            self.meta.probe_cut,
            self.recipe.meta.input,
            self.how,
        )
        return penalty_gradient(difference, self.lambda2, self.recipe.train.sigma_sq, into_ND)

    def export(self, scale: float, metadata: dict) -> dict[str, SAE]:
        """{'primary': SAE in the model's own units, 'meta': SAE over decoder rows}, without thresholds. `scale`: what the inputs were multiplied by."""
        recipe = self.recipe
        normalize = "token" if recipe.sae.normalize == "token" else "none"
        primary = _as_sae(self.primary, SAEConfig(self.d, recipe.sae.n, recipe.sae.architecture, recipe.sae.k, normalize, dict(metadata)))
        out = {"primary": primary.scaled(scale)}
        if self.meta:
            config = SAEConfig(self.d, recipe.meta.n, "batchtopk", recipe.meta.k, "token" if recipe.meta.input == "token" else "none", dict(metadata))
            out["meta"] = _as_sae(self.meta, config)
        return out

    def _learner(self, n: int, k: int, b_enc: bool, b_dec_D: Tensor, stream: int) -> Learner:
        generator = torch.Generator().manual_seed(self.seed * 2 + stream)
        sae = SAE(SAEConfig(self.d, n))
        sae.init_weights(generator)
        rows = sae.W_dec.detach().to(self.device)
        weights = Weights(rows.clone(), rows.clone(), b_dec_D.float().clone().to(self.device), torch.zeros(n, device=self.device) if b_enc else None)
        train = self.recipe.train
        optimiser = UnitRowAdam(weights, train.betas, train.eps, train.clip, train.renormalise)
        return Learner(weights, optimiser, torch.zeros(n, dtype=torch.int64, device=self.device), k)


def _count_silence(learner: Learner, fired_N: Tensor, seen: int, dead_after: int) -> Tensor:
    """Updates the counters with this batch, then says which latents are dead: bool [n]."""
    learner.silent_N.add_(seen).masked_fill_(fired_N, 0)
    return learner.silent_N >= dead_after


def _as_sae(learner: Learner, config: SAEConfig) -> SAE:
    sae, weights = SAE(config), learner.weights
    sae.W_enc.data.copy_(weights.W_enc_ND.t())
    sae.W_dec.data.copy_(weights.W_dec_ND)
    # rows are unit but for rounding, and for the drift that renormalising before the step leaves
    unit_rows_(sae.W_dec.data)
    sae.b_dec.data.copy_(weights.b_dec_D)
    if weights.b_enc_N is not None:
        sae.b_enc.data.copy_(weights.b_enc_N)
    return sae
