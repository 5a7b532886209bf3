"""The fast kernels: a warm cut before the exact selection, and products that touch only kept entries.

On a CPU each product is one call of a fast torch kernel. embedding_bag sums weighted rows of a table in segments
(decoding, and both weight gradients once the entries are sorted by latent); sampled_addmm computes only the kept
entries of a matrix product. No tensor of size [B, k, d] is built.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from metasae.sae.kernels import reference
from metasae.sae.kernels.kept import Kept

# torch warns on every sparse tensor; setting the filter around each product would not be thread-safe
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

# The next cut relative to this batch's smallest kept value: low enough that the next batch rarely keeps fewer
# above it, high enough that few entries above it are not kept.
CUT_MARGIN = 0.95
# Numbers of a matrix that numpy processes at a time: they fit into a core's cache.
_PART = 1 << 17


def encode(x_BD: Tensor, W_enc_ND: Tensor, b_enc_N: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.encode."""
    x, W = x_BD.to(dtype), W_enc_ND.to(dtype).t()
    return torch.mm(x, W) if b_enc_N is None else torch.addmm(b_enc_N.to(dtype), x, W)


def select(pre_BN: Tensor, keep: int, cut: float = 0.0) -> tuple[Kept, float]:
    """See reference.select. Only entries above the cut are searched; if they are too few, the cut is lowered."""
    flat = pre_BN.view(-1)
    cut = cut if 0 < cut < math.inf else sampled_cut(flat, keep)
    choose = _choose_on_cpu if flat.device.type == "cpu" else _choose
    while True:
        places, values, enough = choose(flat, keep, cut)
        if enough or cut == 0:
            break
        cut = cut * 0.5 if cut > 1e-6 else 0.0
    low = float(values.min()) if values.numel() else 0.0
    return Kept.from_flat(places, values, *pre_BN.shape), low * CUT_MARGIN


def select_rows(pre_BN: Tensor, keep: int) -> Kept:
    """See reference.select_rows."""
    kept = keep_rows(pre_BN, keep)
    return Kept.where(kept, kept > 0)


