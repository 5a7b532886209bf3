"""The rows of the two latents that a birth puts in place of one.

Decoder rows a = unit(w + rho+ v), b = unit(w + rho- v), with c = a . b. The parent's encoder row is e = gamma w + u
with gamma = e . w; u separates the latent from others whose directions are close. Each newborn keeps gamma and u, and
its row loses most of the other newborn's direction:

    ridge dual   r_a = (a - c b) / (1 - c^2 + RIDGE) + s (a + b) / 2,    s such that r_a . a = 1
    encoder row  gamma r_a + u
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.3


@dataclass(frozen=True)
class Twins:
    """Decoder and encoder rows of M births, [M, d] each."""

    a_MD: Tensor
    b_MD: Tensor
    enc_a_MD: Tensor
    enc_b_MD: Tensor


def twins(w_MD: Tensor, v_MD: Tensor, e_MD: Tensor, upper_M: Tensor, lower_M: Tensor) -> Twins:
    """w, v, e: the parents' decoder rows, axes and encoder rows. upper, lower: rho+ and rho-."""
    a, b = (torch.nn.functional.normalize(w_MD + rho[:, None] * v_MD, dim=1) for rho in (upper_M, lower_M))
    gamma = torch.linalg.vecdot(e_MD, w_MD)[:, None]
    u, c = e_MD - gamma * w_MD, torch.linalg.vecdot(a, b)[:, None]
    return Twins(a, b, gamma * _dual(a, b, c) + u, gamma * _dual(b, a, c) + u)


def _dual(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    dual = (a - c * b) / (1 - c * c + RIDGE)
    middle = (a + b) / 2
    short = 1 - torch.linalg.vecdot(dual, a)[:, None]
    return dual + short / torch.linalg.vecdot(middle, a)[:, None].clamp(min=1e-6) * middle
