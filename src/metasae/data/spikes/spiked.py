"""A split with spike-ins added to its activations. It is itself a split, so training and measures read it like any
other.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metasae.data.spikes.spikes import SpikeSet
from metasae.data.split import Split


class SpikedSplit:
    """x' = x + sum_j s_j g_j for the tokens of a split, float32.

    added: what spike-ins add to the mean of x (float64 [d]) and to the mean of ||x||^2, for splits that are trained on;
    None where the split's moments are not needed.
    """

    def __init__(self, split: Split, spikes: SpikeSet, added: tuple[Tensor, float] | None = None):
        self.split, self.spikes, self._added = split, spikes, added
        self.n_tokens, self.d = split.n_tokens, spikes.directions.shape[1]
        self.tokens, self.documents, self.positions = split.tokens, split.documents, split.positions

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        indices = torch.as_tensor(indices, dtype=torch.int64)
        places = indices.numpy()
        return self.spikes.add(self.split.rows(indices).float(), *(column[places] for column in self._columns))

    def blocks(self, size: int) -> Iterator[Tensor]:
        start = 0
        for block in self.split.blocks(size):
            stop = start + len(block)
            yield self.spikes.add(block, *(column[start:stop] for column in self._columns))
            start = stop

    def strengths(self):
        """s of all tokens: csr float32 [T, m]."""
        return self.spikes.strengths(*self._columns)

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        """As `refuse_bad` of the split below, as spike-ins themselves are finite."""
        self.split.refuse_bad(indices, block)

    @property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.tokens, self.documents, self.positions

    @cached_property
    def mean(self) -> Tensor:
        """float64 [d]."""
        return self.split.mean + self._added[0]

    @cached_property
    def mean_square(self) -> float:
        """Mean of ||x'||^2."""
        return self.split.mean_square + self._added[1]
