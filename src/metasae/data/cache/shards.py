"""Writing one split of the activation cache: every row goes straight to its place in a shard, so that none waits in memory.

A shard is a safetensors file: the length of the header in 8 bytes, the header (JSON: name -> dtype, shape and place of each
tensor), the tensors (https://github.com/huggingface/safetensors#format). Its size is known before its rows are.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from metasae.data.cache.cache import COLUMNS, checksum, sums
from metasae.errors import UserError
from metasae.files import write_tensors
from metasae.ranks.ranks import ALONE, Ranks
from metasae.ranks.sharing import RankPool

MAX_SHARD_BYTES = 256 << 20
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class ShardWriter:
    """Row i of a split lies in shard i // capacity. Rows may come in any order and more than once; the last writing counts.

    expected: rows of the split at most. `entries`: file, tokens, bytes and checksum of each closed shard; `statistics` of the same.
    ranks: those that write into the folder. The first lays shards out, with the columns of their rows; then all write rows, and only
    when all have written is a shard closed, by one of them. `close` and `finish` are called by all.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        d: int,
        dtype: torch.dtype,
        shard_tokens: int,
        expected: int,
        ranks: Ranks = ALONE,
    ):
        self.folder, self.split, self.d, self.dtype, self.expected, self.ranks = (
            folder,
            split,
            d,
            dtype,
            expected,
            ranks,
        )
        self.capacity = max(min(shard_tokens, MAX_SHARD_BYTES // (d * dtype.itemsize), expected), 1)
        self.entries: list[dict] = []
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._changed: set[Path] = set()
        self._layouts: dict[int, _Layout] = {}

    def write(self, start: int, rows_TD: Tensor) -> None:
        """rows [t, d] on the CPU -> the rows from `start` on, in the cache's dtype."""
        rows = rows_TD.to(self.dtype).contiguous()
        self._write("activations", start, rows.view(torch.uint8).numpy())

    def write_columns(self, start: int, columns: dict[str, np.ndarray]) -> None:
        """tokens, documents, positions int32 [t] of the rows from `start` on."""
        for name in COLUMNS:
            self._write(name, start, columns[name])

    def closed(self, n_tokens: int) -> int:
        """Shards that are full once n_tokens rows are written."""
        return -(-n_tokens // self.capacity) if n_tokens == self.expected else n_tokens // self.capacity

    def close(self, n_tokens: int) -> None:
        """Takes the statistics of the shards that are full now that the first n_tokens rows are written."""
        self._close(range(len(self.entries), self.closed(n_tokens)))

    def finish(self, n_tokens: int) -> None:
        """Closes all shards; the last is cut to its length where the text ended early."""
        self.close(n_tokens)
        number, held = divmod(n_tokens, self.capacity)
        if number == len(self.entries) and held:
            if self.ranks.first:
                with safe_open(self._file(number), framework="pt") as shard:
                    tensors = {name: shard.get_tensor(name)[:held] for name in (*COLUMNS, "activations")}
                write_tensors(self._file(number), tensors)
            self.ranks.wait()
            self._close(range(number, number + 1))

    def whole(self, n_tokens: int) -> bool:
        """Whether the shards of the first n_tokens rows are there at their full size."""
        files = [self._file(number) for number in range(-(-n_tokens // self.capacity))]
        return all(
            file.is_file() and file.stat().st_size == self._layout(number).size for number, file in enumerate(files)
        )

    def restore(self, n_tokens: int, entries: list[dict], statistics: dict[str, Tensor]) -> None:
        """Goes on behind the first n_tokens rows, with the entries and statistics of an earlier writer at that place or behind it."""
        pairs = list(zip(statistics[f"{self.split}.sum"], statistics[f"{self.split}.sum_sq"], strict=True))
        # one of the two may be ahead where the writer was stopped between them; and full shards need not all be closed
        count = min(self.closed(n_tokens), len(entries), len(pairs))
        self.entries, self._sums = entries[:count], pairs[:count]

    def sync(self) -> None:
        """Waits until everything written lies on the disk, so that a note of it can be trusted even after a power cut."""
        for file in self._changed:
            with _reported(file), open(file, "r+b") as handle:
                os.fsync(handle.fileno())
        self._changed.clear()

    def record(self) -> dict:
        """The split's entry in the index. `exhausted`: the text had no more."""
        n_tokens = sum(entry["tokens"] for entry in self.entries)
        return {"tokens": n_tokens, "exhausted": n_tokens < self.expected, "shards": self.entries}

    def statistics(self) -> dict[str, Tensor]:
        """Per closed shard: sum of x float64 [shards, d], sum of ||x||^2 float64 [shards]."""
        totals, squares = [total for total, _ in self._sums], [square for _, square in self._sums]
        return {
            f"{self.split}.sum": torch.stack(totals) if totals else torch.zeros(0, self.d, dtype=torch.float64),
            f"{self.split}.sum_sq": torch.stack(squares) if squares else torch.zeros(0, dtype=torch.float64),
        }

    def _write(self, name: str, start: int, values: np.ndarray) -> None:
        """values [t, ...] into the tensor `name`, over as many shards as it takes."""
        done = 0
        while done < len(values):
            number, offset = divmod(start + done, self.capacity)
            count = min(len(values) - done, self.capacity - offset)
            file = self._file(number)
            with _reported(file):
                if file not in self._changed:
                    self._make(number)
                place, row_bytes = self._layout(number).places[name]
                with open(file, "r+b", buffering=0) as handle:
                    handle.seek(place + offset * row_bytes)
                    _write_all(handle, memoryview(values[done : done + count]).cast("B"))
            done += count

    def _make(self, number: int) -> None:
        """Lays a shard out on the disk, where it is not there already."""
        file, layout = self._file(number), self._layout(number)
        if self.ranks.first and (not file.is_file() or file.stat().st_size != layout.size):
            with open(file, "wb") as handle:
                handle.write(layout.header)
                handle.truncate(layout.size)
        self._changed.add(file)

    def _layout(self, number: int) -> "_Layout":
        count = min(self.capacity, self.expected - number * self.capacity)
        if count not in self._layouts:
            self._layouts[count] = _layout(count, self.d, self.dtype)
        return self._layouts[count]

    def _close(self, numbers: range) -> None:
        """Reads whole shards again, each on one rank."""
        with RankPool(self.ranks) as pool:
            for entry, shard_sums in pool.map(self._entry, numbers):
                self.entries.append(entry)
                self._sums.append(shard_sums)

    def _entry(self, number: int) -> tuple[dict, tuple[Tensor, Tensor]]:
        file = self._file(number)
        with safe_open(file, framework="pt") as shard:
            rows = shard.get_tensor("activations")
        return {"file": file.name, "tokens": len(rows), "bytes": file.stat().st_size, "blake2b": checksum(file)}, sums(
            rows
        )

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.safetensors"


@dataclass(frozen=True)
class _Layout:
    """places: name -> (where the tensor begins in the file, bytes of a row). size: of the file."""

    header: bytes
    places: dict[str, tuple[int, int]]
    size: int


def _layout(count: int, d: int, dtype: torch.dtype) -> _Layout:
    """A shard of `count` rows, as the safetensors library lays it out: larger numbers first, then by name."""
    tensors = [(-4, name, "I32", 4, [count]) for name in COLUMNS]
    tensors.append((-dtype.itemsize, "activations", _NAMES[dtype], d * dtype.itemsize, [count, d]))
    entries, begins, end = {}, {}, 0
    for _, name, kind, row_bytes, shape in sorted(tensors):
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + count * row_bytes]}
        begins[name] = (end, row_bytes)
        end += count * row_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return _Layout(
        header,
        {name: (len(header) + begin, row_bytes) for name, (begin, row_bytes) in begins.items()},
        len(header) + end,
    )


def _write_all(handle, data: memoryview) -> None:
    while data:
        data = data[handle.write(data) :]


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error}; free some space or choose another --out, then run again"
        ) from None
