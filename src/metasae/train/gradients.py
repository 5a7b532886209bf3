"""The objective's losses and gradients in closed form, on kept entries only. `objective.py` is what it must equal.

With G = dL/dxh [B, d] and the kept entries (row b, latent j, value z):

    dL/dz_bj     = <G_b, w_j>                    only where kept; the selection itself has no gradient
    dL/dW_dec_j  = sum_b z_bj G_b
    dL/dW_enc_j  = sum_b dL/dz_bj (x_b - b_dec)
    dL/db_dec    = sum_b G_b - sum_j (sum_b dL/dz_bj) W_enc_j      it enters at the encoder and at the decoder
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metasae.sae.kernels.kept import Kept
from metasae.train.objective import Weights, meta_input


@dataclass(frozen=True)
class Reconstruction:
    """One forward pass. xc: x - b_dec; residual: xh - x."""

    pre_BN: Tensor
    kept: Kept
    xc_BD: Tensor
    residual_BD: Tensor
    cut: float


@dataclass(frozen=True)
class Arithmetic:
    """How products are made: which kernels, and the dtype of the dense matrix products (sums over kept entries stay in fp32)."""

    kernels: ModuleType
    dtype: torch.dtype


def forward(x_BD: Tensor, weights: Weights, keep: int, cut: float, how: Arithmetic) -> Reconstruction:
    """Encode, select, decode. `cut` is the warm start of the selection and never changes its result."""
    xc = x_BD - weights.b_dec_D
    pre = how.kernels.encode(xc, weights.W_enc_ND, weights.b_enc_N, how.dtype)
    kept, cut = how.kernels.select(pre, keep, cut)
    residual = how.kernels.decode(kept, weights.W_dec_ND).sub_(xc)
    return Reconstruction(pre, kept, xc, residual, cut)


def auxiliary(made: Reconstruction, weights: Weights, dead_N: Tensor, k_aux: int, coef: float, how: Arithmetic):
    """AuxK loss, dL/d(aux reconstruction) [B, d], the dead latents' (dL/dW_dec rows, dL/dW_enc rows, dL/d pre summed) and their indices.

    Dense on the dead columns: with k_aux near d / 2 a sparse product would move more bytes than the dense one.
    """
    dead = dead_N.nonzero().squeeze(1)
    a = made.pre_BN[:, dead].clamp_(min=0)
    if k_aux < dead.numel():
        a = _keep_rows(a, k_aux)
    W_dec = weights.W_dec_ND[dead].to(how.dtype)
    # ra = xa - (x - xh) = xa + residual
    ra = (a @ W_dec).float().add_(made.residual_BD)
    loss = coef * ra.square().mean()
    G = ra * (2 * coef / ra.numel())
    Gh = G.to(how.dtype)
    da = (Gh @ W_dec.t()).mul_(a > 0)
    return loss, G, (a.t() @ Gh).float(), (da.t() @ made.xc_BD.to(how.dtype)).float(), da.sum(0, dtype=torch.float32), dead


def sae_gradients(
    made: Reconstruction,
    weights: Weights,
    dead_N: Tensor | None,
    k_aux: int,
    aux_coef: float,
    detach: bool,
    how: Arithmetic,
) -> tuple[Tensor, Tensor, Weights]:
    """(l2, aux, dL/dweights of L2 + aux), the losses as 0-dim tensors. `dead_N` None or all False: no aux term."""
    r = made.residual_BD
    l2 = r.square().mean()
    G = r * (2 / r.numel())
    aux = torch.zeros_like(l2)
    extra = None
    if dead_N is not None and bool(dead_N.any()):
        aux, G_aux, *extra = auxiliary(made, weights, dead_N, k_aux, aux_coef, how)
        if not detach:
            G += G_aux
    dz = how.kernels.entry_dots(made.kept, G, weights.W_dec_ND)
    dW_dec, dW_enc = how.kernels.latent_rows(made.kept, (made.kept.values, dz), (G, made.xc_BD))
    dpre_N = made.kept.latent_sums(dz)
    if extra is not None:
        aux_dec, aux_enc, aux_pre, dead = extra
        dW_dec.index_add_(0, dead, aux_dec)
        dW_enc.index_add_(0, dead, aux_enc)
        dpre_N.index_add_(0, dead, aux_pre)
    db_dec = G.sum(0) - dpre_N @ weights.W_enc_ND
    return l2, aux, Weights(dW_enc, dW_dec, db_dec, None if weights.b_enc_N is None else dpre_N)


def meta_residual(W_dec_ND: Tensor, meta: Weights, keep: int, cut: float, mode: str, how: Arithmetic) -> tuple[Tensor, float]:
    """w - wh [n, d] in the rows' own space, and the cut for the next call. Changes nothing in the meta SAE."""
    rows, mean, std = meta_input(W_dec_ND, mode)
    made = forward(rows, meta, keep, cut, how)
    if mean is None:
        return made.residual_BD.neg_(), made.cut
    wh = made.residual_BD.add_(rows).mul_(std).add_(mean)
    return torch.sub(W_dec_ND, wh), made.cut


def penalty_gradient(difference_ND: Tensor, lambda2: float, sigma_sq: float, into_ND: Tensor | None) -> Tensor:
    """mean_i p_i from w - wh [n, d]; adds dL/dw_i = -(2 lambda2 / (n sigma^2)) p_i (w_i - wh_i) to `into_ND` when given."""
    p_N = torch.exp(difference_ND.square().sum(dim=1).div_(-sigma_sq))
    if into_ND is not None:
        scale = -2 * lambda2 / (p_N.numel() * sigma_sq)
        into_ND.addcmul_(difference_ND, p_N[:, None], value=scale)
    return p_N.mean()


def _keep_rows(a_BN: Tensor, keep: int) -> Tensor:
    """a with all but the `keep` largest entries of each row set to zero."""
    top = torch.topk(a_BN, keep, dim=1, sorted=False)
    return torch.zeros_like(a_BN).scatter_(1, top.indices, top.values)
