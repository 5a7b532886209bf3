"""TopK per row: the `keep` largest positive entries of each row of a matrix, ties to the lower column.

One program per row finds the keep-th largest number bit by bit, from the top: the bits of numbers above zero are
ordered like integers, and what is not above zero counts as 0. After the first pass a row comes from the cache: 15
passes in bf16, 31 in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.kernels.kept import Kept

_BLOCK = 4096


def keep_rows(pre_BN: Tensor, keep: int) -> Tensor:
    """See reference.keep_rows. fp32 or bf16. Does not wait for the device."""
    pre = pre_BN.contiguous()
    B, n = pre.shape
    out = torch.empty_like(pre)
    if B and n:
        bits = 15 if pre.dtype == torch.bfloat16 else 31
        _keep_rows[(B,)](
            pre, out, n, min(keep, n), BITS=bits, BLOCK=min(_BLOCK, triton.next_power_of_2(n)), num_warps=8
        )
    return out


def select_rows(pre_BN: Tensor, keep: int) -> Kept:
    """See reference.select_rows. Waits for the device once, to learn how many are above zero."""
    kept = keep_rows(pre_BN, keep)
    return Kept.where(kept, kept > 0)


def take_columns(pre_BN: Tensor, columns: Tensor) -> Tensor:
    """See reference.take_columns."""
    return pre_BN.index_select(1, columns)


@triton.jit
def _bits(pre, columns, n):
    """The numbers of a row as integers of the same order, 0 for those that are not above zero."""
    value = tl.load(pre + columns, mask=columns < n, other=0.0).to(tl.float32)
    return tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def _keep_rows(pre, out, n, keep, BITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n
    within = tl.arange(0, BLOCK)
    # the largest limit that at least `keep` numbers reach; 0 where fewer are above zero
    limit = 0
    for step in range(BITS):
        higher = limit | (1 << (30 - step))
        reach = tl.zeros((BLOCK,), dtype=tl.int32)
        for start in range(0, n, BLOCK):
            reach += (_bits(pre + row, start + within, n) >= higher).to(tl.int32)
        limit = tl.where(tl.sum(reach, 0) >= keep, higher, limit)
    beyond = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, n, BLOCK):
        beyond += (_bits(pre + row, start + within, n) > limit).to(tl.int32)
    spare = keep - tl.sum(beyond, 0)
    for start in range(0, n, BLOCK):
        columns = start + within
        bits = _bits(pre + row, columns, n)
        tie = ((bits == limit) & (bits > 0)).to(tl.int32)
        chosen = (bits > limit) | ((tie > 0) & (tl.cumsum(tie, 0) <= spare))
        value = tl.load(pre + row + columns, mask=columns < n, other=0.0)
        tl.store(out + row + columns, tl.where(chosen, value, 0.0).to(out.dtype.element_ty), mask=columns < n)
        spare -= tl.sum(tie, 0)
