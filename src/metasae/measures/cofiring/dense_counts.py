"""The counts of `counts.py` by dense products, for a GPU: 0/1 matrices in half precision, 2,048 tokens at a time.

Half precision holds every whole number up to 2,048, so the product of such a block is exact however the device adds, and the
blocks are added in float64, exact up to 2^53. The result is the same to the bit as that of `CoFirings`. A block costs
2 x 2,048 x rows x l operations, which tensor cores do quickly and a CPU does not.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from metasae.measures.cofiring.counts import CHUNK, Span, check_pair, chunks, ranks_of
from metasae.measures.firing.firings import Firings

BLOCK = 2048


class DenseCoFirings:
    """Twin of `CoFirings`, with the same arguments, results and errors. Memory on the device: the tile in float64 and one block."""

    def __init__(
        self,
        firings: Firings,
        latents: np.ndarray,
        other: Firings | None = None,
        other_latents: np.ndarray | None = None,
        chunk: int = CHUNK,
        device: torch.device | str = "cuda",
    ):
        check_pair(firings, latents, other, other_latents)
        self._firings, self._other, self._chunk, self._device = firings, other, chunk, torch.device(device)
        self._ranks, self._n = self._to_device(ranks_of(latents, firings.n_latents)), len(latents)
        if other is not None:
            self._other_ranks, self._n_other = (
                self._to_device(ranks_of(other_latents, other.n_latents)),
                len(other_latents),
            )

    def tile(self, start: int, rows: int, span: Span | None = None) -> np.ndarray:
        """N11 int64 [rows, l - start], as `CoFirings.tile`."""
        rows = min(rows, self._n - start)
        total = self._nothing(rows, self._n - start)
        for first, last in chunks(self._firings, span, self._chunk):
            for on in self._blocks(self._firings, first, last, self._ranks, start, self._n):
                total += on[:, :rows].T @ on
        return _whole(total)

    def cross(self, start: int, rows: int, span: Span | None = None) -> np.ndarray:
        """N11 int64 [rows, l_other], as `CoFirings.cross`."""
        if self._other is None:
            raise ValueError("counts across SAEs need the firings of a second SAE")
        rows = min(rows, self._n - start)
        total = self._nothing(rows, self._n_other)
        for first, last in chunks(self._firings, span, self._chunk):
            left = self._blocks(self._firings, first, last, self._ranks, start, start + rows)
            right = self._blocks(self._other, first, last, self._other_ranks, 0, self._n_other)
            for on, other_on in zip(left, right, strict=True):
                total += on.T @ other_on
        return _whole(total)

    def _blocks(self, firings: Firings, first: int, last: int, ranks: Tensor, low: int, high: int) -> Iterator[Tensor]:
        """The 0/1 matrices [t <= 2048, high - low] of tokens first to last - 1, for the latents of rank low to high - 1."""
        offsets = firings.indptr[first : last + 1]
        columns = ranks[self._to_device(firings.indices[offsets[0] : offsets[-1]]).long()]
        tokens = torch.repeat_interleave(
            torch.arange(last - first, device=self._device), self._to_device(np.diff(offsets))
        )
        kept = (columns >= low) & (columns < high)
        tokens, columns = tokens[kept], columns[kept].long() - low
        edges = torch.arange(0, last - first + BLOCK, BLOCK, device=self._device)
        places = torch.searchsorted(tokens, edges).tolist()
        for block, (begin, end) in enumerate(pairwise(places)):
            size = min(BLOCK, last - first - block * BLOCK)
            on = torch.zeros(size, high - low, dtype=torch.float16, device=self._device)
            on[tokens[begin:end] - block * BLOCK, columns[begin:end]] = 1
            yield on

    def _nothing(self, rows: int, columns: int) -> Tensor:
        return torch.zeros(rows, columns, dtype=torch.float64, device=self._device)

    def _to_device(self, array: np.ndarray) -> Tensor:
        # a copy, as torch does not take read-only memory
        return torch.from_numpy(np.array(array)).to(self._device)


def _whole(total: Tensor) -> np.ndarray:
    return total.cpu().numpy().astype(np.int64)
