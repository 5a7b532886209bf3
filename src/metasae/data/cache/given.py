"""Activations that a user gives (`metasae.train`) instead of those that a harvest reads from a model.

FOLDER/index.json, all-00000.safetensors, ...   an activation cache (`metasae.data.cache.cache`) of one split, `all`

The rows stay in their order. The first eight tenths are for training, the next tenth for calibration, the last for
evaluation; each part begins with a document, so that no document lies in two.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metasae.data.cache.cache import DTYPES, FORMAT, INDEX, SHARDS, STATISTICS, StoredSplit, read_index
from metasae.data.cache.cache_writer import ShardWriter
from metasae.data.split import Part
from metasae.errors import UserError
from metasae.files import read_tensors, write_json, write_tensors
from metasae.progress.progress import SILENT, Progress

ALL = "all"
# Where calibration and evaluation begin, as shares of all rows.
CUTS = (0.8, 0.9)
# Where the user names no documents: the most rows of one document, and the least number of documents.
MOST_ROWS, LEAST_BLOCKS = 128, 200
_BATCH_ROWS = 8192
_SHARD_ROWS = 262_144
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class GivenRows:
    """Activations as a stream of checked blocks, from a tensor or from batches.

    x: a tensor or array [T, d] or [..., d], or an iterable of such batches (a DataLoader, a generator); of a batch that
    is a tuple or list the first entry counts. d: width. total: rows, None where the number is known only after reading.
    sequences: rows of one sequence, of a tensor [S, L, d].
    """

    def __init__(self, x: Any):
        whole = isinstance(x, (Tensor, np.ndarray))
        blocks = iter([x]) if whole else iter(x) if isinstance(x, Iterable) else None
        if blocks is None or isinstance(x, (str, bytes, dict)):
            raise UserError(f"x must be a tensor [T, d] or an iterable of such batches, not {type(x).__name__}")
        first = next(blocks, None)
        if first is None:
            raise UserError("x gives no batch; a generator that was read before is empty, so make a new one")
        first = as_tensor(first)
        self.d, self.dtype = first.shape[-1], first.dtype if first.dtype in _NAMES else torch.float32
        self.total = first.numel() // self.d if whole else None
        self.sequences = first.shape[-2] if whole and first.ndim > 2 else None
        self._blocks = chain([first], blocks)

    def blocks(self, most: int) -> Iterator[Tensor]:
        """Consecutive rows [b, d] in the dtype that is kept, `most` in all at most.

        Raises UserError for another width and for a NaN or inf, with the row.
        """
        done = 0
        for given in self._blocks:
            rows = as_tensor(given)
            if rows.shape[-1] != self.d:
                raise UserError(f"row {done:,} of x has the width {rows.shape[-1]}, those before it {self.d}")
            for block in rows.reshape(-1, self.d)[: most - done].split(_BATCH_ROWS):
                block = block.detach().cpu().to(self.dtype)
                refuse_not_finite(block, done)
                done += len(block)
                yield block
            if done >= most:
                return


def as_tensor(given: Any) -> Tensor:
    """A batch as a tensor [..., d] of floating-point numbers. Raises UserError for anything else."""
    given = given[0] if isinstance(given, (tuple, list)) and len(given) else given
    x = torch.as_tensor(given) if isinstance(given, np.ndarray) else given
    if not isinstance(x, Tensor):
        raise UserError(f"x must give tensors [batch, d], not {type(given).__name__}")
    if not x.is_floating_point():
        raise UserError(f"x holds {str(x.dtype).removeprefix('torch.')} numbers; give floating-point activations")
    if x.ndim < 2 or not x.numel():
        raise UserError(f"x must have the shape [T, d] or [..., d], not {list(x.shape)}")
    return x


def refuse_not_finite(block: Tensor, before: int = 0) -> None:
    """Raises UserError for a NaN or inf in block [b, d]. before: rows that came before it."""
    if not torch.isfinite(block.sum(dtype=torch.float32)):
        bad = torch.nonzero(~torch.isfinite(block))
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(f"x[{row + before}, {column}] is NaN or inf; leave such rows out")


def keep(
    x: GivenRows, folder: Path, documents: Any = None, most: int | None = None, progress: Progress = SILENT
) -> None:
    """Writes the first `most` rows into `folder`; where they are there already, it only compares them.

    documents: int [T], which document each row is of, the rows of one side by side; None: each sequence of a tensor
    [S, L, d], else each of at least 200 blocks of at most 128 rows.
    Raises UserError for rows that `GivenRows` refuses, documents that do not fit, too few rows, and a folder that holds
    other rows.
    """
    before = read_index(folder) if (folder / INDEX).is_file() else None
    most = most if x.total is None else min(x.total, most or x.total)
    writer = ShardWriter(folder, ALL, x.d, x.dtype, _SHARD_ROWS, most or 1 << 62)
    if before is None:
        _clear(folder)
    state, n_rows = hashlib.blake2b(digest_size=16), 0
    with progress.task("reading activations", most, "rows") as task:
        for block in x.blocks(most or 1 << 62):
            state.update(block.contiguous().view(torch.uint8).numpy().data)
            if before is None:
                writer.write(n_rows, block)
            n_rows += len(block)
            task.advance(len(block))
    documents = documents_of(x, documents, n_rows)
    state.update(f"{x.d} {_NAMES[x.dtype]}".encode())
    state.update(documents.tobytes())
    if before is not None:
        if before["fingerprint"] != state.hexdigest():
            raise UserError(f"{folder} holds other activations; choose another out= or delete the folder")
        return
    cuts = _cuts(documents)
    columns = {"tokens": np.arange(n_rows), "documents": documents, "positions": positions_of(documents)}
    writer.write_columns(0, {name: np.ascontiguousarray(column, np.int32) for name, column in columns.items()})
    record, tables = writer.finish(n_rows)
    write_tensors(folder / STATISTICS, tables)
    identity = {"dtype": _NAMES[x.dtype], "text": {"source": "activations given in Python"}}
    index = {"format": FORMAT, "fingerprint": state.hexdigest(), "identity": identity, "d": x.d, "cuts": cuts}
    write_json(folder / INDEX, index | {"splits": {ALL: record}})


class GivenCache:
    """The interface of `ActivationCache` over a folder that `keep` wrote.

    tokens: the most rows of each split that are shown. Raises UserError for a folder without them.
    """

    def __init__(self, folder: str | Path, tokens: dict[str, int]):
        self.folder, self.tokens = Path(folder), tokens
        if not (self.folder / INDEX).is_file():
            raise UserError(f"no activations in {self.folder}; `metasae.train` in Python writes them there")
        self.index = index = read_index(self.folder)
        self.d, self.fingerprint, self.text = index["d"], index["fingerprint"], index["identity"]["text"]["source"]
        tables = read_tensors(self.folder / STATISTICS)
        self._whole = StoredSplit(self.folder, index, tables, ALL)
        begin, end = index["cuts"]
        self.parts = {"train": (0, begin), "calibration": (begin, end), "evaluation": (end, self._whole.n_tokens)}

    def split(self, name: str) -> Part:
        """`train`, `calibration` or `evaluation`."""
        start, stop = self.parts[name]
        return Part(self._whole, start, min(stop, start + self.tokens.get(name, stop)))


def documents_of(x: GivenRows, documents: Any, n_rows: int) -> np.ndarray:
    """The document of each row, numbered in their order: int32 [T]."""
    if documents is None:
        block = x.sequences or max(1, min(MOST_ROWS, n_rows // LEAST_BLOCKS))
        return (np.arange(n_rows) // block).astype(np.int32)
    given = documents.cpu().numpy() if isinstance(documents, Tensor) else np.asarray(documents)
    given = given.reshape(-1)
    if len(given) < n_rows or (x.total is not None and len(given) != x.total):
        raise UserError(f"documents has {len(given):,} entries, but x has {x.total or n_rows:,} rows")
    given = given[:n_rows]
    begins = _begins(given)
    if begins.sum() != len(np.unique(given)):
        firsts = np.flatnonzero(begins)
        _, where = np.unique(given[firsts], return_index=True)
        row = int(np.setdiff1d(firsts, firsts[where])[0])
        raise UserError(
            f"document {given[row]} occurs again in row {row:,}; sort x and documents so that the rows of each "
            "document are side by side"
        )
    return (np.cumsum(begins) - 1).astype(np.int32)


def positions_of(documents: np.ndarray) -> np.ndarray:
    """The place of each row in its document, from 0: int32 [T]."""
    rows = np.arange(len(documents))
    return (rows - np.maximum.accumulate(np.where(_begins(documents), rows, 0))).astype(np.int32)


def _begins(documents: np.ndarray) -> np.ndarray:
    """Bool [T]: where a document begins."""
    return np.append(True, documents[1:] != documents[:-1])


def _cuts(documents: np.ndarray) -> list[int]:
    """The rows where calibration and evaluation begin, each where a document does."""
    starts = np.flatnonzero(_begins(documents))[1:]
    if len(starts) < 2:
        raise UserError(
            f"x has {len(documents):,} rows in {len(starts) + 1} documents; training, calibration and evaluation need "
            "one each, so give at least 3"
        )
    calibration, evaluation = (int(np.abs(starts - share * len(documents)).argmin()) for share in CUTS)
    if calibration == evaluation:
        calibration, evaluation = (calibration - 1, evaluation) if calibration else (0, 1)
    return [int(starts[calibration]), int(starts[evaluation])]


def _clear(folder: Path) -> None:
    """Removes what an earlier call that did not end left in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob(SHARDS), folder / STATISTICS]:
        stale.unlink(missing_ok=True)