def keep_rows(pre_BN: Tensor, keep: int) -> Tensor:
    """See reference.keep_rows. On a CPU it partitions each row, in half the time of torch's topk."""
    B, n = pre_BN.shape
    if pre_BN.device.type != "cpu" or not 0 < keep < n or n > 1 << 16:
        return reference.keep_rows(pre_BN, keep)
    bits = _bits(pre_BN)
    out, step = np.empty_like(bits), max(1, _PART // n)
    for start in range(0, B, step):
        # numbers at or below zero, whose bits are a negative integer or 0, become 0
        some = np.maximum(bits[start : start + step], 0)
        np.multiply(some, _largest_of_rows(some, keep), out=out[start : start + step])
    return torch.from_numpy(out).view(pre_BN.dtype)


def _largest_of_rows(bits: np.ndarray, keep: int) -> np.ndarray:
    """bits [b, n] >= 0 -> bool [b, n]: the `keep` largest of each row, ties to the lower column; any number of zeros
    more.
    """
    n = bits.shape[1]
    if bits.dtype == np.int16:
        # bf16 numbers are often equal; with the column as further bits all keys differ
        keys = (bits.astype(np.int32) << 16) | np.arange(n - 1, -1, -1, dtype=np.int32)
        return keys >= np.partition(keys, n - keep, axis=1)[:, n - keep, None]
    limit = np.partition(bits, n - keep, axis=1)[:, n - keep, None]
    chosen = bits >= limit
    spare = np.count_nonzero(chosen, axis=1) - keep
    for row in np.flatnonzero((spare > 0) & (limit[:, 0] > 0)):
        chosen[row, np.flatnonzero(bits[row] == limit[row])[-spare[row] :]] = False
    return chosen


def take_columns(pre_BN: Tensor, columns: Tensor) -> Tensor:
    """See reference.take_columns."""
    if pre_BN.device.type != "cpu":
        return reference.take_columns(pre_BN, columns)
    # numpy takes columns three times faster than torch
    taken = np.take(_bits(pre_BN), columns.numpy(), axis=1)
    return torch.from_numpy(taken).view(pre_BN.dtype)


def decode(kept: Kept, W_dec_ND: Tensor) -> Tensor:
    """See reference.decode."""
    return embedding_bag(
        kept.latents, W_dec_ND, kept.offsets, mode="sum", per_sample_weights=kept.values, include_last_offset=True
    )


def entry_dots(kept: Kept, left_BD: Tensor, right_ND: Tensor) -> Tensor:
    """See reference.entry_dots."""
    zeros, shape = torch.zeros_like(kept.values), (kept.n_rows, kept.n_latents)
    places = torch.sparse_csr_tensor(kept.offsets, kept.latents, zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(places, left_BD, right_ND.t(), beta=0.0).values()


def latent_rows(kept: Kept, weights: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """See reference.latent_rows. The entries are sorted by latent once; then each sum is one pass over its segments."""
    order, offsets = _by_latent(kept)
    rows = kept.rows[order]
    return tuple(
        embedding_bag(rows, source, offsets, mode="sum", per_sample_weights=weight[order], include_last_offset=True)
        for weight, source in zip(weights, sources, strict=True)
    )


def _choose(flat: Tensor, keep: int, cut: float) -> tuple[Tensor, Tensor, bool]:
    """Of the entries above `cut` >= 0 the `keep` largest, ties to the lower index: (ascending indices, values, were
    there enough).
    """
    places = (flat > cut).nonzero().squeeze(1)
    values = flat[places]
    if places.numel() <= keep:
        return places, values, places.numel() == keep
    limit = torch.kthvalue(values.float(), values.numel() - keep + 1).values.to(values.dtype)
    chosen = values > limit
    ties = (values == limit).nonzero().squeeze(1)
    chosen[ties[: keep - int(chosen.sum())]] = True
    return places[chosen], values[chosen], True


def _choose_on_cpu(flat: Tensor, keep: int, cut: float) -> tuple[Tensor, Tensor, bool]:
    """`_choose` in numpy, whose comparison, flatnonzero and partition take a third of the time of torch's on a CPU."""
    places, values = _above_on_cpu(flat, cut)
    enough = places.size >= keep
    if places.size > keep:
        limit = np.partition(values, places.size - keep)[places.size - keep]
        chosen = values > limit
        chosen[np.flatnonzero(values == limit)[: keep - np.count_nonzero(chosen)]] = True
        places, values = places[chosen], values[chosen]
    return torch.from_numpy(places), torch.from_numpy(values).view(flat.dtype), enough


def above(flat: Tensor, cut: float) -> tuple[Tensor, Tensor]:
    """Ascending indices int64 [K] and values [K] of the entries above `cut` >= 0, in bf16 above the cut rounded towards
    zero.
    """
    if flat.device.type != "cpu":
        places = (flat > cut).nonzero().squeeze(1)
        return places, flat[places]
    places, values = _above_on_cpu(flat, cut)
    return torch.from_numpy(places), torch.from_numpy(values).view(flat.dtype)


def _above_on_cpu(flat: Tensor, cut: float) -> tuple[np.ndarray, np.ndarray]:
    """`above` in numpy; bf16 numbers as integers of the same bits."""
    if flat.dtype == torch.bfloat16:
        # numpy knows no bf16, but the patterns of numbers >= 0 are ordered like integers.
        # The cut is rounded to bf16, towards zero, so nothing above it is lost.
        numbers, least = flat.view(torch.int16).numpy(), int(np.float32(cut).view(np.uint32)) >> 16
    else:
        numbers, least = flat.numpy(), cut
    places = np.flatnonzero(np.greater(numbers, numbers.dtype.type(least)))
    return places, numbers[places]


def sampled_cut(flat: Tensor, keep: int, size: int = 1 << 16) -> float:
    """A first cut from a strided sample of the batch, low enough to be likely below the true threshold."""
    sample = flat[:: max(1, flat.numel() // size)].float()
    rank = min(sample.numel(), max(1, round(sample.numel() * keep / flat.numel() * 1.2)))
    cut = float(torch.topk(sample, rank).values[-1]) * 0.9
    return cut if 0 < cut < math.inf else 0.0


def _bits(numbers: Tensor) -> np.ndarray:
    """fp32 or bf16 numbers as integers of the same bits; at and above zero these are ordered alike. numpy knows no
    bf16.
    """
    return numbers.view(torch.int16 if numbers.dtype == torch.bfloat16 else torch.int32).numpy()


def _by_latent(kept: Kept) -> tuple[Tensor, Tensor]:
    """(stable order of the entries by latent int64 [K], segment offsets int32 [n + 1])."""
    if kept.latents.device.type == "cpu" and kept.n_latents <= 1 << 16:
        # 16-bit keys take numpy's radix sort, several times faster than a comparison sort
        order = torch.from_numpy(np.argsort(kept.latents.numpy().astype(np.uint16), kind="stable"))
    else:
        order = torch.sort(kept.latents, stable=True).indices
    counts = torch.bincount(kept.latents, minlength=kept.n_latents)
    offsets = torch.zeros(kept.n_latents + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return order, offsets
