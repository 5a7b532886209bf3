"""Exact BatchTopK over ranks: the k*B largest entries of a matrix of which each rank holds a part.

Positive floats have the same order as their bits read as integers, so the threshold is found digit by digit. The ranks
add up a histogram of their entries' bits, take the bin in which the threshold lies, and repeat this within the bin
until it holds one number. Starting from the last batch's threshold, an fp32 number takes two histograms of 4096 bins,
and a bf16 number one.

Ties go to the lower (row, latent), as on one process. Where more entries equal the threshold than are wanted, the ranks
exchange how many each has: for every row where each rank holds some of the latents, in total where each holds some of
the rows.
"""

import math

import torch
from torch import Tensor

from metasae.ranks.ranks import Ranks
from metasae.sae.kernels import fast
from metasae.sae.kernels.kept import Kept

BINS = 1 << 12
_DIGIT = 12
# A cut below this is set to 0 rather than lowered further.
_LEAST_CUT = 1e-6


def select(pre_BN: Tensor, keep: int, cut: float, ranks: Ranks, total: int, rows_spread: bool) -> tuple[Kept, float]:
    """See reference.select; `keep` counts entries of all ranks, the result is this rank's. cut: the same on all ranks.

    total: entries of the whole matrix. rows_spread: each rank holds some of the rows, in the order of ranks; otherwise
    some of the latents.
    """
    flat = pre_BN.reshape(-1)
    if not 0 < cut < math.inf:
        # the number of a rank's entries if they were spread evenly; it is a hint and need not be right
        here = max(1, min(flat.numel(), round(keep / ranks.size)))
        cut = min(ranks.numbers(fast.sampled_cut(flat, here) if flat.numel() else 0.0))
    count_type = torch.int32 if total < 2**31 else torch.int64
    while True:
        places, values = fast.above(flat, cut)
        keys = bits_of(values)
        threshold = global_threshold(keys, cut, keep, ranks, flat.dtype, count_type)
        if threshold is not None or cut == 0:
            break
        cut = cut * 0.5 if cut > _LEAST_CUT else 0.0
    if threshold is None:
        return Kept.from_flat(places, values, *pre_BN.shape), 0.0
    bits, spare, n_ties = threshold
    chosen = keys > bits
    ties = (keys == bits).nonzero().squeeze(1)
    if spare < n_ties:
        row = places[ties] * 0 if rows_spread else torch.div(places[ties], pre_BN.shape[1], rounding_mode="floor")
        ties = ties[_allowed(row, 1 if rows_spread else pre_BN.shape[0], spare, ranks)]
    chosen[ties] = True
    kept = Kept.from_flat(places[chosen], values[chosen], *pre_BN.shape)
    return kept, fast.CUT_MARGIN * _number_of(bits, flat.dtype)


def global_threshold(
    keys: Tensor,
    cut: float,
    keep: int,
    ranks: Ranks,
    dtype: torch.dtype,
    count_type: torch.dtype = torch.int64,
) -> tuple[int, int, int] | None:
    """The keep-th largest of all ranks' keys (bits of numbers above `cut`), or None where there are fewer. With it: how
    many entries equal to it are wanted, and how many there are on all ranks.

    Bins start at the cut and are fine where the threshold of the next batch lies: within four times the cut.
    count_type: one that holds the number of all keys.
    """
    low, shift = int(bits_of(torch.tensor([cut], dtype=dtype))), 0 if dtype == torch.bfloat16 else _DIGIT
    if cut == 0:
        shift = 4 if dtype == torch.bfloat16 else 20
    above, n_bins = 0, BINS
    while True:
        # one further bin holds all that lies beyond the last
        bins = torch.bitwise_right_shift(keys - low, shift).clamp_(max=n_bins)
        counts = ranks.sum_(torch.bincount(bins, minlength=n_bins + 1).to(count_type))
        # at_least[j]: entries in bin j or beyond
        at_least = counts.flip(0).cumsum(0).flip(0) + above
        if int(at_least[0]) < keep:
            return None
        place = int((at_least >= keep).sum()) - 1
        if place == n_bins:
            keys = keys[bins == n_bins]
            low, shift = low + (n_bins << shift), shift + _DIGIT // 2
            continue
        above = int(at_least[place + 1])
        if shift == 0:
            return low + place, keep - above, int(counts[place])
        keys = keys[bins == place]
        low, finer = low + (place << shift), max(0, shift - _DIGIT)
        n_bins, shift = 1 << (shift - finer), finer


def bits_of(values: Tensor) -> Tensor:
    """Numbers at or above zero, fp32 or bf16 -> integers of the same order, int32."""
    return values.view(torch.int16).int() if values.dtype == torch.bfloat16 else values.view(torch.int32)


def _number_of(bits: int, dtype: torch.dtype) -> float:
    return float(torch.tensor([bits], dtype=torch.int16 if dtype == torch.bfloat16 else torch.int32).view(dtype))


def _allowed(group: Tensor, n_groups: int, spare: int, ranks: Ranks) -> Tensor:
    """Which of this rank's ties are kept: bool [t]. group: ascending int64 [t]; ties are ordered by group, then by
    rank.
    """
    own = torch.bincount(group, minlength=n_groups).int()
    counts = ranks.gather(own).t().reshape(-1)
    before = (counts.cumsum(0) - counts).view(n_groups, ranks.size)[:, ranks.rank]
    first = torch.cumsum(own, 0) - own
    place = torch.arange(len(group), device=group.device) - first[group]
    return before[group] + place < spare
