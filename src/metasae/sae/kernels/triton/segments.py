"""Weighted sums of table rows over segments of entries, and dot products of entries: the two shapes every sparse
product has.

    out[s]  = sum over entries e of segment s of weight[e] * table[index[e]]
    dots[e] = <left[s(e)], right[index[e]]>

A segment is a token when decoding, and a latent in the weight gradients.

Segments are cut into chunks of at most `CHUNK` entries, so that a latent that fires on every token, or a token that
fires every latent, is worked on by many programs. A segment of several chunks leaves one partial sum per chunk, added
in order by a second kernel. Which program adds what is fixed by the entries alone and no float is added by an atomic,
so results are equal from run to run. Sums are in fp32 whatever the tables' type. Nothing here waits for the device:
sizes are bounds known to the host.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries that one program adds up, and how many it has in flight at a time.
CHUNK = 128
_AT_ONCE = 8


@dataclass(frozen=True)
class Chunks:
    """How S segments of together K entries are cut. All int32, on the device.

    owner: [S + K // size], the segment of each chunk, S where there is no such chunk. count, end: [S], chunks of each
    segment and where they end. slot_end: [S], likewise among the chunks of segments that have several; slot_owner: the
    segment of each of those.
    """

    size: int
    offsets: Tensor
    owner: Tensor
    count: Tensor
    end: Tensor
    slot_owner: Tensor
    slot_end: Tensor


def chunks(offsets: Tensor, n_entries: int, size: int = CHUNK, least: int = -1) -> Chunks:
    """offsets int32 [S + 1] of `n_entries` entries in all. Segments of at most `least` entries get no chunk; others at
    least one.
    """
    lengths = offsets.diff()
    count = ((lengths + (size - 1)) // size).clamp_(min=1).mul_(lengths > least)
    several = count * (count > 1)
    end, slot_end = count.cumsum(0, dtype=torch.int32), several.cumsum(0, dtype=torch.int32)
    owner = _owners(end, lengths.numel() + n_entries // size)
    # a segment of several chunks has more than `size` entries, so it has at most twice their number over `size`
    return Chunks(size, offsets, owner, count, end, _owners(slot_end, 2 * n_entries // size), slot_end)


def segment_sums(
    cut: Chunks,
    index: Tensor,
    order: Tensor | None,
    weights: tuple[Tensor, ...],
    tables: tuple[Tensor, ...],
    outs: tuple[Tensor, ...],
) -> None:
    """Writes each sum into its `out` fp32 [S, d]; segments without a chunk are left as they are.

    index int32 [K]: the tables' row of each entry. order: where entry e of the segments is in `index` and `weights`;
    None: at e. weights: one or two, fp32 [K]; tables: as many, [.., d], row-major.
    """
    D, two = tables[0].shape[1], len(tables) == 2
    block = block_of(D)
    n_slots = cut.slot_owner.numel()
    partial = outs[0].new_empty(len(tables), n_slots, D)
    blocks = triton.cdiv(D, block)
    last = -1 if two else 0
    shared = {"D": D, "TWO": two, "BLOCK": block, "num_warps": max(1, min(8, block // 64))}
    _sum_chunks[(cut.owner.numel(), blocks)](
        outs[0], outs[last], partial[0], partial[last], tables[0], tables[last], weights[0], weights[last],
        index, index if order is None else order,
        cut.offsets, cut.owner, cut.count, cut.end, cut.slot_end, cut.count.numel(),
        ORDERED=order is None, CHUNK=cut.size, AT_ONCE=_AT_ONCE, **shared,
    )  # fmt: skip
    if n_slots:
        _add_partials[(n_slots, blocks)](
            outs[0],
            outs[last],
            partial[0],
            partial[last],
            cut.slot_owner,
            cut.count,
            cut.slot_end,
            cut.count.numel(),
            **shared,
        )


def segment_dots(cut: Chunks, index: Tensor, left: Tensor, right: Tensor, dots: Tensor) -> None:
    """Writes <left[s], right[index[e]]> into dots fp32 [K] for every entry of the segments that have chunks."""
    D = left.shape[1]
    block = block_of(D)
    _dot_chunks[(cut.owner.numel(),)](
        dots, left, right, index, cut.offsets, cut.owner, cut.count, cut.end, cut.count.numel(),
        D=D, CHUNK=cut.size, AT_ONCE=_AT_ONCE, BLOCK=block, num_warps=max(1, min(8, block // 64)),
    )  # fmt: skip


def block_of(width: int) -> int:
    """Columns that one program works on: a power of two from 64 to 512 that wastes few lanes on rows of this width."""
    return min((512, 256, 128, 64), key=lambda block: (-(-width // block) * block, -block))


def _owners(ends: Tensor, capacity: int) -> Tensor:
    """For each of `capacity` places the first segment that ends after it, int32."""
    return torch.searchsorted(
        ends, torch.arange(capacity, dtype=torch.int32, device=ends.device), right=True, out_int32=True
    )


@triton.jit
def _sum_chunks(
    out0, out1, partial0, partial1, table0, table1, weight0, weight1, index, order,
    offsets, owner, count, end, slot_end, S,
    D: tl.constexpr, TWO: tl.constexpr, ORDERED: tl.constexpr,
    CHUNK: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program adds up one chunk, BLOCK columns of it."""
    chunk = tl.program_id(0)
    segment = tl.load(owner + chunk)
    if segment >= S:
        return
    several = tl.load(count + segment)
    number = chunk - (tl.load(end + segment) - several)
    start = tl.load(offsets + segment) + number * CHUNK
    stop = tl.minimum(start + CHUNK, tl.load(offsets + segment + 1))
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    sum0 = tl.zeros((AT_ONCE, BLOCK), dtype=tl.float32)
    sum1 = tl.zeros((AT_ONCE, BLOCK), dtype=tl.float32)
    for first in range(start, stop, AT_ONCE):
        entry = first + tl.arange(0, AT_ONCE)
        there = entry < stop
        place = entry if ORDERED else tl.load(order + entry, mask=there, other=0)
        row = tl.load(index + place, mask=there, other=0).to(tl.int64)
        where = row[:, None] * D + columns[None, :]
        wanted = there[:, None] & inside[None, :]
        w0 = tl.load(weight0 + place, mask=there, other=0.0)
        sum0 += w0[:, None] * tl.load(table0 + where, mask=wanted, other=0.0).to(tl.float32)
        if TWO:
            w1 = tl.load(weight1 + place, mask=there, other=0.0)
            sum1 += w1[:, None] * tl.load(table1 + where, mask=wanted, other=0.0).to(tl.float32)
    if several == 1:
        target = segment.to(tl.int64) * D + columns
        tl.store(out0 + target, tl.sum(sum0, 0), mask=inside)
        if TWO:
            tl.store(out1 + target, tl.sum(sum1, 0), mask=inside)
    else:
        slot = (tl.load(slot_end + segment) - several + number).to(tl.int64) * D + columns
        tl.store(partial0 + slot, tl.sum(sum0, 0), mask=inside)
        if TWO:
            tl.store(partial1 + slot, tl.sum(sum1, 0), mask=inside)


@triton.jit
def _add_partials(
    out0,
    out1,
    partial0,
    partial1,
    slot_owner,
    count,
    slot_end,
    S,
    D: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The program of a segment's first slot adds its partial sums in order; the programs of other slots have nothing to
    do.
    """
    slot = tl.program_id(0)
    segment = tl.load(slot_owner + slot)
    if segment >= S:
        return
    stop = tl.load(slot_end + segment)
    if slot != stop - tl.load(count + segment):
        return
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    sum0 = tl.zeros((BLOCK,), dtype=tl.float32)
    sum1 = tl.zeros((BLOCK,), dtype=tl.float32)
    where = slot.to(tl.int64) * D + columns
    for _ in range(slot, stop):
        sum0 += tl.load(partial0 + where, mask=inside, other=0.0)
        if TWO:
            sum1 += tl.load(partial1 + where, mask=inside, other=0.0)
        where += D
    target = segment.to(tl.int64) * D + columns
    tl.store(out0 + target, sum0, mask=inside)
    if TWO:
        tl.store(out1 + target, sum1, mask=inside)


@triton.jit
def _dot_chunks(
    dots, left, right, index, offsets, owner, count, end, S,
    D: tl.constexpr, CHUNK: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program takes the entries of one chunk, AT_ONCE at a time."""
    chunk = tl.program_id(0)
    segment = tl.load(owner + chunk)
    if segment >= S:
        return
    start = tl.load(offsets + segment) + (chunk - (tl.load(end + segment) - tl.load(count + segment))) * CHUNK
    stop = tl.minimum(start + CHUNK, tl.load(offsets + segment + 1))
    for first in range(start, stop, AT_ONCE):
        entry = first + tl.arange(0, AT_ONCE)
        there = entry < stop
        row = tl.load(index + entry, mask=there, other=0).to(tl.int64)
        total = tl.zeros((AT_ONCE, BLOCK), dtype=tl.float32)
        for column in range(0, D, BLOCK):
            columns = column + tl.arange(0, BLOCK)
            inside = columns < D
            here = tl.load(left + segment.to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
            there_too = tl.load(
                right + row[:, None] * D + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            total += here[None, :] * there_too.to(tl.float32)
        tl.store(dots + entry, tl.sum(total, 1), mask=there)
