"""Blocks of documents: the units over which text is resampled, as tokens of one document are not independent."""

from collections.abc import Iterator

import numpy as np

BLOCKS = 8
# Tokens first to last - 1, as (first, last).
Span = tuple[int, int]


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where each stretch of equal values begins, int64. values: [T]."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changes)


def document_blocks(documents: np.ndarray, count: int = BLOCKS) -> np.ndarray:
    """documents: int [T], each document's tokens in one stretch -> block of each token, int8 [T], rising.

    Blocks are consecutive documents with about the same number of tokens; a document is never cut. With fewer documents
    than `count`, at most 127, there are fewer blocks, numbered without gaps.
    """
    documents = np.asarray(documents)
    starts = run_starts(documents)
    sizes = np.diff(np.append(starts, len(documents)))
    # a document belongs to the block in which its middle token falls
    wanted = ((starts + sizes / 2) * count / max(len(documents), 1)).astype(np.int64)
    _, block = np.unique(wanted, return_inverse=True)
    return np.repeat(block, sizes).astype(np.int8)


def block_spans(blocks: np.ndarray) -> list[Span]:
    """blocks: int [T], rising, as `document_blocks` gives them -> the tokens of each block."""
    starts = run_starts(blocks).tolist()
    return list(zip(starts, [*starts[1:], len(blocks)], strict=False))


def chunks(indptr: np.ndarray, span: Span, size: int) -> Iterator[Span]:
    """Stretches of the rows in `span` with at most `size` entries each, but at least one row.

    indptr: [rows + 1], of a CSR matrix.
    """
    first, end = span
    while first < end:
        full = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(full, first + 1), end)
        yield first, last
        first = last
