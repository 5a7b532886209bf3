"""Sums over the entries of each latent: both weight gradients of a latent's rows from one pass over its (token, value)
list.

    dL/dW_dec_j = sum_b z_bj G_b          dL/dW_enc_j = sum_b dL/dz_bj (x_b - b_dec)

The entries are sorted by latent once (a stable radix sort), so every sum has one order, that of the tokens. Nothing
waits for the device.
"""

import torch
from torch import Tensor

from metasae.sae.kernels.kept import Kept
from metasae.sae.kernels.triton.segments import chunks, segment_sums


def latent_rows(kept: Kept, weights: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """See reference.latent_rows. Sources in fp32 or bf16; sums in fp32. Pairs of sources share one pass over the
    entries.
    """
    order, offsets = by_latent(kept)
    cut = chunks(offsets, kept.values.numel())
    sources = tuple(source.contiguous() for source in sources)
    outs = tuple(torch.empty(kept.n_latents, source.shape[1], device=source.device) for source in sources)
    widths = {source.shape[1] for source in sources}
    step = 2 if len(widths) == 1 else 1
    for first in range(0, len(sources), step):
        some = slice(first, first + step)
        segment_sums(cut, kept.rows, order, weights[some], sources[some], outs[some])
    return outs


def by_latent(kept: Kept) -> tuple[Tensor, Tensor]:
    """(stable order of the entries by latent int64 [K], where each latent's entries begin in it int32 [n + 1])."""
    # a radix sort of half the bits takes half the passes
    keys = kept.latents.to(torch.int16) if kept.n_latents <= 1 << 15 else kept.latents
    latents, order = torch.sort(keys, stable=True)
    starts = torch.arange(kept.n_latents + 1, dtype=torch.int32, device=latents.device)
    return order, torch.searchsorted(latents.to(torch.int32), starts, out_int32=True)
