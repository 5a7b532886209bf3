"""The first tokens of a split, so that every SAE is judged on the same number of them."""

from collections.abc import Iterator

from torch import Tensor


class Head:
    """The first `limit` tokens of `split`, or all when it has fewer; itself a split."""

    def __init__(self, split, limit: int):
        self._split = split
        self.n_tokens = min(split.n_tokens, limit)
        self.tokens = split.tokens[: self.n_tokens]
        self.documents = split.documents[: self.n_tokens]
        self.positions = split.positions[: self.n_tokens]

    def rows(self, indices) -> Tensor:
        """indices below n_tokens -> [B, d]."""
        return self._split.rows(indices)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """[<=size, d] float32, in order."""
        left = self.n_tokens
        for block in self._split.blocks(size):
            if left <= 0:
                return
            yield block[:left]
            left -= len(block)
