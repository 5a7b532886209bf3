"""Blocks of documents: the units over which text is resampled, as tokens of one document are not independent."""

import numpy as np

BLOCKS = 8


def document_blocks(documents: np.ndarray, count: int = BLOCKS) -> np.ndarray:
    """documents: int [T], each document's tokens in one stretch -> block of each token, int8 [T], rising.

    Blocks are consecutive documents with about the same number of tokens; a document is never cut. With fewer documents than
    `count` there are fewer blocks, numbered without gaps. Raises ValueError when count is below 1 or above 127.
    """
    if not 1 <= count <= 127:
        raise ValueError(f"count must lie between 1 and 127, not {count}")
    documents = np.asarray(documents)
    if not len(documents):
        return np.zeros(0, np.int8)
    starts = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]]))
    sizes = np.diff(np.append(starts, len(documents)))
    # a document belongs to the block in which its middle token falls
    wanted = ((starts + sizes / 2) * count / len(documents)).astype(np.int64)
    _, block = np.unique(wanted, return_inverse=True)
    return np.repeat(block, sizes).astype(np.int8)
