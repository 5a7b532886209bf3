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
        rows = torch.div(flat, n_latents, rounding_mode="floor")
        latents = torch.sub(flat, rows, alpha=n_latents).to(torch.int32)
        rows = rows.to(torch.int32)
        starts = torch.arange(n_rows + 1, dtype=torch.int32, device=flat.device)
        return cls(rows, latents, values.float(), torch.searchsorted(rows, starts, out_int32=True), n_latents)

    @classmethod
    def where(cls, pre_BN: Tensor, mask_BN: Tensor) -> "Kept":
        """The entries of pre [B, n] where the mask is true."""
        flat = mask_BN.flatten().nonzero().squeeze(1)
        return cls.from_flat(flat, pre_BN.flatten()[flat], *pre_BN.shape)

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

    def between(self, start: int, end: int) -> tuple["Kept", Tensor]:
        """The entries of latents start <= j < end, renumbered from 0, and where they are among all: int64 [K']."""
        places = ((self.latents >= start) & (self.latents < end)).nonzero().squeeze(1)
        rows = self.rows[places]
        starts = torch.arange(self.n_rows + 1, dtype=torch.int32, device=rows.device)
        offsets = torch.searchsorted(rows, starts, out_int32=True)
        return Kept(rows, self.latents[places] - start, self.values[places], offsets, end - start), places

    def fired(self) -> Tensor:
        """Bool [n]: latents with at least one entry above zero."""
        return self.latent_sums((self.values > 0).float()) > 0

    def l0(self) -> Tensor:
        """Entries above zero per row, on average, 0-dim."""
        return (self.values > 0).sum() / self.n_rows

    def latent_sums(self, values: Tensor) -> Tensor:
        """Sum of values [K] per latent, fp32 [n], each latent's entries added in row order."""
        out = torch.zeros(self.n_latents, dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.latents.long(), values)
