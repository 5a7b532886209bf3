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
        return cls(rows, latents, values.float(), _offsets(rows, n_rows), n_latents)

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
        some = self.subset(places)
        return replace(some, latents=some.latents - start, n_latents=end - start), places

    def subset(self, chosen: Tensor) -> "Kept":
        """Some of the entries: bool [K], or ascending indices int64 [K']."""
        rows = self.rows[chosen]
        return Kept(rows, self.latents[chosen], self.values[chosen], _offsets(rows, self.n_rows), self.n_latents)

    def counts(self) -> Tensor:
        """Rows in which each latent is above zero, fp32 [n]."""
        # sums of ones are exact in any order
        return torch.zeros(self.n_latents, device=self.values.device).index_add_(
            0, self.latents, (self.values > 0).float()
        )

    def fired(self) -> Tensor:
        """Bool [n]: latents with at least one entry above zero."""
        return self.counts() > 0

    def l0(self) -> Tensor:
        """Entries above zero per row, on average, 0-dim."""
        return (self.values > 0).sum() / self.n_rows

    def latent_sums(self, values: Tensor) -> Tensor:
        """Sum of values [K] per latent, fp32 [n], each latent's entries added in an order that is always the same."""
        if values.device.type != "cpu":
            # on a GPU index_add_ adds in whatever order it comes to
            return _segment_sums(self.latents, values, self.n_latents)
        out = torch.zeros(self.n_latents, dtype=values.dtype, device=values.device)
        return out.index_add_(0, self.latents.long(), values)


def _offsets(rows: Tensor, n_rows: int) -> Tensor:
    """Where each row's entries begin: int32 [n_rows + 1], from ascending row numbers int32 [K]."""
    starts = torch.arange(n_rows + 1, dtype=torch.int32, device=rows.device)
    return torch.searchsorted(rows, starts, out_int32=True)


def _segment_sums(latents: Tensor, values: Tensor, n_latents: int) -> Tensor:
    """Sums of values [K] per latent [n], the same to the bit from run to run."""
    latents, order = torch.sort(latents, stable=True)
    starts = torch.arange(n_latents + 1, dtype=latents.dtype, device=latents.device)
    return torch.segment_reduce(values[order], "sum", offsets=torch.searchsorted(latents, starts), initial=0)
