"""The step of an SAE whose latents or rows are spread over ranks: which sums and selections run over all ranks.

A rank with some of the latents (the primary SAE) has whole rows of x and its own columns of pre [B, n]:

    xh   = b_dec + sum over ranks of z_r W_dec_r            one all-reduce of B d numbers for each nested prefix;
                                                            then every rank has the residual
    dW_r = gradients by its own latents                     these need the residual only
    db   = sum_b G_b - sum over ranks of dpre_r W_enc_r     d numbers

A rank with some of the rows (a meta SAE on the decoder rows that the rank holds) has all m latents for them:

    gradients = sum over ranks                              one all-reduce of all of them, 2 m d numbers

In both, the entries that fire are the same as on one process: the largest of all ranks' entries, ties to the lower
index.
"""

from types import ModuleType

import torch
from torch import Tensor

from metasae.ranks.ranks import Ranks, own_latents
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import Whole
from metasae.sae.weights import Weights
from metasae.train.sharded import threshold


class LatentsSpread(Whole):
    """Each rank has some of the `total` latents, and all rows."""

    def __init__(self, ranks: Ranks, total: int):
        self.ranks, self.total = ranks, total

    def latents(self, here: int) -> range:
        return own_latents(self.total, self.ranks.size, self.ranks.rank)

    def n_latents(self, here: int) -> int:
        return self.total

    def over_latents(self, part: Tensor) -> Tensor:
        if part.dim() == 2:
            return self.ranks.sum_(part.contiguous())
        # a few numbers: summed in float64, so that the order of the ranks does not change the result
        return self.ranks.sum_(part.double().contiguous()).to(part.dtype)

    def all_latents(self, part: Tensor) -> Tensor:
        lengths = [int(length) for length in self.ranks.numbers(len(part))]
        return self.ranks.gather_rows(part, [range(length) for length in lengths]) if any(lengths) else part


class RowsSpread(Whole):
    """Each rank has some of the `total` rows, and all latents."""

    def __init__(self, ranks: Ranks, total: int):
        self.ranks, self.total = ranks, total

    def rows(self, here: int) -> int:
        return self.total

    def row_mean(self, part_BD: Tensor) -> Tensor:
        summed = self.ranks.sum_(part_BD.sum(dtype=torch.float64).reshape(1))[0]
        return (summed / (self.total * part_BD.shape[1])).to(part_BD.dtype)

    def over_rows(self, part: Tensor) -> Tensor:
        return self.ranks.sum_(part.contiguous())

    def gradients(self, part: Weights) -> Weights:
        tensors = part.tensors()
        # one message for all of them
        flat = self.ranks.sum_(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]))
        pieces = flat.split([tensor.numel() for tensor in tensors.values()])
        return Weights(
            **{name: piece.view_as(tensor) for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)}
        )


class _Kernels:
    """A kernel module whose selections run over all ranks; its other functions are the module's own.

    total: latents, or rows, of all ranks.
    """

    def __init__(self, module: ModuleType, ranks: Ranks, total: int):
        self.module, self.ranks, self.total = module, ranks, total

    def __getattr__(self, name: str):
        return getattr(self.module, name)


class LatentKernels(_Kernels):
    """For pre [B, n_r] of the latents of this rank, of which there are `total` in all."""

    def select(self, pre_BN: Tensor, keep: int, cut: float = 0.0) -> tuple[Kept, float]:
        entries = pre_BN.shape[0] * self.total
        return threshold.select(pre_BN, keep, cut, self.ranks, entries, rows_spread=False)

    def select_rows(self, pre_BN: Tensor, keep: int) -> Kept:
        kept = self.keep_rows(pre_BN, keep)
        return Kept.where(kept, kept > 0)

    def keep_rows(self, pre_BN: Tensor, keep: int) -> Tensor:
        """The `keep` largest positive entries of each row over all ranks, ties to the lower latent; zero elsewhere.

        Each rank sends its own largest entries to all ranks. The order of ranks is that of latents.
        """
        B, n = pre_BN.shape
        widths = [int(width) for width in self.ranks.numbers(n)]
        if keep >= sum(widths):
            return torch.where(pre_BN > 0, pre_BN, 0)
        width = min(keep, max(widths))
        own = self.module.select_rows(pre_BN, keep)
        rows, latents, values = own.rows.long(), own.latents.long(), own.values.to(pre_BN.dtype)
        place = torch.arange(len(rows), device=rows.device) - own.offsets.long()[rows]
        named = pre_BN.new_zeros(B, width)
        named[rows, place] = values
        every = self.ranks.gather(named).transpose(0, 1).reshape(B, -1)
        largest = torch.sort(every, dim=1, descending=True, stable=True).indices[:, :keep]
        chosen = torch.zeros_like(every, dtype=torch.bool).scatter_(1, largest, True)[
            rows, self.ranks.rank * width + place
        ]
        out = torch.zeros_like(pre_BN)
        out[rows[chosen], latents[chosen]] = values[chosen]
        return out


class RowKernels(_Kernels):
    """For pre [n_r, m] of the rows of this rank, of which there are `total` in all."""

    def select(self, pre_BN: Tensor, keep: int, cut: float = 0.0) -> tuple[Kept, float]:
        # `keep` is k times the rows that are here
        keep = keep // pre_BN.shape[0] * self.total
        entries = self.total * pre_BN.shape[1]
        return threshold.select(pre_BN, keep, cut, self.ranks, entries, rows_spread=True)
