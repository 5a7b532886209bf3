"""The paper's penalty (arXiv 2604.03436): decoder rows that the meta SAE rebuilds well cost most.

    P = (1/n) sum_i s_i p_i,   p_i = exp(-e_i / sigma^2),   e_i = ||w_i - sg(wh_i)||^2,   s_i = 1
    dP/dw_i = -(2 / (n sigma^2)) s_i p_i (w_i - wh_i)

Options: `balanced` weighs each row with its firing rate, s_i = f_i / mean f, as the gradient of the reconstruction
scales with the rate too; `full` takes the gradient through the meta SAE as well (no stop-gradient).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metasae.sae.architectures import Architecture
from metasae.sae.gradients import Arithmetic, forward
from metasae.sae.sae import TOKEN_EPS
from metasae.sae.weights import Weights
from metasae.train.objective import encode, meta_input


@dataclass(frozen=True)
class Probe:
    """The frozen meta SAE's reconstruction of the rows. e_N: squared distances; difference_ND: w - wh; kept: the meta
    SAE's entries that fire; cut: warm start of the next selection.
    """

    e_N: Tensor
    difference_ND: Tensor
    kept: object
    cut: float


def probe(
    W_dec_ND: Tensor, meta: Weights, architecture: Architecture, k: int, cut: float, mode: str, how: Arithmetic
) -> Probe:
    """Runs the meta SAE on the rows; distances are in the rows' own space. The meta SAE does not change."""
    rows, _, std = meta_input(W_dec_ND, mode)
    passed = forward(rows, meta, architecture, k, cut, how)
    difference = passed.residuals[-1]
    if std is not None:
        # w - wh with wh = (rows - residual) std + mean and w = rows (std + eps) + mean
        difference.mul_(std).add_(rows, alpha=TOKEN_EPS)
    return Probe(difference.square().sum(dim=1), difference, passed.kept, passed.cut)


def decomposability(view: Probe, sigma_sq: float, share_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(P, per-row factor [n]) such that dP/dw_i = factor_i * (w_i - wh_i). share_N: s_i, None for all ones."""
    p_N = torch.exp(view.e_N / -sigma_sq)
    if share_N is not None:
        p_N = p_N * share_N
    return p_N.mean(), p_N * (-2 / (p_N.numel() * sigma_sq))


def full_gradient(
    W_dec_ND: Tensor, meta: Weights, view: Probe, mode: str, sigma_sq: float, share_N: Tensor | None = None
) -> Tensor:
    """dP/dW_dec [n, d] without the stop-gradient, by autograd: also through the meta SAE's encoder, with its selection
    fixed.
    """
    on = view.kept.with_values((view.kept.values > 0).float()).dense()
    with torch.enable_grad():
        W = W_dec_ND.detach().requires_grad_()
        rows, mean, std = meta_input(W, mode)
        wh = (encode(rows, meta) * on) @ meta.W_dec_ND + meta.b_dec_D
        wh = wh if mean is None else wh * std + mean
        p_N = torch.exp((W - wh).square().sum(dim=1) / -sigma_sq)
        value = (p_N if share_N is None else p_N * share_N).mean()
        return torch.autograd.grad(value, W)[0]
