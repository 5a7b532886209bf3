"""Which pre-activations count: those above a limit (`Screen`), and those that BatchTopK selects (`BatchSelection`), the
counts that a fixed inference rule is meant to reproduce.

BatchTopK: a block of B tokens keeps its k B largest positive pre-activations (arXiv 2412.06410). Only entries above a
share of the last block's smallest selected one are looked at; with fewer than k B of them the cut is lowered and it
looks again, so the selection is always exact, ties to the lower index.

The screen finds exactly which latents fire, at a third of the cost: a cheap product in bf16 gives the candidates, and
an fp32 product decides.

Let u = 2^-8, the relative rounding error of bf16. For x (less b_dec), w_j and the rule x w_j + b_j > t_j,

    |bf16(x) bf16(w_j) - x w_j|  <=  (2u + u^2) sum |x| |w_j|  <=  (2u + u^2) ||x|| ||w_j||        (Cauchy-Schwarz)

and sums of d products in fp32, on either side, add at most d 2^-23 (||x|| ||w_j|| + |b_j| + |t_j|). So where the rule
holds,

    x w_j + (b_j - t_j) + c ||x|| ||w_j|| + e (|b_j| + |t_j|)  >  0

in bf16 factors too, with c and e a little above those bounds. The three extra terms are three more columns of the
product: [x, c ||x||, 1, 1] [w_j, ||w_j||, hi_j, lo_j], with both norms rounded upwards and the per-latent rest split
into two bf16 numbers, which leaves 2^-16 of it. Rounding the sum to bf16 keeps its sign, so a candidate is an entry
above zero.
"""

import math

import numpy as np
import torch
from torch import Tensor

from metasae.data.split import Split, own_part
from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.ranks.ranks import ALONE, Ranks
from metasae.sae.gradients import matmul_dtype
from metasae.sae.kernels import fast
from metasae.sae.kernels.kept import Kept
from metasae.sae.sae import SAE

U = 2.0**-8
# Beyond this share of candidates the dense product is cheaper than single entries.
DENSE_SHARE = 1 / 16
_ENDLESS = 1e30


class Screen:
    """An SAE's encoder with a lower limit on pre-activations, for inputs x [B, d] as the weights see them
    (`sae.normalise`).

    limit: a number or [n], as set by `set_limit`; below 0 it counts as 0. screened: whether candidates are found in
    bf16; None: where this CPU multiplies bf16 natively.
    """

    def __init__(self, sae: SAE, limit: float | Tensor, screened: bool | None = None):
        self.sae = sae
        self.W_enc_ND = sae.W_enc.detach().float().t().contiguous()
        device = self.W_enc_ND.device
        native = device.type == "cpu" and matmul_dtype("auto", device) == torch.bfloat16
        self.screened = native if screened is None else screened
        n, d = self.W_enc_ND.shape
        self.c, self.e = 2.02 * U + d * 2.0**-21, 2.0**-15 + d * 2.0**-21
        if self.screened:
            self._columns = torch.zeros(n, d + 3, dtype=torch.bfloat16)
            self._columns[:, :d] = self.W_enc_ND
            self._columns[:, d] = _upwards(self.W_enc_ND.norm(dim=1))
        self.set_limit(limit)

    def set_limit(self, limit: float | Tensor) -> None:
        limit = torch.as_tensor(limit, dtype=torch.float32, device=self.W_enc_ND.device)
        self.limit_N = limit.expand(len(self.W_enc_ND)).clamp(0, _ENDLESS)
        if self.screened:
            b = self.sae.b_enc.detach().float()
            rest = b - self.limit_N + self.e * (b.abs() + self.limit_N)
            high = rest.bfloat16()
            self._columns[:, -2], self._columns[:, -1] = high, rest - high.float()

    @torch.no_grad()
    def candidates(self, x_BD: Tensor) -> Kept:
        """All entries with pre >= limit > 0 (or pre > limit = 0), and some below it, with their fp32 values."""
        if self.screened:
            xc = x_BD - self.sae.b_dec
            flat = self._screen(xc)
            if len(flat) <= DENSE_SHARE * len(x_BD) * len(self.W_enc_ND):
                places = Kept.from_flat(torch.from_numpy(flat), torch.zeros(len(flat)), len(x_BD), len(self.W_enc_ND))
                values = fast.entry_dots(places, xc, self.W_enc_ND)
                return places.with_values(values.add_(self.sae.b_enc[places.latents]))
        return dense_candidates(self.sae, x_BD, self.limit_N)

    def above(self, x_BD: Tensor) -> Kept:
        """The entries with pre > limit: those that fire, where the limit is the SAE's threshold; by rule "topk" only
        the k largest of a row."""
        if self.sae.config.rule == "topk":
            entries = fast.select_rows(self.sae.pre_activations(x_BD).detach(), self.sae.config.k)
        else:
            entries = self.candidates(x_BD)
        return entries.subset(entries.values > self.limit_N[entries.latents])

    @torch.no_grad()
    def reconstruct(self, x_BD: Tensor) -> Tensor:
        """x [B, d] in the model's units -> x_hat [B, d], as the SAE gives it with the limit as its threshold."""
        x, mean, std = self.sae.normalise(x_BD.to(self.W_enc_ND.device, torch.float32))
        x_hat = fast.decode(self.above(x), self.sae.W_dec.detach()) + self.sae.b_dec
        return x_hat if mean is None else x_hat * std + mean

    def _screen(self, xc_BD: Tensor) -> np.ndarray:
        """Flat indices of the candidates.

        numpy has no bf16, but a bf16 number is above zero when its bits, read as an integer, are.
        """
        B, d = xc_BD.shape
        rows = torch.ones(B, d + 3, dtype=torch.bfloat16)
        rows[:, :d] = xc_BD
        rows[:, d] = _upwards(self.c * xc_BD.norm(dim=1))
        return np.flatnonzero((rows @ self._columns.t()).view(torch.int16).numpy() > 0)


