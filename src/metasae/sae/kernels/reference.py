"""The plain kernels: dense and slow. They define the results of the fast ones.

Shapes: B tokens (or decoder rows, for the meta SAE), D width d, N latents n, K kept entries.
"""

import torch
from torch import Tensor

from metasae.sae.kernels.kept import Kept


def encode(x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, dtype: torch.dtype) -> Tensor:
    """pre [B, n] = x W_enc + b_enc, multiplied in `dtype`. W_enc comes as its transpose [n, d]."""
    pre = x_BD.to(dtype) @ W_enc_ND.to(dtype).t()
    return pre if b_enc_N is None else pre + b_enc_N.to(dtype)


def select(pre_BN: Tensor, keep: int, cut: float = 0.0) -> tuple[Kept, float]:
    """BatchTopK: the `keep` largest positive entries of the whole batch (arXiv 2412.06410).

    Ties go to the lower flat index, so exactly `keep` are kept whenever that many are positive.
    The plain kernel ignores `cut`, the hint of the last call; the second result is the hint for the next call.
    """
    flat = pre_BN.flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:keep]
    order = order[flat[order] > 0].sort().values
    values = flat[order]
    return Kept.from_flat(order, values, *pre_BN.shape), float(values.min()) if values.numel() else 0.0


def select_rows(pre_BN: Tensor, keep: int) -> Kept:
    """TopK: the `keep` largest positive entries of each row, ties to the lower latent."""
    kept = keep_rows(pre_BN, keep)
    return Kept.where(kept, kept > 0)


def keep_rows(pre_BN: Tensor, keep: int) -> Tensor:
    """pre [B, n] with the `keep` largest positive entries of each row, ties to the lower column; zero elsewhere."""
    order = torch.sort(pre_BN, dim=1, descending=True, stable=True).indices[:, :keep]
    mask = torch.zeros_like(pre_BN, dtype=torch.bool).scatter_(1, order, True) & (pre_BN > 0)
    return torch.where(mask, pre_BN, 0)


def take_columns(pre_BN: Tensor, columns: Tensor) -> Tensor:
    """pre [B, n] -> [B, c], for columns int64 [c]."""
    return pre_BN[:, columns]


def decode(kept: Kept, W_dec_ND: Tensor) -> Tensor:
    """z W_dec, fp32 [B, d], without b_dec."""
    return kept.dense() @ W_dec_ND


def entry_dots(kept: Kept, left_BD: Tensor, right_ND: Tensor) -> Tensor:
    """<left[row], right[latent]> for every kept entry, fp32 [K]: the gradient of z where left is that of x_hat."""
    return (left_BD @ right_ND.t())[kept.rows.long(), kept.latents.long()]


def latent_rows(kept: Kept, weights: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For each pair (weight [K], source [B, d]): out[j] = sum over entries of latent j of weight * source[row], fp32
    [n, d].

    With (z, dL/dx_hat) this is dL/dW_dec; with (dL/dz, x) it is dL/dW_enc, transposed.
    """
    return tuple(
        kept.with_values(weight).dense().t().mm(source) for weight, source in zip(weights, sources, strict=True)
    )
