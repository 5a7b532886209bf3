"""Pre-activations by tiles, whose entries above a cut leave the kernel as candidates: pre [B, n] is never written.

    pre = x W_enc + b_enc,     products of fp32 or bf16 numbers, summed in fp32, rounded to `dtype`
                                where reference.encode rounds

W_enc is held as its transpose [n, d], so both factors are read along rows. fp32 products are true fp32, never TF32.
The result equals `select` on the matrix that `encode_tiles` writes, to the bit: the same tiles in the same order.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.kernels.fast import sampled_cut
from metasae.sae.kernels.kept import Kept
from metasae.sae.kernels.presence import INTERPRETED
from metasae.sae.kernels.triton.selection import SPARE, Proposal, key_of, propose, settle

# Rows of x that are encoded for a first cut where there is no warm one.
_SAMPLE = 64


@dataclass(frozen=True)
class Tiles:
    """rows x columns: one program's part of pre. depth: numbers of d per product; group: rows of tiles that share
    columns in the cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8


# bf16 for the tensor cores of H100 and H200; fp32 products have no tensor cores and want small tiles.
TILES = {torch.bfloat16: Tiles(128, 256, 64, 8, 3), torch.float32: Tiles(64, 64, 32, 4, 3)}


def encode_select(
    x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, keep: int, cut: float, dtype: torch.dtype
) -> tuple[Kept, float]:
    """BatchTopK of encode(x, W_enc, b_enc, dtype): (the kept entries, the warm cut of the next call).

    Waits for the device once, to learn that the search was enough; twice without a warm cut.
    """
    x, W, b = _inputs(x_BD, W_enc_ND, b_enc_N, dtype)
    shape = (x.shape[0], W.shape[0])
    if not 0 < cut < math.inf:
        some = x[:: max(1, shape[0] // _SAMPLE)].contiguous()
        cut = sampled_cut(encode_tiles(some, W, b, dtype).view(-1), max(1, round(keep * some.shape[0] / shape[0])))
    return settle(lambda keys, count, above: _launch(x, W, b, None, keys, count, above), shape, keep, cut, x.device)


def encode_propose(
    x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, keep: int, cut: Tensor, dtype: torch.dtype
) -> Proposal:
    """One search, of which nothing is waited for: the host looks at `n_above` when it likes, at the latest before the
    weights change.

    cut: fp32 [1] on the device, the last proposal's.
    """
    x, W, b = _inputs(x_BD, W_enc_ND, b_enc_N, dtype)
    capacity = keep + math.ceil(keep * SPARE)
    return propose(
        lambda keys, count, above: _launch(x, W, b, None, keys, count, above),
        (x.shape[0], W.shape[0]),
        keep,
        cut,
        capacity,
    )


def encode_tiles(x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, dtype: torch.dtype) -> Tensor:
    """pre [B, n] in `dtype` as the kernel has it: reference.encode up to the order of its sums. Does not wait for the
    device.
    """
    x, W, b = _inputs(x_BD, W_enc_ND, b_enc_N, dtype)
    pre = torch.empty(x.shape[0], W.shape[0], dtype=dtype, device=x.device)
    _launch(x, W, b, pre, None, None, None)
    return pre


def _inputs(
    x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    # the bias is rounded as in reference.encode
    return x_BD.to(dtype).contiguous(), W_enc_ND.to(dtype).contiguous(), None if b_enc_N is None else b_enc_N.to(dtype)


def _launch(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    pre: Tensor | None,
    keys: Tensor | None,
    count: Tensor | None,
    cut: Tensor | None,
) -> None:
    (B, D), n, tiles = x.shape, W.shape[0], TILES[x.dtype]
    grid = (triton.cdiv(B, tiles.rows) * triton.cdiv(n, tiles.columns),)
    select = pre is None
    _encode[grid](
        x, W, x if b is None else b, x if select else pre,
        keys if select else x, count if select else x, cut if select else x, B, n, keys.numel() if select else 0, D=D,
        BIAS=b is not None, SELECT=select, BF16=x.dtype == torch.bfloat16,
        ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group, WIDEN=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit
def _encode(
    x, W, b, pre, keys, count, cut, B, N, capacity, D: tl.constexpr,
    BIAS: tl.constexpr, SELECT: tl.constexpr, BF16: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    # tiles are taken down a group of rows before the next columns, so that both factors stay in the cache
    across = tl.cdiv(N, COLUMNS)
    down = tl.cdiv(B, ROWS)
    group = tl.program_id(0) // (GROUP * across)
    within = tl.program_id(0) % (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    row = (group * GROUP + within % height) * ROWS + tl.arange(0, ROWS)
    column = (within // height) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # rows and columns beyond the matrix are read from its start and thrown away
    x_at = x + (row % B).to(tl.int64)[:, None] * D + depth[None, :]
    w_at = W + (column % N).to(tl.int64)[None, :] * D + depth[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, D, DEPTH):
        if D % DEPTH == 0:
            left, right = tl.load(x_at), tl.load(w_at)
        else:
            left = tl.load(x_at, mask=depth[None, :] < D - start, other=0.0)
            right = tl.load(w_at, mask=depth[:, None] < D - start, other=0.0)
        if WIDEN:
            # the interpreter cannot multiply bf16; widened, the products are the same numbers
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
        x_at += DEPTH
        w_at += DEPTH
    if BF16:
        total = total.to(tl.bfloat16).to(tl.float32)
    if BIAS:
        total += tl.load(b + column % N).to(tl.float32)[None, :]
        if BF16:
            total = total.to(tl.bfloat16).to(tl.float32)
    if SELECT:
        _emit(total, tl.load(cut), row, (within // height) * COLUMNS, keys, count, B, N, capacity, ROWS, COLUMNS)
    else:
        inside = (row[:, None] < B) & (column[None, :] < N)
        tl.store(pre + row[:, None].to(tl.int64) * N + column[None, :], total.to(pre.dtype.element_ty), mask=inside)


@triton.jit
def _emit(part, above, row, start, keys, count, B, N, capacity, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes the keys of what lies above the cut: one atomic takes room for all of them.

    By parts of few columns, since the places of a whole tile would not fit into the registers beside it.
    """
    if COLUMNS > 32:
        left, right = tl.split(tl.permute(tl.reshape(part, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        _emit(left, above, row, start, keys, count, B, N, capacity, ROWS, COLUMNS // 2)
        _emit(right, above, row, start + COLUMNS // 2, keys, count, B, N, capacity, ROWS, COLUMNS // 2)
    else:
        column = start + tl.arange(0, COLUMNS)
        chosen = (part > above) & (part > 0) & (row[:, None] < B) & (column[None, :] < N)
        here = chosen.to(tl.int32)
        per_row = tl.sum(here, 1)
        number = tl.sum(per_row, 0)
        if number > 0:
            place = tl.atomic_add(count, number) + (tl.cumsum(per_row, 0) - per_row)[:, None] + tl.cumsum(here, 1) - 1
            flat = row[:, None] * N + column[None, :]
            tl.store(keys + place, key_of(part, flat), mask=chosen & (place < capacity))
