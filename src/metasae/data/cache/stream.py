"""Shuffled batches of a split with a cursor: the same seed gives every arm the same batches, from any position.

On several ranks each reads its share of the rows from the cache and then receives the others, as reading rows at random
is the main cost of a batch. The rows travel in the cache's own type (bf16: 2 bytes a number), and are widened and
scaled on arrival, which gives the same numbers as with one process, to the bit.
"""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from metasae.data.split import Split
from metasae.ranks.ranks import ALONE, Ranks, spans_of

Item = TypeVar("Item")
_END = object()


class Prefetch(AbstractContextManager, Iterator[Item]):
    """Iterates over `source` in a background thread, with `depth` items ready or in the making.

    An exception of the source is raised where its item would have come. `close` stops the thread and waits for it.
    """

    def __init__(self, source: Iterable[Item], depth: int = 2):
        self._source, self._thread = iter(source), ThreadPoolExecutor(1, "metasae-prefetch")
        self._ready = deque(self._thread.submit(next, self._source, _END) for _ in range(depth))
        # also where nobody closes it, as a thread that is killed inside torch can crash the interpreter
        self._end = weakref.finalize(self, self._thread.shutdown, wait=True, cancel_futures=True)

    def __next__(self) -> Item:
        if not self._ready:
            raise StopIteration
        item = self._ready.popleft().result()
        if item is _END:
            self.close()
            raise StopIteration
        self._ready.append(self._thread.submit(next, self._source, _END))
        return item

    def close(self) -> None:
        self._ready.clear()
        self._end()

    def __exit__(self, *_) -> None:
        self.close()


class Stream(AbstractContextManager):
    """Endless batches. Every epoch is a fresh permutation of all the split's tokens; a batch may span two epochs, so
    none is dropped.

    `position`: the number of the next batch, counted from `first`, which is that of the stream's first batch. ahead:
    the next batches are prepared in a background thread, which `close` (or a with block) stops. That pays off when
    training runs on another device. On the CPU the two compete for the cores, and a measured step took 10 ms longer.
    ranks: each reads its own rows of a batch, and all receive the whole batch on `device`, the same as one rank alone
    would read.
    """

    def __init__(
        self,
        split: Split,
        batch: int,
        seed: int,
        scale: float = 1.0,
        ahead: bool = False,
        first: int = 0,
        ranks: Ranks = ALONE,
        device: torch.device | str = "cpu",
    ):
        self.split, self.batch, self.seed, self.scale, self.ahead = split, batch, seed, scale, ahead
        self.first, self.position, self.ranks, self.device = first, first, ranks, device
        self._spans = spans_of(batch, ranks)
        self._source: Iterator[Tensor] | None = None

    def next(self) -> Tensor:
        """The next batch, float32 [B, d], in the model's units times `scale`. Raises UserError for a NaN or inf."""
        shared = self.ranks.size > 1
        if self._source is None:
            indices = indices_of(self.split.n_tokens, self.batch, self.seed, self.position - self.first)
            rows = _rows(self.split, indices, self._spans[self.ranks.rank], None if shared else self.scale)
            self._source = Prefetch(rows, depth=3) if self.ahead else rows
        x_BD = next(self._source)
        self.position += 1
        return _scaled(self.ranks.gather_rows(x_BD.to(self.device), self._spans), self.scale) if shared else x_BD

    def seek(self, position: int) -> None:
        """Continues with batch number `position`."""
        self.close()
        self.position = position

    def close(self) -> None:
        """Stops the background thread; `next` starts it again where it was."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __exit__(self, *_) -> None:
        self.close()


def _rows(split: Split, indices: Iterator[Tensor], own: range, scale: float | None) -> Iterator[Tensor]:
    """The rows [b, d] of each batch at the places `own`: float32 times `scale`, or in the split's dtype where `scale`
    is None.
    """
    for index_B in indices:
        index_b = index_B[own.start : own.stop]
        x_bD = split.rows(index_b)
        # a sum is finite only when every term is, and costs one pass instead of three
        if not torch.isfinite(x_bD.sum(dtype=torch.float32)):
            split.refuse_bad(index_b.numpy(), x_bD)
        yield x_bD if scale is None else _scaled(x_bD, scale)


def _scaled(x_BD: Tensor, scale: float) -> Tensor:
    return x_BD.float().mul_(scale) if scale != 1.0 else x_BD.float()


def indices_of(n_tokens: int, batch: int, seed: int, position: int) -> Iterator[Tensor]:
    """Token numbers int64 [B] of batch `position` and all that follow; every epoch's order has its own generator."""
    first_epoch, offset = divmod(position * batch, n_tokens)
    dtype = torch.int32 if n_tokens < 2**31 else torch.int64
    pieces, missing = [], batch
    for epoch in count(first_epoch):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(n_tokens, generator=generator, dtype=dtype)
        while offset < n_tokens:
            piece = order[offset : offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            offset += len(piece)
            if not missing:
                yield torch.cat(pieces).long()
                pieces, missing = [], batch
        offset = 0
