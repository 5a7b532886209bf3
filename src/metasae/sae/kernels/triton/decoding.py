"""Sparse decoding, the residual, and its products with the rows of kept entries.

    part_b = sum over kept (b, j, z) of z w_j          r_b = xc_b - part_b          dot_e = <r_b, w_j>

`residual` does all three with one program per token that keeps its row in registers; dL/dz is the dot times
-2 / (B d). No function here waits for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.kernels.kept import Kept
from metasae.sae.kernels.triton.segments import chunks, segment_dots, segment_sums

# Tokens with more entries than this are left to many programs each.
LONG = 1024
_AT_ONCE = 4


def decode(kept: Kept, W_dec_ND: Tensor) -> Tensor:
    """See reference.decode. W_dec in fp32 or bf16; sums in fp32."""
    W = W_dec_ND.contiguous()
    out = torch.empty(kept.n_rows, W.shape[1], device=W.device)
    segment_sums(chunks(kept.offsets, kept.values.numel()), kept.latents, None, (kept.values,), (W,), (out,))
    return out


def entry_dots(kept: Kept, left_BD: Tensor, right_ND: Tensor) -> Tensor:
    """See reference.entry_dots. Inputs in fp32 or bf16; sums in fp32."""
    out = torch.empty_like(kept.values)
    segment_dots(
        chunks(kept.offsets, kept.values.numel()), kept.latents, left_BD.contiguous(), right_ND.contiguous(), out
    )
    return out


def residual(kept: Kept, W_dec_ND: Tensor, xc_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(r fp32 [B, d], sum of squares of each row of r fp32 [B], dots <r_b, w_j> fp32 [K]) for xc = x - b_dec.

    A token of more than LONG entries would delay the others, so the kernels of `decode` and `entry_dots` compute it.
    """
    W, xc = W_dec_ND.contiguous(), xc_BD.contiguous()
    B, D = xc.shape
    r, squares, dots = (
        torch.empty(B, D, device=W.device),
        torch.empty(B, device=W.device),
        torch.empty_like(kept.values),
    )
    block = triton.next_power_of_2(D)
    _residual[(B,)](
        r, squares, dots, W, xc, kept.values, kept.latents, kept.offsets,
        D=D, LONG=LONG, AT_ONCE=_AT_ONCE, BLOCK=block, num_warps=min(16, max(4, block // 256)),
    )  # fmt: skip
    if kept.n_latents > LONG:
        long = chunks(kept.offsets, kept.values.numel(), least=LONG)
        segment_sums(long, kept.latents, None, (kept.values,), (W,), (r,))
        _less[(B,)](r, squares, xc, kept.offsets, D=D, LONG=LONG, BLOCK=block, num_warps=4)
        segment_dots(long, kept.latents, r, W, dots)
    return r, squares, dots


@triton.jit
def _residual(
    r, squares, dots, table, xc, values, latents, offsets,
    D: tl.constexpr, LONG: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    start, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    if stop - start > LONG:
        return
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    total = tl.zeros((AT_ONCE, BLOCK), dtype=tl.float32)
    for first in range(start, stop, AT_ONCE):
        entry = first + tl.arange(0, AT_ONCE)
        there = entry < stop
        z = tl.load(values + entry, mask=there, other=0.0)
        latent = tl.load(latents + entry, mask=there, other=0).to(tl.int64)
        w = tl.load(table + latent[:, None] * D + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total += z[:, None] * w.to(tl.float32)
    here = row.to(tl.int64) * D + columns
    left = tl.load(xc + here, mask=inside, other=0.0).to(tl.float32) - tl.sum(total, 0)
    tl.store(r + here, left, mask=inside)
    tl.store(squares + row, tl.sum(left * left, 0))
    # the rows of the table were read a moment ago: this time they come from the cache
    for first in range(start, stop, AT_ONCE):
        entry = first + tl.arange(0, AT_ONCE)
        there = entry < stop
        latent = tl.load(latents + entry, mask=there, other=0).to(tl.int64)
        w = tl.load(table + latent[:, None] * D + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        tl.store(dots + entry, tl.sum(left[None, :] * w.to(tl.float32), 1), mask=there)


@triton.jit
def _less(r, squares, xc, offsets, D: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):
    """Long tokens: r holds the decoded part; it becomes xc minus that part."""
    row = tl.program_id(0)
    if tl.load(offsets + row + 1) - tl.load(offsets + row) <= LONG:
        return
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    here = row.to(tl.int64) * D + columns
    left = tl.load(xc + here, mask=inside, other=0.0).to(tl.float32) - tl.load(r + here, mask=inside, other=0.0)
    tl.store(r + here, left, mask=inside)
    tl.store(squares + row, tl.sum(left * left, 0))
