"""What BatchTopK selects on a split: the counts that a fixed inference rule is meant to reproduce.

A block of B tokens keeps its k B largest positive pre-activations (arXiv 2412.06410). Only entries above a share of the
last block's smallest selected one are looked at; with fewer than k B of them the cut is lowered and it looks again, so
the selection is always exact, ties to the lower index.
"""

import math

import numpy as np
import torch
from torch import Tensor

from metasae.data.split import Split
from metasae.errors import UserError
from metasae.measures.firing.screen import Screen
from metasae.progress.progress import SILENT, Progress
from metasae.sae.kernels import fast
from metasae.sae.sae import SAE

# The next block's first cut, relative to this block's smallest selected pre-activation.
CUT_MARGIN = 0.9


class BatchSelection:
    """BatchTopK with k per token on one block of tokens after the other, exact for fp32 pre-activations.

    counts: int64 [n], how often each latent was selected. lowest: float32 [n], its smallest selected pre-activation,
    inf where there is none. cut: where to look for the next block's.
    """

    def __init__(self, sae: SAE, k: float):
        self.counts, self.lowest = np.zeros(sae.n_latents, np.int64), np.full(sae.n_latents, np.inf, np.float32)
        self.cut = 0.0
        self._sae, self._k, self._screen = sae, k, Screen(sae, 0.0)

    def add(self, block: Tensor, limit: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
        """block [B, d] in the model's units -> all its pre-activations from `limit` on, and some below: latents int32
        [K], float32 [K].

        Raises UserError when a number is not finite.
        """
        keep = round(self._k * len(block))
        latents, values = self._enough(block, keep, min(self.cut, limit))
        chosen = largest(values, keep)
        self.counts += np.bincount(latents[chosen], minlength=len(self.counts))
        np.minimum.at(self.lowest, latents[chosen], values[chosen])
        self.cut = CUT_MARGIN * float(values[chosen].min()) if np.count_nonzero(chosen) == keep > 0 else 0.0
        return latents, values

    def _enough(self, block: Tensor, keep: int, cut: float) -> tuple[np.ndarray, np.ndarray]:
        """Entries that hold the block's `keep` largest, found above `cut` or, where it was too high, above a lower
        one."""
        while True:
            self._screen.set_limit(cut)
            latents, values = candidates(self._sae, block, self._screen)
            if cut == 0 or np.count_nonzero(values >= np.float32(cut)) >= keep:
                return latents, values
            cut = cut / 2 if cut > 1e-6 else 0.0


@torch.no_grad()
def count_firings(
    sae: SAE, threshold: float | Tensor, split: Split, batch: int = 2048, progress: Progress = SILENT
) -> np.ndarray:
    """On how many tokens each latent's pre-activation lies above `threshold`, a number or [n]: int64 [n]."""
    counts, screen = np.zeros(sae.n_latents, np.int64), Screen(sae, threshold)
    with progress.task("counting firings", split.n_tokens) as task:
        for block in split.blocks(batch):
            kept = screen.above(model_inputs(sae, block))
            counts += np.bincount(kept.latents.cpu().numpy(), minlength=sae.n_latents)
            task.advance(len(block))
    return counts


def candidates(sae: SAE, block: Tensor, screen: Screen) -> tuple[np.ndarray, np.ndarray]:
    """block [B, d] in the model's units -> latents int32 [K] and pre-activations float32 [K] that the screen lets
    through.

    Ordered by token, then by latent. Raises UserError when one is not finite.
    """
    entries = screen.candidates(model_inputs(sae, block))
    check_finite(entries.values)
    return entries.latents.cpu().numpy(), entries.values.cpu().numpy()


def model_inputs(sae: SAE, block: Tensor) -> Tensor:
    """block [B, d] in the model's units -> as the weights see it. Raises UserError when a number is not finite."""
    x, _, _ = sae.normalise(block.to(sae.W_dec.device, torch.float32))
    check_finite(x)
    return x


def batch_topk_reconstruction(sae: SAE, x_BD: Tensor) -> Tensor:
    """x [B, d] in the model's units -> x_hat [B, d] from the k * B largest pre-activations of the batch, as in
    training."""
    x, mean, std = sae.normalise(x_BD.to(sae.W_dec.device, torch.float32))
    kept, _ = fast.select(sae.pre_activations(x), sae.config.k * len(x))
    x_hat = fast.decode(kept, sae.W_dec.detach()) + sae.b_dec
    return x_hat if mean is None else x_hat * std + mean


def check_finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in tensors):
        raise UserError("the SAE gives pre-activations that are not finite; its weights or the activations are damaged")


def largest(values: np.ndarray, keep: int) -> np.ndarray:
    """Which of values [K] are the `keep` largest above zero, ties to the lower index: bool [K]."""
    if keep < 1 or len(values) <= keep:
        return (values > 0) if keep > 0 else np.zeros(len(values), bool)
    limit = np.partition(values, len(values) - keep)[len(values) - keep]
    chosen = values > limit
    chosen[np.flatnonzero(values == limit)[: keep - np.count_nonzero(chosen)]] = True
    return chosen & (values > 0)
