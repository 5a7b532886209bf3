"""The entries a selection keeps: the sparse code of one batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """K kept entries of a [B, n] matrix, ordered by row and, within a row, by latent.

    rows, latents: int32 [K]; values: fp32 [K]; offsets: int32 [B + 1], where each row's entries begin.
    """

    rows: Tensor
    latents: Tensor
    values: Tensor
    offsets: Tensor
    n_latents: int

    @classmethod
    def from_flat(cls, flat: Tensor, values: Tensor, n_rows: int, n_latents: int) -> "Kept":
        """flat: ascending indices int64 [K] into the [B, n] matrix; values [K] in any float type."""
        rows = torch.div(flat, n_latents, rounding_mode="floor").to(torch.int32)
        latents = (flat - rows.long() * n_latents).to(torch.int32)
        starts = torch.arange(n_rows + 1, dtype=torch.int32, device=flat.device)
        return cls(rows, latents, values.float(), torch.searchsorted(rows, starts, out_int32=True), n_latents)

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    def with_values(self, values: Tensor) -> "Kept":
        """The same places with other values [K]."""
        return replace(self, values=values)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The [B, n] matrix, zero where nothing was kept."""
        out = torch.zeros(self.n_rows, self.n_latents, dtype=dtype, device=self.values.device)
        out[self.rows.long(), self.latents.long()] = self.values.to(dtype)
        return out

    def fired(self) -> Tensor:
        """Bool [n]: latents with at least one kept entry."""
        out = torch.zeros(self.n_latents, dtype=torch.bool, device=self.latents.device)
        out[self.latents.long()] = True
        return out

    def latent_sums(self, values: Tensor) -> Tensor:
        """Sum of values [K] per latent, fp32 [n], each latent's entries added in row order."""
        out = torch.zeros(self.n_latents, dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.latents.long(), values)
