"""An SAE's losses and gradients in closed form, on kept entries only. `metasae.train.objective` is what they must equal.

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
from metasae.sae.weights import Weights


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


def matmul_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """'auto': bf16 where the device multiplies it natively, else fp32."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    return torch.bfloat16 if native else torch.float32


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


def _keep_rows(a_BN: Tensor, keep: int) -> Tensor:
    """a with all but the `keep` largest entries of each row set to zero."""
    top = torch.topk(a_BN, keep, dim=1, sorted=False)
    return torch.zeros_like(a_BN).scatter_(1, top.indices, top.values)
