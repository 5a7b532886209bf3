"""Tokens with their activations: what training, calibration and measures read, wherever it comes from."""

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


def own_part(split: Split, batch: int, ranks: Ranks) -> Split:
    """This rank's tokens: whole batches, shared out evenly; of one rank the split itself."""
    return split if ranks.size == 1 else Part(split, *stretch_of(split.n_tokens, batch, ranks))
