"""The paper's objective on one page (arXiv 2604.03436), in plain autograd.

This page is the specification. `metasae.sae.gradients` and the penalties compute the same losses, and their gradients
in closed form, and tests compare them with this page. Training itself runs only `meta_input` of it.

Shapes: B tokens, D width d, N latents n. sg = stop-gradient (detach). Rows w_i of W_dec have unit length.

    a   = relu((x - b_dec) W_enc + b_enc)                       encode
    z   = the k*B largest entries of a over the batch           BatchTopK, arXiv 2412.06410
    xh  = z W_dec + b_dec                                       decode
    L2  = mean (xh - x)^2
    aux = coef * mean (r - xh_dead)^2,  r = sg(x - xh)          AuxK on dead latents, arXiv 2406.04093
    e_i = ||w_i - sg(wh_i)||^2,  p_i = exp(-e_i / sigma^2)      wh_i: the meta SAE's reconstruction of row i
    L   = L2 + aux + lambda2 * mean_i p_i
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasae.sae.kernels import reference
from metasae.sae.sae import token_normalise
from metasae.sae.weights import Weights


@dataclass(frozen=True)
class Losses:
    """The terms of L, each a 0-dim tensor. `penalty` is mean_i p_i, without lambda2."""

    l2: Tensor
    aux: Tensor
    penalty: Tensor
    total: Tensor


def encode(x_BD: Tensor, weights: Weights) -> Tensor:
    """a [B, n], before selection."""
    pre = (x_BD - weights.b_dec_D) @ weights.W_enc_ND.t()
    return torch.relu(pre if weights.b_enc_N is None else pre + weights.b_enc_N)


def batch_topk(a_BN: Tensor, keep: int) -> Tensor:
    """z [B, n]: a where it is among the `keep` largest of the batch, else 0."""
    kept, _ = reference.select(a_BN.detach(), keep)
    return a_BN * kept.with_values(torch.ones_like(kept.values)).dense()


def reconstruction_loss(xh_BD: Tensor, x_BD: Tensor) -> Tensor:
    return (xh_BD - x_BD).pow(2).mean()


def auxiliary_loss(
    x_BD: Tensor, xh_BD: Tensor, a_BN: Tensor, W_dec_ND: Tensor, dead_N: Tensor, k_aux: int, coef: float, detach: bool
) -> Tensor:
    """AuxK: the dead latents D rebuild the residual, with the top min(k_aux, |D|) of a[:, D] for each token. detach: no
    gradient through the residual; the paper's code has False.
    """
    residual = x_BD - xh_BD
    if detach:
        residual = residual.detach()
    if not dead_N.any():
        return xh_BD.new_zeros(())
    a_dead = a_BN[:, dead_N]
    kept = reference.select_rows(a_dead.detach(), min(k_aux, a_dead.shape[1]))
    z_dead = a_dead * kept.with_values(torch.ones_like(kept.values)).dense()
    return coef * (z_dead @ W_dec_ND[dead_N] - residual).pow(2).mean()


def decomposability_penalty(W_dec_ND: Tensor, wh_ND: Tensor, sigma_sq: float) -> Tensor:
    """mean_i exp(-||w_i - sg(wh_i)||^2 / sigma^2)."""
    e_N = (W_dec_ND - wh_ND.detach()).pow(2).sum(dim=1)
    return torch.exp(-e_N / sigma_sq).mean()


def meta_input(W_dec_ND: Tensor, mode: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The decoder rows as the meta SAE sees them: (rows [n, d], mean [n, 1], std [n, 1])."""
    return (W_dec_ND, None, None) if mode == "raw" else token_normalise(W_dec_ND)


def meta_reconstruction(W_dec_ND: Tensor, meta: Weights, keep: int, mode: str) -> Tensor:
    """wh [n, d] in the decoder rows' own space."""
    rows, mean, std = meta_input(W_dec_ND, mode)
    wh = batch_topk(encode(rows, meta), keep) @ meta.W_dec_ND + meta.b_dec_D
    return wh if mean is None else wh * std + mean


def sae_losses(
    x_BD: Tensor,
    weights: Weights,
    keep: int,
    dead_N: Tensor,
    k_aux: int,
    aux_coef: float,
    detach: bool,
    lambda2: float = 0.0,
    sigma_sq: float = 1.0,
    wh_ND: Tensor | None = None,
) -> Losses:
    """L and its terms for the primary SAE, or for the meta SAE when `wh_ND` is None."""
    a = encode(x_BD, weights)
    xh = batch_topk(a, keep) @ weights.W_dec_ND + weights.b_dec_D
    l2 = reconstruction_loss(xh, x_BD)
    aux = auxiliary_loss(x_BD, xh, a, weights.W_dec_ND, dead_N, k_aux, aux_coef, detach)
    penalty = l2.new_zeros(()) if wh_ND is None else decomposability_penalty(weights.W_dec_ND, wh_ND, sigma_sq)
    return Losses(l2, aux, penalty, l2 + aux + lambda2 * penalty)
