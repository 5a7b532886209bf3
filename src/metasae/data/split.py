"""Tokens with their activations, from any source, as training, calibration and measures read them."""

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from metasae.ranks.ranks import Ranks, stretch_of


class Split(Protocol):
    """T tokens.

    tokens (vocabulary ids), documents (numbers in the source), positions (in the document, from 0): int32 [T].
    """

    n_tokens: int
    tokens: np.ndarray
    documents: np.ndarray
    positions: np.ndarray

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        """indices int [B], in any order, repeats allowed -> activations [B, d] in the split's own dtype."""

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Consecutive blocks [<=size, d] float32, in order."""


class Part:
    """Tokens start <= t < stop of a split, itself a split."""

    def __init__(self, split: Split, start: int, stop: int):
        self.split, self.start = split, start
        self.n_tokens = max(0, min(stop, split.n_tokens) - start)
        stop = start + self.n_tokens
        self.tokens, self.documents, self.positions = (
            np.asarray(column)[start:stop] for column in (split.tokens, split.documents, split.positions)
        )

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        return self.split.rows(torch.as_tensor(indices, dtype=torch.int64) + self.start)

    def blocks(self, size: int) -> Iterator[Tensor]:
        for first in range(0, self.n_tokens, size):
            yield self.rows(torch.arange(first, min(first + size, self.n_tokens))).float()

    @property
    def d(self) -> int:
        return self.split.d

    @property
    def mean(self) -> Tensor:
        """float64 [d]."""
        return self._totals[0] / max(self.n_tokens, 1)

    @property
    def mean_square(self) -> float:
        """Mean of ||x||^2."""
        return float(self._totals[1]) / max(self.n_tokens, 1)

    @cached_property
    def _totals(self) -> tuple[Tensor, Tensor]:
        """Sum of x float64 [d], sum of ||x||^2."""
        total, square = torch.zeros(self.d, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for block in self.blocks(4096):
            total, square = total + block.double().sum(0), square + block.double().square().sum()
        return total, square

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        """Raises UserError where the split that this is a part of can name the place of a NaN or inf in block [B, d].

        indices: int [B], the block's tokens in this part.
        """
        self.split.refuse_bad(indices + self.start, block)


class Chosen:
    """Some tokens of a split, in order, themselves a split. kept: int64 [T], their rows in `whole`, rising."""

    def __init__(self, whole: Split, kept: np.ndarray):
        self.whole, self.kept = whole, kept
        self.n_tokens, self.d = len(kept), whole.d
        self.tokens, self.documents, self.positions = (
            np.asarray(column)[kept] for column in (whole.tokens, whole.documents, whole.positions)
        )

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        return self.whole.rows(torch.from_numpy(self.kept)[torch.as_tensor(indices, dtype=torch.int64)])

    def blocks(self, size: int) -> Iterator[Tensor]:
        """As `Split.blocks`. Raises UserError for a NaN or inf."""
        for first in range(0, self.n_tokens, size):
            indices = np.arange(first, min(first + size, self.n_tokens))
            block = self.rows(indices).float()
            if not torch.isfinite(block.sum()):
                self.refuse_bad(indices, block)
            yield block

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        self.whole.refuse_bad(self.kept[indices], block)

    @cached_property
    def mean(self) -> Tensor:
        """float64 [d]."""
        return (self.whole.mean * self.whole.n_tokens - self._others[0]) / max(self.n_tokens, 1)

    @cached_property
    def mean_square(self) -> float:
        """Mean of ||x||^2."""
        return (self.whole.mean_square * self.whole.n_tokens - float(self._others[1])) / max(self.n_tokens, 1)

    @cached_property
    def _others(self) -> tuple[Tensor, Tensor]:
        """(sum of x float64 [d], sum of ||x||^2) over the tokens left out. These are few, and the sums over all tokens
        are known.
        """
        left_out = np.setdiff1d(np.arange(self.whole.n_tokens), self.kept)
        total, square = torch.zeros(self.d, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for indices in np.array_split(left_out, -(-len(left_out) // 4096)) if len(left_out) else ():
            rows = self.whole.rows(indices).double()
            total, square = total + rows.sum(0), square + rows.square().sum()
        return total, square


class Rows:
    """The rows of a matrix [T, d] as a split: own activations, or decoder rows.

    columns: tokens, documents and positions, int [T] each; without them each row is a document of its own.
    """

    def __init__(self, x_TD: Tensor, columns: tuple[np.ndarray, ...] | None = None):
        self.x = x_TD.detach()
        self.n_tokens, self.d = self.x.shape
        self.tokens, self.documents, self.positions = columns or (np.arange(self.n_tokens, dtype=np.int32),) * 3

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        return self.x[torch.as_tensor(indices, dtype=torch.int64)]

    def blocks(self, size: int) -> Iterator[Tensor]:
        return iter(self.x.float().split(size) if self.n_tokens else ())

    @cached_property
    def mean(self) -> Tensor:
        """float64 [d]."""
        return self.x.double().mean(0)

    @cached_property
    def mean_square(self) -> float:
        """Mean of ||x||^2."""
        return float(self.x.double().square().sum(1).mean())


def head(split: Split, limit: int) -> Part:
    """The first `limit` tokens, or all where there are fewer, so that every SAE is judged on the same ones."""
    return Part(split, 0, limit)


def in_text(split: Split) -> tuple[Split, np.ndarray | None]:
    """(the stretch of text that a split's tokens stand in, bool [T]: which of its tokens are the split's own).

    The second is None where all of them are. The stretches of consecutive parts follow each other without a gap.
    """
    start, stop, inner = 0, split.n_tokens, split
    while isinstance(inner, Part):
        start, stop, inner = start + inner.start, stop + inner.start, inner.split
    if not isinstance(inner, Chosen):
        return split, None
    rows = inner.kept[start:stop]
    first, last = (int(inner.kept[number - 1]) + 1 if number else 0 for number in (start, stop))
    own = np.zeros(last - first, bool)
    own[rows - first] = True
    return Part(inner.whole, first, last), own


def own_part(split: Split, batch: int, ranks: Ranks) -> Split:
    """This rank's tokens: whole batches, shared out evenly. With one rank it is the split itself."""
    return split if ranks.size == 1 else Part(split, *stretch_of(split.n_tokens, batch, ranks))