def dense_candidates(sae: SAE, x_BD: Tensor, limit_N: Tensor) -> Kept:
    """The plain twin of `Screen.candidates`: all of pre [B, n] in fp32, the entries with pre >= limit."""
    pre = sae.pre_activations(x_BD).detach()
    if pre.device.type == "cpu":
        # a third of the time of torch's comparison and nonzero
        flat = torch.from_numpy(np.flatnonzero(pre.numpy() >= limit_N.numpy()))
    else:
        flat = (pre >= limit_N).view(-1).nonzero().squeeze(1)
    return Kept.from_flat(flat, pre.view(-1)[flat], *pre.shape)


def _upwards(x: Tensor) -> Tensor:
    """A bf16 number not below x >= 0."""
    return (x * (1 + 2 * U)).bfloat16()


# The next block's first cut, relative to this block's smallest selected pre-activation.
CUT_MARGIN = 0.9


class BatchSelection:
    """BatchTopK with k per token on one block of tokens after the other, exact for fp32 pre-activations.

    counts: int64 [n], how often each latent was selected. totals: float64 [n], the sum of its selected pre-activations.
    lowest: float32 [n], the smallest of them, inf where there is none. cut: where to look for the next block's.
    """

    def __init__(self, sae: SAE, k: float):
        self.counts, self.lowest = np.zeros(sae.n_latents, np.int64), np.full(sae.n_latents, np.inf, np.float32)
        self.totals = np.zeros(sae.n_latents)
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
        self.totals += np.bincount(latents[chosen], weights=values[chosen], minlength=len(self.counts))
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
    sae: SAE,
    threshold: float | Tensor,
    split: Split,
    batch: int = 2048,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """On how many tokens each latent's pre-activation lies above `threshold`, a number or [n]: int64 [n].

    ranks: share the tokens, and find the same.
    """
    own = own_part(split, batch, ranks)
    counts, screen = np.zeros(sae.n_latents, np.int64), Screen(sae, threshold)
    for block in tracked(progress, own.blocks(batch), "counting firings", own.n_tokens):
        kept = screen.above(model_inputs(sae, block))
        counts += np.bincount(kept.latents.cpu().numpy(), minlength=sae.n_latents)
    return ranks.sum_(torch.from_numpy(counts)).numpy()


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
