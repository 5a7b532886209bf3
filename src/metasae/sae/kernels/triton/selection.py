"""Exact BatchTopK from candidates: entries above a cut, gathered without order, of which the `keep` largest are kept.

A candidate is one integer, so that a plain integer top-k settles everything, ties too (to the lower flat index):

    key = bits of the value, as an integer  *  2^32   +   2^31 - 1 - flat index            values > 0, indices < 2^31

The kernels that find candidates count all of them and write as many as the buffer holds. The result is exact if at
least `keep` were found and all were written; otherwise the cut is lowered, or the buffer made larger, and the search is
repeated. Integers alone are added by atomics and the keys are sorted afterwards, so results are equal from run to run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasae.sae.kernels.fast import sampled_cut
from metasae.sae.kernels.kept import Kept

# The next cut relative to this batch's smallest kept value: closer than on a CPU, since what is found is sorted. A
# Gaussian tail at three deviations has 1.3 times as many entries above it.
CUT_MARGIN = 0.97
# Room for candidates beyond those that are kept, as a share of them.
SPARE = 0.6
# How far the cut is lowered when too few are found: this share of it, then twice as much, and so on down to 0.
_LOWER = 0.1
_BLOCK = 4096


@dataclass(frozen=True)
class Proposal:
    """What one search found; nothing of it was waited for.

    n_above: candidates above the cut, int32 [1]; capacity: how many of them there was room for. kept: the `keep`
    largest; it is BatchTopK's answer where `n_above` lies between keep and capacity, which the host must look at
    before anything built on it is kept. cut: the warm cut of the next search, fp32 0-dim.
    """

    kept: Kept
    n_above: Tensor
    capacity: int
    cut: Tensor


# writes the keys of candidates above a cut: (keys int64 [capacity], count int32 [1], cut fp32 [1]) -> None
Search = Callable[[Tensor, Tensor, Tensor], None]


def select(pre_BN: Tensor, keep: int, cut: float = 0.0) -> tuple[Kept, float]:
    """See reference.select. Waits for the device once, to learn that the search was enough (twice without a warm
    cut).
    """
    pre = pre_BN.contiguous()
    cut = cut if 0 < cut < math.inf else sampled_cut(pre.view(-1), keep)
    return settle(lambda keys, count, above: _search(pre, keys, count, above), pre.shape, keep, cut, pre.device)


def propose(search: Search, shape: tuple[int, int], keep: int, cut: Tensor, capacity: int) -> Proposal:
    """Searches once for entries above `cut` (fp32 [1], on the device) and keeps the largest, without waiting for the
    device.
    """
    B, n = shape
    if B * n >= 1 << 31:
        raise ValueError(f"{B} x {n} entries are more than 2^31 - 1; take a smaller batch")
    keys = torch.zeros(capacity, dtype=torch.int64, device=cut.device)
    n_above = torch.zeros(1, dtype=torch.int32, device=cut.device)
    search(keys, n_above, cut)
    top = torch.topk(keys, keep, sorted=False).values
    # the same two numbers with the index in front: sorting puts the entries in row order, and what was never written
    # last
    top = torch.sort(((0x7FFFFFFF - (top & 0x7FFFFFFF)) << 31) | (top >> 32)).values
    values = (top & 0x7FFFFFFF).to(torch.int32).view(torch.float32)
    # a place that was never written stands for the last entry, at value 0, so that nothing reads beyond a matrix
    flat = (top >> 31).clamp_(max=B * n - 1)
    return Proposal(Kept.from_flat(flat, values, B, n), n_above, capacity, values.min() * CUT_MARGIN)


def settle(search: Search, shape: tuple[int, int], keep: int, cut: float, device: torch.device) -> tuple[Kept, float]:
    """Searches until the result is exact: (the kept entries, the warm cut of the next search). Waits for the device
    once per search.
    """
    keep = min(keep, shape[0] * shape[1])
    capacity, lower = keep + math.ceil(keep * SPARE), _LOWER
    while True:
        proposal = propose(search, shape, keep, torch.full((1,), cut, dtype=torch.float32, device=device), capacity)
        n_above, next_cut = torch.stack([proposal.n_above[0].double(), proposal.cut.double()]).tolist()
        n_above = int(n_above)
        if n_above > capacity:
            capacity = n_above
        elif n_above >= keep:
            return proposal.kept, next_cut
        elif cut == 0:
            return _first(proposal.kept, n_above)
        else:
            cut, lower = cut * max(0.0, 1 - lower), 2 * lower


def _first(kept: Kept, count: int) -> tuple[Kept, float]:
    """Fewer entries are above zero than were asked for: the others are places never written."""
    rows, latents, values = kept.rows[:count], kept.latents[:count], kept.values[:count]
    low = float(values.min()) if count else 0.0
    return Kept(rows, latents, values, kept.offsets.clamp(max=count), kept.n_latents), low * CUT_MARGIN


def _search(pre_BN: Tensor, keys: Tensor, count: Tensor, cut: Tensor) -> None:
    size = pre_BN.numel()
    _gather[(triton.cdiv(size, _BLOCK),)](pre_BN, keys, count, cut, size, keys.numel(), BLOCK=_BLOCK, num_warps=8)


@triton.jit
def key_of(value, flat):
    """See the module's docstring. value: fp32 > 0; flat: int32."""
    return (value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0x7FFFFFFF - flat).to(tl.int64)


@triton.jit
def _gather(pre, keys, count, cut, size, capacity, BLOCK: tl.constexpr):
    within = tl.arange(0, BLOCK)
    flat = tl.program_id(0) * BLOCK + within
    # the last block's indices may pass 2^31 - 1, so it asks how far it is from the end
    value = tl.load(pre + flat, mask=within < size - tl.program_id(0) * BLOCK, other=0.0).to(tl.float32)
    chosen = (value > tl.load(cut)) & (value > 0)
    number = tl.sum(chosen.to(tl.int32), 0)
    if number > 0:
        place = tl.atomic_add(count, number) + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(keys + place, key_of(value, flat), mask=chosen & (place < capacity))
