"""The tokens of a split as rows of one length, as other tools hold text: token t stands at (row[t], column[t]).

    within documents   each document is cut into rows of L from its first token on; its last row is padded on the right
    packed             one document after another without a gap, t = row L + column; only the last row is padded

Special tokens that stood round the model's windows are not in a firing store, so they are not in the rows either, and a
row may hold tokens of two of the model's windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from metasae.errors import UserError

# Tokens of rows that are in memory at once.
BLOCK = 1 << 20


@dataclass(frozen=True)
class TokenGrid:
    """row, column: int32 [T], rows rising. n_rows: R. length: L."""

    row: np.ndarray
    column: np.ndarray
    n_rows: int
    length: int

    def blocks(self, values: np.ndarray, fill: int) -> Iterator[np.ndarray]:
        """values int [T] in rows, int64 [<= b, L] at a time, `fill` where there is no token."""
        size = max(1, BLOCK // self.length)
        for first in range(0, self.n_rows, size):
            last = min(first + size, self.n_rows)
            start, end = self.tokens_of(first, last)
            block = np.full((last - first, self.length), fill, np.int64)
            block[self.row[start:end] - first, self.column[start:end]] = values[start:end]
            yield block

    def tokens_of(self, first: int, last: int) -> tuple[int, int]:
        """The tokens [start, end) of the split that stand in the rows [first, last)."""
        # in the array's own dtype, as numpy would copy all of it to a wider one
        start, end = np.searchsorted(self.row, np.array([first, last], self.row.dtype))
        return int(start), int(end)


def grid_of(documents: np.ndarray, positions: np.ndarray, length: int, pack: bool = False) -> TokenGrid:
    """documents, positions: int32 [T], as in `Firings`.

    A gap in the positions ends a row as the end of a document does.
    """
    n_tokens = len(documents)
    number = np.arange(n_tokens, dtype=np.int32)
    if pack or not n_tokens:
        return TokenGrid(number // length, number % length, -(-n_tokens // length), length)
    starts = np.concatenate([[0], np.flatnonzero((np.diff(documents) != 0) | (np.diff(positions) != 1)) + 1])
    sizes = np.diff(np.append(starts, n_tokens))
    rows = -(-sizes // length)
    before = np.cumsum(rows) - rows
    within = number - np.repeat(starts, sizes).astype(np.int32)
    row = np.repeat(before, sizes).astype(np.int32) + within // length
    return TokenGrid(row, within % length, int(rows.sum()), length)


def row_length(metadata: dict, wanted: int | None) -> int:
    """As wanted, or the context the SAE was trained with. Raises UserError where neither is a length."""
    length = metadata.get("context_size") if wanted is None else wanted
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length < 1 << 16:
        raise UserError(f"rows need a length from 1 to 65,535 tokens, not {str(length)[:20]}; give context=128")
    return length
