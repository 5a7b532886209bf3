"""The decomposability penalty on decoder rows, one program per row (arXiv 2604.03436;
`train.penalties.decomposability`).

    wh_i = (sum over kept (i, j, z) of z v_j + b_meta) * std_i + mean_i         the frozen meta SAE's reconstruction
    e_i  = ||w_i - wh_i||^2,     p_i = s_i exp(-e_i / sigma^2),     dP/dw_i = -(2 / (n sigma^2)) p_i (w_i - wh_i)

`normalised` makes the meta SAE's input; `penalise` does everything after its selection: neither wh nor w - wh is ever
written. Neither waits for the device. `add_penalty` is all of it with the encoder between, whose search is waited for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.kernels.kept import Kept
from metasae.sae.kernels.triton.encoding import encode_select
from metasae.sae.sae import TOKEN_EPS
from metasae.sae.weights import Weights

_AT_ONCE = 4


def add_penalty(
    W_ND: Tensor,
    meta: Weights,
    k: int,
    cut: float,
    token: bool,
    dtype: torch.dtype,
    sigma_sq: float,
    pull: float,
    share_N: Tensor | None = None,
    into_ND: Tensor | None = None,
) -> tuple[Tensor, float]:
    """(P 0-dim, the warm cut of the next call); adds pull * dP/dW to `into` where it is given.

    meta: a BatchTopK SAE that keeps k per row, taken as constant. token: whether it takes normalised rows. share: s_i,
    None for all ones.
    """
    if token:
        rows, mean, std = normalised(W_ND, meta.b_dec_D, TOKEN_EPS, dtype)
    else:
        rows, mean, std = W_ND - meta.b_dec_D, None, None
    kept, cut = encode_select(rows, meta.W_enc_ND, meta.b_enc_N, k * rows.shape[0], cut, dtype)
    _, p_N = penalise(W_ND, kept, meta.W_dec_ND, meta.b_dec_D, mean, std, sigma_sq, pull, share_N, into_ND)
    return p_N.mean(), cut


def normalised(W_ND: Tensor, b_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """((w - mean) / (std + eps) - b [n, d] in `dtype`, mean fp32 [n], std fp32 [n]); std with d - 1, as
    `sae.token_normalise`.

    b: the meta SAE's b_dec, so that the result goes into its encoder as it is.
    """
    n, D = W_ND.shape
    out = torch.empty(n, D, dtype=dtype, device=W_ND.device)
    mean, std = torch.empty(n, device=W_ND.device), torch.empty(n, device=W_ND.device)
    block = triton.next_power_of_2(D)
    _normalise[(n,)](W_ND, b_D, out, mean, std, eps, D=D, BLOCK=block, num_warps=_warps(block))
    return out, mean, std


def penalise(
    W_ND: Tensor,
    kept: Kept,
    V_MD: Tensor,
    b_D: Tensor,
    mean_N: Tensor | None,
    std_N: Tensor | None,
    sigma_sq: float,
    pull: float,
    share_N: Tensor | None = None,
    into_ND: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(e fp32 [n], p fp32 [n]); P is the mean of p.

    V, b: the meta SAE's W_dec [m, d] and b_dec. mean, std: from `normalised`; None where the meta SAE takes raw rows.
    share: s_i; None for all ones. into: gets pull * dP/dW added, in place.
    """
    n, D = W_ND.shape
    e, p = torch.empty(n, device=W_ND.device), torch.empty(n, device=W_ND.device)
    block = triton.next_power_of_2(D)
    _penalise[(n,)](
        W_ND, kept.values, kept.latents, kept.offsets, V_MD.contiguous(), b_D,
        e if mean_N is None else mean_N, e if std_N is None else std_N,
        e if share_N is None else share_N, e, p, W_ND if into_ND is None else into_ND,
        1 / sigma_sq, -2 * pull / (n * sigma_sq),
        D=D, TOKEN=std_N is not None, SHARE=share_N is not None, INTO=into_ND is not None,
        AT_ONCE=_AT_ONCE, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return e, p


def _warps(block: int) -> int:
    return min(16, max(4, block // 256))


@triton.jit
def _normalise(W, b, out, mean, std, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    here = row.to(tl.int64) * D + columns
    w = tl.load(W + here, mask=inside, other=0.0)
    middle = tl.sum(w, 0) / D
    centred = tl.where(inside, w - middle, 0.0)
    # centred once more, as token_normalise does: in a constant row rounding would otherwise count as spread
    spread = tl.where(inside, centred - tl.sum(centred, 0) / D, 0.0)
    width = tl.sqrt(tl.sum(spread * spread, 0) / (D - 1))
    tl.store(mean + row, middle)
    tl.store(std + row, width)
    scaled = centred / (width + eps) - tl.load(b + columns, mask=inside, other=0.0)
    tl.store(out + here, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _penalise(
    W, values, latents, offsets, table, b, mean, std, share, e, p, into, inverse, factor,
    D: tl.constexpr, TOKEN: tl.constexpr, SHARE: tl.constexpr, INTO: tl.constexpr,
    AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    total = tl.zeros((AT_ONCE, BLOCK), dtype=tl.float32)
    for first in range(start, stop, AT_ONCE):
        entry = first + tl.arange(0, AT_ONCE)
        there = entry < stop
        z = tl.load(values + entry, mask=there, other=0.0)
        latent = tl.load(latents + entry, mask=there, other=0).to(tl.int64)
        v = tl.load(table + latent[:, None] * D + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total += z[:, None] * v.to(tl.float32)
    rebuilt = tl.sum(total, 0) + tl.load(b + columns, mask=inside, other=0.0)
    if TOKEN:
        rebuilt = rebuilt * tl.load(std + row) + tl.load(mean + row)
    here = row.to(tl.int64) * D + columns
    away = tl.where(inside, tl.load(W + here, mask=inside, other=0.0) - rebuilt, 0.0)
    distance = tl.sum(away * away, 0)
    closeness = tl.exp(-distance * inverse)
    if SHARE:
        closeness = closeness * tl.load(share + row)
    tl.store(e + row, distance)
    tl.store(p + row, closeness)
    if INTO:
        tl.store(into + here, tl.load(into + here, mask=inside, other=0.0) + factor * closeness * away, mask=inside)
