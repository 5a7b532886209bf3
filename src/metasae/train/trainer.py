"""One arm's training state, its primary step and its meta step."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metasae.device import work_on
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.gradients import Arithmetic, Auxiliary, Reconstruction, forward, matmul_dtype, sae_gradients
from metasae.sae.kernels import kernels
from metasae.sae.optimiser import UnitRowAdam, learning_rate, total_norm
from metasae.sae.sae import SAE, SAEConfig, token_normalise
from metasae.sae.weights import Weights
from metasae.train.atomic import changes_of
from metasae.train.learner import new_learner
from metasae.train.objective import Losses, meta_input
from metasae.train.penalties.adaptive import AdaptiveSigma
from metasae.train.penalties.decomposability import decomposability, full_gradient, probe
from metasae.train.penalties.scene import Charges, Scene, charge_all


@dataclass
class Done:
    """Optimiser steps done."""

    primary: int = 0
    meta: int = 0


class Trainer:
    """Trains one arm with one seed. Arms of the same seed have the same initial weights.

    b_dec_D: what b_dec starts from, in the units the SAE is trained in; its length is d. start: the weights of an
    existing SAE that the primary starts from, with its own b_dec (`metasae.train.start`); None: a fresh one.
    solo: no penalty, no meta SAE. joint: all the recipe's penalties. control: joint with every coefficient 0.
    sequential: solo, then a meta SAE on its frozen decoder.
    `metasae.train.sharded.trainer.ShardedTrainer` does the same on several processes; it overrides the members below.
    """

    # the primary's latents that this process holds (None: all), and their share of all
    own: range | None = None
    own_share = 1.0
    # whether this process writes what there is to write
    leads = True

    def __init__(
        self,
        recipe: Recipe,
        arm: str,
        seed: int,
        b_dec_D: Tensor,
        device: str = "cpu",
        start: Weights | None = None,
    ):
        train = recipe.train
        self.recipe, self.arm, self.seed = recipe, arm, seed
        self.device = torch.device(device)
        work_on(self.device)
        module = kernels(train.kernels, self.device)
        self.how, self.meta_how = self._arithmetic(module, matmul_dtype(train.dtype, self.device))
        optimiser = getattr(module, "RowAdam", UnitRowAdam)
        self.d = b_dec_D.numel()
        self.k_aux = train.k_aux or max(1, self.d // 2)
        adam = {"betas": train.betas, "eps": train.eps, "clip": train.clip, "renormalise": train.renormalise}
        primary, meta = (torch.Generator().manual_seed(seed * 2 + stream) for stream in (0, 1))
        own_adam = adam | {"norm": self._norm}
        self.primary = new_learner(
            recipe.sae,
            b_dec_D,
            primary,
            recipe.sae.b_enc,
            recipe.sae.tied_init,
            own_adam,
            self.device,
            self.own,
            optimiser,
            start,
        )
        self.rules = ARMS[arm]
        with_meta = recipe.has_meta(arm)
        meta_dec = torch.zeros(self.d)
        self.meta = (
            new_learner(recipe.meta, meta_dec, meta, False, True, adam, self.device, optimiser=optimiser)
            if with_meta
            else None
        )
        self.lambda2 = train.lambda2 if self.rules.penalty else 0.0
        self.penalties = recipe.charged(arm)
        self.sigma = AdaptiveSigma(train.lambda2, train.sigma_sq) if train.adaptive_sigma else None
        self.done = Done()
        self.total_primary = -(-train.tokens // train.batch)
        self.changes = changes_of(recipe, arm, self.total_primary)
        self._rows: tuple[int, Tensor] | None = None
        self.total_meta = (self.total_primary // train.n_primary_steps) * train.n_meta_steps if self.meta else 0

    def next_action(self) -> str | None:
        """'primary', 'meta', or None at the end. It depends on the step counts alone, so a resumed run takes the same
        steps in the same order.
        """
        due = (
            self.done.primary if not self.rules.after else self.done.primary * (self.done.primary == self.total_primary)
        )
        if self.meta and self.done.meta < (due // self.recipe.train.n_primary_steps) * self.recipe.train.n_meta_steps:
            return "meta"
        return "primary" if self.done.primary < self.total_primary else None

    @torch.no_grad()
    def primary_step(self, x_BD: Tensor, with_penalty: bool = True) -> tuple[Losses, dict[str, Tensor]]:
        """One step on activations x [B, d]; returns the losses and numbers of `primary_gradients`."""
        train, learner = self.recipe.train, self.primary
        if not self.done.primary:
            learner.begin(self._inputs(x_BD), self.how)
        losses, numbers, gradients = self.primary_gradients(x_BD, with_penalty)
        rate = learning_rate(self.done.primary, self.total_primary, train.lr, train.warmup, train.decay)
        learner.optimiser.step(gradients, rate)
        if learner.architecture.follows:
            learner.architecture.steer(numbers["l0"], learner.weights)
        self.done.primary += 1
        return losses, numbers

    @torch.no_grad()
    def primary_gradients(self, x_BD: Tensor, with_penalty: bool = True) -> tuple[Losses, dict[str, Tensor], Weights]:
        """The losses on activations x [B, d] (fp32, globally scaled where the recipe says so) and their gradients.

        Returns (losses, numbers, gradients). Numbers are 0-dim tensors: fvu, l0, dead and each further penalty. The
        call counts firings and changes no weight. with_penalty False: the decomposability penalty is not computed where
        it has no weight.
        """
        train, learner = self.recipe.train, self.primary
        x = self._inputs(x_BD)
        n_here = len(learner.weights.W_dec_ND)
        prefixes = self.changes.prefixes(self.done.primary, n_here, self.how.spread)
        offset = self.changes.offset(learner)
        selection = learner.architecture, self._k_now(), learner.cut
        passed = forward(x, learner.weights, *selection, self.how, prefixes, offset)
        learner.cut = passed.cut
        dead = learner.count(passed.kept, train.dead_after, self.how.spread)
        self.changes.look(passed.kept, learner)
        charged = self.done.primary >= train.penalty_start * self.total_primary
        further = None
        if charged and self.penalties and self.done.primary % train.penalty_every == 0:
            further = self._further_penalties(passed)
        dz_K = further and further.entries_K
        gradients = sae_gradients(passed, learner.weights, learner.architecture, self._aux(dead), self.how, dz_K)
        total = gradients.l2 + gradients.aux + gradients.sparsity
        penalty = torch.zeros_like(total)
        if self.meta and not self.rules.after and (with_penalty or (self.lambda2 > 0 and charged)):
            penalty, cost = self._decomposability(gradients.weights.W_dec_ND if charged else None)
            total = total + cost if charged else total
        numbers = self._numbers(x, passed, dead)
        if further:
            gradients.weights.W_dec_ND.add_(further.rows_ND)
            total, numbers = total + further.cost, numbers | further.values
        return Losses(gradients.l2, gradients.aux, penalty, total), numbers, gradients.weights

    @torch.no_grad()
    def meta_step(self) -> Losses:
        """One step of the meta SAE on all current rows of the primary's decoder."""
        train, learner, rows = self.recipe.train, self.meta, self._meta_rows()
        if not self.done.meta:
            learner.begin(rows, self.meta_how)
        passed = forward(rows, learner.weights, learner.architecture, learner.k, learner.cut, self.meta_how)
        learner.cut = passed.cut
        dead = learner.count(passed.kept, train.meta_dead_after, self.meta_how.spread)
        gradients = sae_gradients(passed, learner.weights, learner.architecture, self._aux(dead), self.meta_how)
        rate = learning_rate(self.done.meta, self.total_meta, train.meta_lr or train.lr, train.warmup, train.decay)
        learner.optimiser.step(gradients.weights, rate)
        if learner.architecture.follows:
            learner.architecture.steer(passed.kept.l0(), learner.weights)
        self.done.meta += 1
        return Losses(
            gradients.l2,
            gradients.aux,
            torch.zeros_like(gradients.l2),
            gradients.l2 + gradients.aux + gradients.sparsity,
        )

    def export(self, scale: float, metadata: dict) -> dict[str, SAE]:
        """{'primary': SAE in the model's own units, 'meta': SAE over decoder rows}. They have thresholds only where the
        architecture learns them.

        scale: the factor by which the inputs were multiplied in training.
        """
        sae, meta = self.recipe.sae, self.recipe.meta
        normalize = "token" if sae.normalize == "token" else "none"
        primary = self.primary.as_sae(SAEConfig(self.d, sae.n, sae.architecture, sae.k, normalize, dict(metadata)))
        out = {"primary": primary.scaled(scale)}
        offset = self.changes.offset(self.primary)
        out["primary"].offset = None if offset is None else offset.cpu() / scale
        if self.meta:
            normalize = "token" if meta.input == "token" else "none"
            out["meta"] = self.meta.as_sae(
                SAEConfig(self.d, meta.n, meta.architecture, meta.k, normalize, dict(metadata))
            )
        return out

    def agree(self, asked: bool) -> bool:
        """Whether any process was asked to stop."""
        return asked

    def _arithmetic(self, module: ModuleType, dtype: torch.dtype) -> tuple[Arithmetic, Arithmetic]:
        """Kernels, dtype and spread of the primary's step, and of the meta SAE's step on the primary's rows."""
        return Arithmetic(module, dtype), Arithmetic(module, dtype)

    def _norm(self, gradients: Weights) -> Tensor:
        """The joint norm of the primary's gradients, 0-dim."""
        return total_norm(gradients)

    def _over_all(self, mean: Tensor) -> Tensor:
        """The mean over all latents of the primary, given the mean over those of this process, 0-dim."""
        return self.how.spread.over_latents(mean * self.own_share)

    def _inputs(self, x_BD: Tensor) -> Tensor:
        """Activations [B, d] on the trainer's device, normalised per token where the recipe says so."""
        x = x_BD.to(self.device)
        return token_normalise(x)[0] if self.recipe.sae.normalize == "token" else x

    def _meta_rows(self) -> Tensor:
        """The decoder rows as the meta SAE reads them; computed once for the meta steps between two primary steps."""
        if self._rows is None or self._rows[0] != self.done.primary:
            self._rows = (self.done.primary, meta_input(self.primary.weights.W_dec_ND, self.recipe.meta.input)[0])
        return self._rows[1]

    def _k_now(self) -> int:
        """k, annealed from k_start where the recipe says so."""
        sae = self.recipe.sae
        if not sae.k_start or not sae.k_anneal:
            return sae.k
        left = max(0.0, 1 - self.done.primary / (sae.k_anneal * self.total_primary))
        return sae.k + round(left * (sae.k_start - sae.k))

    def _aux(self, dead_N: Tensor) -> Auxiliary:
        train = self.recipe.train
        return Auxiliary(dead_N, self.k_aux, train.aux_coef, train.aux_residual == "detached")

    def _numbers(self, x_BD: Tensor, passed: Reconstruction, dead_N: Tensor) -> dict[str, Tensor]:
        variance, total = (x_BD - x_BD.mean(0)).square().mean(), self.how.spread.over_latents
        return {
            "fvu": passed.residuals[-1].square().mean() / variance,
            "l0": total(passed.kept.l0()),
            "dead": total(dead_N.sum()).float(),
        }

    def _decomposability(self, into_ND: Tensor | None) -> tuple[Tensor, Tensor]:
        """(P, its cost) for the frozen meta SAE; adds the cost's gradient to `into_ND` when given.

        In the meta SAE only the warm start of the selection changes, which changes no result.
        """
        train, meta, W = self.recipe.train, self.meta, self.primary.weights.W_dec_ND
        mode = self.recipe.meta.input
        rate_N = self.primary.rate_N
        share = rate_N / self._over_all(rate_N.mean()).clamp(min=1e-12) if train.balanced else None
        # the fused pass has no adaptive sigma, which needs e before the gradient, and no gradient through the meta SAE
        if (
            self.meta_how.fused
            and type(meta.architecture) is BatchTopK
            and not self.sigma
            and train.meta_gradient == "stop"
        ):
            how, into = self.meta_how, into_ND if self.lambda2 > 0 else None
            settings = (mode == "token", how.dtype, train.sigma_sq, self.lambda2)
            value, meta.probe_cut = how.kernels.add_penalty(
                W, meta.weights, meta.k, meta.probe_cut, *settings, share, into
            )
            return value, self.lambda2 * value
        view = probe(W, meta.weights, meta.architecture, meta.k, meta.probe_cut, mode, self.meta_how)
        meta.probe_cut = view.cut
        lambda2, sigma_sq = self.lambda2, train.sigma_sq
        # only where the penalty is charged: before that it is computed for the log, which must not change the training
        if self.sigma and lambda2 > 0 and into_ND is not None:
            lambda2, sigma_sq = self.sigma.update(self._over_all(view.e_N.mean())[None])
        value, factor_N = decomposability(view, sigma_sq, share)
        value, pull = self._over_all(value), lambda2 * self.own_share
        if into_ND is not None and lambda2 > 0:
            if train.meta_gradient == "full":
                into_ND.add_(full_gradient(W, meta.weights, view, mode, sigma_sq, share), alpha=pull)
            else:
                into_ND.addcmul_(view.difference_ND, factor_N[:, None], value=pull)
        return value, lambda2 * value

    def _further_penalties(self, passed: Reconstruction) -> Charges:
        """The further penalties of this batch; the gradients are multiplied by `train.penalty_every`."""
        scene = Scene(
            self.primary.weights.W_dec_ND,
            passed.kept,
            self.primary.rate_N,
            self.done.primary,
            self.seed,
            self.how.spread,
            self.meta.weights.W_dec_ND if self.meta else None,
        )
        return charge_all(self.penalties, scene, self.recipe.train.penalty_every)
