"""Which latents fire, exactly, at a third of the cost: a cheap product in bf16 names the candidates, an fp32 one
settles them.

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

import numpy as np
import torch
from torch import Tensor

from metasae.sae.gradients import matmul_dtype
from metasae.sae.kernels.fast import decode, entry_dots, select_rows
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
        n = len(self.W_enc_ND)
        self.limit_N = (
            torch.as_tensor(limit, dtype=torch.float32, device=self.W_enc_ND.device).expand(n).clamp(0, _ENDLESS)
        )
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
                values = entry_dots(places, xc, self.W_enc_ND)
                return places.with_values(values.add_(self.sae.b_enc[places.latents]))
        return dense_candidates(self.sae, x_BD, self.limit_N)

    def above(self, x_BD: Tensor) -> Kept:
        """The entries with pre > limit: those that fire, where the limit is the SAE's threshold; by rule "topk" only
        the k largest of a row."""
        if self.sae.config.rule == "topk":
            entries = select_rows(self.sae.pre_activations(x_BD).detach(), self.sae.config.k)
        else:
            entries = self.candidates(x_BD)
        return entries.subset(entries.values > self.limit_N[entries.latents])

    @torch.no_grad()
    def reconstruct(self, x_BD: Tensor) -> Tensor:
        """x [B, d] in the model's units -> x_hat [B, d], as the SAE gives it with the limit as its threshold."""
        x, mean, std = self.sae.normalise(x_BD.to(self.W_enc_ND.device, torch.float32))
        x_hat = decode(self.above(x), self.sae.W_dec.detach()) + self.sae.b_dec
        return x_hat if mean is None else x_hat * std + mean

    def _screen(self, xc_BD: Tensor) -> np.ndarray:
        """Flat indices of the candidates.

        numpy knows no bf16, but a bf16 number is above zero when its bits are as an integer.
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
