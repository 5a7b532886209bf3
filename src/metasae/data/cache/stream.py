"""Shuffled batches of a split with a cursor: the same seed gives every arm the same batches, from any position."""

from collections.abc import Iterator

import torch
from torch import Tensor

from metasae.data.cache.cache import Split
from metasae.data.cache.prefetch import Prefetch
from metasae.errors import UserError


class Stream:
    """Endless batches. Every epoch is a fresh permutation of all the split's tokens; a batch may span two epochs, so none is dropped.

    `position`: batches given so far. `ahead`: the next batches are prepared in a background thread, which `close` (or a with
    block) stops. That pays when training runs on another device; on the CPU the two would take each other's cores, and a step
    measured 10 ms longer.
    """

    def __init__(self, split: Split, batch: int, seed: int, scale: float = 1.0, ahead: bool = False):
        if batch < 1:
            raise ValueError(f"a batch has at least one token, not {batch}")
        if split.n_tokens < 1:
            raise UserError(f"the split '{split.name}' of {split.folder} is empty; harvest more text")
        self.split, self.batch, self.seed, self.scale = split, batch, seed, scale
        self.position = 0
        self.ahead = ahead
        self._source: Iterator[Tensor] | None = None

    def next(self) -> Tensor:
        """The next batch, float32 [B, d], in the model's units times `scale`. Raises UserError for a NaN or inf."""
        if self._source is None:
            batches = _batches(self.split, self.batch, self.seed, self.scale, self.position)
            self._source = Prefetch(batches, depth=2) if self.ahead else batches
        x_BD = next(self._source)
        self.position += 1
        return x_BD

    def seek(self, position: int) -> None:
        """Goes on as if `position` batches had been given."""
        if position < 0:
            raise ValueError(f"no position {position}")
        self.close()
        self.position = position

    def close(self) -> None:
        """Stops the background thread; `next` starts it again where it was."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _batches(split: Split, batch: int, seed: int, scale: float, position: int) -> Iterator[Tensor]:
    indices = _indices(split.n_tokens, batch, seed, position)
    for index_B in indices:
        x_BD = split.rows(index_B).float()
        # a sum is finite only when every term is, and costs one pass instead of three
        if not torch.isfinite(x_BD.sum()):
            split.refuse_bad(index_B.numpy(), x_BD)
        yield x_BD.mul_(scale) if scale != 1.0 else x_BD


def _indices(n_tokens: int, batch: int, seed: int, position: int) -> Iterator[Tensor]:
    """Token numbers int64 [B] of batch `position` and all that follow."""
    epoch, offset = divmod(position * batch, n_tokens)
    order = permutation(n_tokens, seed, epoch)
    while True:
        pieces, missing = [], batch
        while missing:
            piece = order[offset : offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            offset += len(piece)
            if offset == n_tokens:
                epoch, offset = epoch + 1, 0
                order = permutation(n_tokens, seed, epoch)
        yield torch.cat(pieces).long()


def permutation(n_tokens: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch, int [T], from a generator of its own."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    dtype = torch.int32 if n_tokens < 2**31 else torch.int64
    return torch.randperm(n_tokens, generator=generator, dtype=dtype)
