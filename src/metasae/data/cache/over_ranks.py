"""The batch on several ranks: each reads its share of the rows from the cache, and all are told all of them.

Reading at random is what a batch costs the processor and the disk, so it is shared; the rows travel in the cache's own type (bf16:
2 bytes a number), and are widened and scaled on arrival, which gives the same numbers as with one process, to the bit.
"""

import numpy as np
import torch
from torch import Tensor

from metasae.data.cache.cache import Split
from metasae.data.cache.stream import Stream
from metasae.ranks.ranks import Ranks, spans_of


class OwnRows:
    """A split of which `rows` gives this rank's share of the rows asked for."""

    def __init__(self, split: Split, ranks: Ranks):
        self.split, self.ranks = split, ranks

    def __getattr__(self, name: str):
        return getattr(self.split, name)

    def rows(self, indices: Tensor) -> Tensor:
        return self.split.rows(self._own(indices))

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        self.split.refuse_bad(self._own(indices), block)

    def _own(self, indices):
        share = spans_of(len(indices), self.ranks)[self.ranks.rank]
        return indices[share.start : share.stop]


class GatheredBatches:
    """What a `Stream` of the same arguments gives, on every rank."""

    def __init__(self, split: Split, batch: int, seed: int, scale: float, ranks: Ranks, device: torch.device):
        self.ranks, self.scale, self.device = ranks, scale, device
        self.spans, self.dtype = spans_of(batch, ranks), split.rows(torch.zeros(1, dtype=torch.int64)).dtype
        self.stream = Stream(OwnRows(split, ranks), batch, seed, ahead=device.type != "cpu")

    def next(self) -> Tensor:
        own = self.stream.next().to(self.device, self.dtype)
        x_BD = self.ranks.gather_rows(own, self.spans).float()
        return x_BD.mul_(self.scale) if self.scale != 1.0 else x_BD

    def seek(self, position: int) -> None:
        self.stream.seek(position)

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> "GatheredBatches":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def batches_of(
    split: Split, batch: int, seed: int, scale: float, ranks: Ranks, device: torch.device
) -> Stream | GatheredBatches:
    """The batches of a run on these ranks; with one rank the ordinary stream."""
    if ranks.size == 1:
        return Stream(split, batch, seed, scale, ahead=device.type != "cpu")
    return GatheredBatches(split, batch, seed, scale, ranks, device)
