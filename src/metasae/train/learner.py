"""An SAE while it is trained: weights, optimiser, firing counters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasae.recipe.recipe import Dictionary
from metasae.sae.architectures import Architecture, Options, architecture
from metasae.sae.gradients import Arithmetic
from metasae.sae.kernels.kept import Kept
from metasae.sae.optimiser import UnitRowAdam, unit_rows_
from metasae.sae.sae import SAE, SAEConfig
from metasae.sae.spread import WHOLE, Whole
from metasae.sae.weights import Weights

RATE_MEMORY = 0.99
# The log of a threshold that no activation comes to, for latents of an existing SAE that never fire.
_NEVER = 20.0


@dataclass
class Learner:
    """silent_N: int64 tokens (rows, for the meta SAE) since each latent last fired. rate_N: running firing rate per
    token. total_N: running sum of activations per token.

    cut, probe_cut: warm starts of the selection, in training and in the penalty's look at a meta SAE. begins: whether
    the first batch sets what the architecture starts from.
    """

    architecture: Architecture
    weights: Weights
    optimiser: UnitRowAdam
    silent_N: Tensor
    rate_N: Tensor
    total_N: Tensor
    k: int
    cut: float = 0.0
    probe_cut: float = 0.0
    begins: bool = True

    def begin(self, x_BD: Tensor, how: Arithmetic) -> None:
        """Called before the first step: the architecture sets biases or thresholds by the step's batch."""
        weights = self.weights
        if self.architecture.follows and self.begins:
            pre = how.kernels.encode(x_BD - weights.b_dec_D, weights.W_enc_ND, weights.b_enc_N, how.dtype)
            self.architecture.begin(pre, weights)

    def count(self, kept: Kept, dead_after: int, spread: Whole = WHOLE) -> Tensor:
        """Updates the counters with this batch; returns which latents are dead: bool [n]."""
        counts, n_rows = spread.over_rows(kept.counts()), spread.rows(kept.n_rows)
        self.silent_N.add_(n_rows).masked_fill_(counts > 0, 0)
        self.rate_N.mul_(RATE_MEMORY).add_(counts, alpha=(1 - RATE_MEMORY) / n_rows)
        return self.silent_N >= dead_after

    def sum_activations(self, kept: Kept) -> None:
        """Updates the sums for `mean_activation`. Call `count` on the batch first; all of its rows must be on this
        process.
        """
        self.total_N.mul_(RATE_MEMORY).add_(kept.latent_sums(kept.values), alpha=(1 - RATE_MEMORY) / kept.n_rows)

    def mean_activation(self) -> Tensor:
        """Running mean of each latent's activations where it fires: [n]; 0 for one that has not fired yet."""
        return self.total_N / self.rate_N.clamp(min=1e-12)

    def as_sae(self, config: SAEConfig) -> SAE:
        """The SAE with the current weights. It has thresholds only where the architecture learns them."""
        sae, weights = SAE(config), self.weights
        sae.W_enc.data.copy_(weights.W_enc_ND.t())
        sae.W_dec.data.copy_(weights.W_dec_ND)
        # rows have unit length up to rounding, or up to a drift of 7e-4 where they are renormalised before the step
        unit_rows_(sae.W_dec.data)
        sae.b_dec.data.copy_(weights.b_dec_D)
        if weights.b_enc_N is not None:
            sae.b_enc.data.copy_(weights.b_enc_N)
        if self.architecture.own_threshold:
            sae.threshold = self.architecture.inference_threshold(weights).cpu()
        return sae


def new_learner(
    table: Dictionary,
    b_dec_D: Tensor,
    generator: torch.Generator,
    b_enc: bool,
    tied: bool,
    adam: dict,
    device: torch.device,
    own: range | None = None,
    optimiser: type[UnitRowAdam] = UnitRowAdam,
    start: Weights | None = None,
) -> Learner:
    """A learner of `table.n` latents. adam: UnitRowAdam's settings.

    start: an existing SAE's weights (`metasae.train.start`), with the thresholds where the architecture learns some;
    None draws random unit rows from `generator`, with W_enc = W_dec^T when tied, else random rows of its own.
    own: only these latents, as they would be among all: drawn with all of them, so that the start does not depend on
    which process holds which.
    """
    options = Options(table.k, table.l1, table.l0_coef, table.bandwidth, table.threshold, table.prefixes, table.l0)
    kind = architecture(table.architecture, options)
    # an architecture that learns thresholds still sets them by the first batch where the existing SAE has none
    begins = start is None or (kind.threshold_init() is not None and start.log_threshold_N is None)
    whole = _drawn(table.n, b_dec_D, generator, tied) if start is None else start
    weights = _with_parts_of(kind, whole, b_enc)
    if own is not None:
        # copies, so that the memory of the other processes' rows is freed
        weights = Weights(**{name: _own_rows(tensor, name, own).clone() for name, tensor in weights.tensors().items()})
    weights = Weights(**{name: tensor.to(device, copy=True) for name, tensor in weights.tensors().items()})
    n = len(weights.W_dec_ND)
    zeros = torch.zeros(n, dtype=torch.int64, device=device)
    running = (torch.zeros(n, device=device) for _ in range(2))
    return Learner(kind, weights, optimiser(weights, **adam), zeros, *running, table.k, begins=begins)


def _drawn(n: int, b_dec_D: Tensor, generator: torch.Generator, tied: bool) -> Weights:
    """Random unit rows, and no encoder bias."""
    W_dec = _random_rows(n, b_dec_D.numel(), generator)
    return Weights(W_dec.clone() if tied else _random_rows(n, b_dec_D.numel(), generator), W_dec, b_dec_D.float())


def _with_parts_of(kind: Architecture, whole: Weights, b_enc: bool) -> Weights:
    """The weights with the parts that are trained: an encoder bias where it is asked for, needed or there already, and
    thresholds where the architecture learns them.
    """
    n, first = len(whole.W_dec_ND), kind.threshold_init()
    bias, log_threshold = whole.b_enc_N, whole.log_threshold_N
    if bias is None and (b_enc or kind.needs_bias):
        bias = torch.zeros(n)
    if first is None:
        log_threshold = None
    elif log_threshold is None:
        log_threshold = torch.full((n,), first)
    else:
        log_threshold = log_threshold.nan_to_num(neginf=first, posinf=_NEVER)
    return Weights(whole.W_enc_ND, whole.W_dec_ND, whole.b_dec_D, bias, log_threshold)


def _own_rows(tensor: Tensor, name: str, own: range) -> Tensor:
    return tensor if name == "b_dec_D" else tensor[own.start : own.stop]


def _random_rows(n: int, d: int, generator: torch.Generator) -> Tensor:
    sae = SAE(SAEConfig(d, n))
    sae.init_weights(generator)
    return sae.W_dec.detach()
