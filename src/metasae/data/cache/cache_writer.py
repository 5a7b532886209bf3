"""Fills one cache folder: the shards of each split, a note of the progress, and at the end their sums and the index.

FOLDER/unfinished.json   while a harvest is under way: its settings and its cursor; gone once there is an index

A shard is a safetensors file: the length of the header in 8 bytes, the header (JSON: name -> dtype, shape and place
of each tensor), the tensors (https://github.com/huggingface/safetensors#format). Its size is known before its rows
are, so every row goes straight to its place in the file, and none waits in memory.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from metasae.data.cache.cache import COLUMNS, DTYPES, FORMAT, INDEX, NORMS, SHARDS, STATISTICS, UNFINISHED, sums
from metasae.data.text.windows import Cursor
from metasae.errors import UserError
from metasae.files import read_json, write_json, write_tensors
from metasae.ranks.ranks import ALONE, RankPool, Ranks

# Seconds between notes. A note waits until the disk has written everything, so it is not made after every pool; a
# harvest that is killed loses no more than these seconds and a pool.
SECONDS_BETWEEN_NOTES = 30.0
MAX_SHARD_BYTES = 256 << 20
# The header, name -> (where the tensor begins in the file, bytes of a row), and the size of the file.
Layout = tuple[bytes, dict[str, tuple[int, int]], int]
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class CacheWriter:
    """One hook point's cache in the making. Tokens of a split are numbered in the order of the feed.

    settings: `tokens` (wanted of each split), `shard_tokens` and everything else that decides which row lies where: a
    harvest is continued only where they are the same. ranks: those that write into the folder, each some of the rows.
    All of them make the same calls, and the first one writes the note and the index.
    """

    def __init__(self, folder: Path, identity: dict, fingerprint: str, d: int, settings: dict, ranks: Ranks = ALONE):
        self.folder, self.identity, self.d, self.ranks = folder, identity, d, ranks
        self._facts = {"format": FORMAT, "fingerprint": fingerprint}
        self._note = self._facts | {"settings": settings}
        dtype, capacity = DTYPES[identity["dtype"]], settings["shard_tokens"]
        self.splits = {
            split: ShardWriter(folder, split, d, dtype, capacity, count, ranks)
            for split, count in settings["tokens"].items()
        }
        self._noted = time.monotonic()

    def stopped_at(self) -> Cursor | None:
        """Where a harvest of the same settings stopped in this folder; None where there is none to continue."""
        try:
            note = read_json(self.folder / UNFINISHED)
        except UserError:
            return None  # none there, or damaged
        if not isinstance(note, dict) or not self._note.items() <= note.items():
            return None
        return Cursor(**note["cursor"])

    def can_resume(self, cursor: Cursor) -> bool:
        """Whether all rows before the cursor are there."""
        return all(writer.is_whole(cursor.found[split]) for split, writer in self.splits.items())

    def begin(self) -> None:
        """Clears the folder of earlier shards. The note goes first: it must not name shards that are gone."""
        if self.ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in [self.folder / UNFINISHED, *self.folder.glob(SHARDS), self.folder / STATISTICS]:
                stale.unlink(missing_ok=True)

    def note_at_times(self, cursor: Cursor) -> None:
        """Everything before the cursor is written: notes it if the last note is old."""
        if self.ranks.agreed(time.monotonic() - self._noted >= SECONDS_BETWEEN_NOTES):
            self.note(cursor, together=True)

    def note(self, cursor: Cursor, together: bool = False) -> None:
        """Notes the cursor, so that another process can continue there. together: waits for the other ranks first."""
        for writer in self.splits.values():
            writer.sync()
        if together:
            self.ranks.wait()
        self._noted = time.monotonic()
        if self.ranks.first:
            write_json(self.folder / UNFINISHED, self._note | {"cursor": asdict(cursor)})

    def finish(self, cursor: Cursor, model: str, kinds: dict[str, int]) -> None:
        """Everything before the cursor is written, and there is no more: adds the shards up, and writes the index.

        kinds: how many documents of each kind were read.
        """
        records, tables = {}, {}
        for split, writer in self.splits.items():
            records[split], tables_of_split = writer.finish(cursor.found[split])
            tables |= tables_of_split
        if not self.ranks.first:
            return
        index = self._facts | {
            "identity": self.identity,
            "model": model,
            "d": self.d,
            "documents": sum(kinds.values()),
            "kinds": dict(sorted(kinds.items())),
            "documents_blake2b": cursor.digest,
            "splits": records,
        }
        write_tensors(self.folder / STATISTICS, tables)
        write_json(self.folder / INDEX, index)
        (self.folder / UNFINISHED).unlink(missing_ok=True)


def resume(writers: Sequence[CacheWriter], ranks: Ranks = ALONE) -> Cursor | None:
    """The cursor from which all writers can continue; None where they begin anew."""
    cursors = [writer.stopped_at() for writer in writers]
    # writers that got further write the rows after it again, with the same bytes
    first = None if None in cursors else min(cursors, key=lambda cursor: sum(cursor.found.values()))
    if first is not None and not all(writer.can_resume(first) for writer in writers):
        first = None
    ranks.same(str(first), "where the harvest was stopped", "let them see the same disk, or delete the cache folder")
    for writer in writers if first is None else ():
        writer.begin()
    return first


class ShardWriter:
    """Row i of a split lies in shard i // capacity. Rows may come in any order and more than once; the last write
    counts.

    expected: rows of the split at most. ranks: those that write into the folder. The first lays shards out, with the
    columns of their rows; then all write rows, and when all have written, `finish` is called by all.
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
        self.folder, self.split, self.d, self.dtype = folder, split, d, dtype
        self.expected, self.ranks = expected, ranks
        self.capacity = max(min(shard_tokens, MAX_SHARD_BYTES // (d * dtype.itemsize), expected), 1)
        self._changed: set[Path] = set()

    def write(self, start: int, rows_TD: Tensor, special_T: Tensor | None = None) -> None:
        """rows [t, d] on the CPU -> the rows from `start` on, in the cache's dtype, with their norms.

        special: bool [t], which are special tokens of the model; None: none.
        """
        rows = rows_TD.to(self.dtype).contiguous()
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
        if special_T is not None:
            norms[special_T] = torch.inf
        self._write("activations", start, rows.view(torch.uint8).numpy())
        self._write(NORMS, start, norms.numpy())

    def write_columns(self, start: int, columns: dict[str, np.ndarray]) -> None:
        """tokens, documents, positions int32 [t] of the rows from `start` on."""
        for name in COLUMNS:
            self._write(name, start, columns[name])

    def is_whole(self, n_tokens: int) -> bool:
        """Whether the shards of the first n_tokens rows are there at their full size."""
        return all(self._has_full_size(number) for number in range(-(-n_tokens // self.capacity)))

    def sync(self) -> None:
        """Waits until everything written lies on the disk, so that a note of it holds even after a power cut."""
        for file in self._changed:
            with _reported(file), open(file, "r+b") as handle:
                os.fsync(handle.fileno())
        self._changed.clear()

    def finish(self, n_tokens: int) -> tuple[dict, dict[str, Tensor]]:
        """The split's entry in the index, and its statistics: per shard the sum of x float64 [shards, d] and of
        ||x||^2.

        The last shard is cut to its length where the text ended early. Every shard is read again, on one rank.
        """
        n_shards, rest = -(-n_tokens // self.capacity), n_tokens % self.capacity
        if n_tokens < self.expected and rest:
            file = self._file(n_shards - 1)
            if self.ranks.first:
                with safe_open(file, framework="pt") as shard:
                    tensors = {name: shard.get_tensor(name)[:rest] for name in (*COLUMNS, NORMS, "activations")}
                write_tensors(file, tensors)
            self.ranks.wait()
        with RankPool(self.ranks) as pool:
            summed = list(pool.map(self._summed, range(n_shards)))
        totals, squares = torch.zeros(n_shards, self.d, dtype=torch.float64), torch.zeros(n_shards, dtype=torch.float64)
        for number, (_, total, square) in enumerate(summed):
            totals[number], squares[number] = total, square
        record = {
            "tokens": n_tokens,
            "exhausted": n_tokens < self.expected,
            "shards": [entry for entry, _, _ in summed],
        }
        return record, {f"{self.split}.sum": totals, f"{self.split}.sum_sq": squares}

    def _summed(self, number: int) -> tuple[dict, Tensor, Tensor]:
        """A shard's entry in the index, its sum of x and of ||x||^2."""
        file = self._file(number)
        with safe_open(file, framework="pt") as shard:
            rows = shard.get_tensor("activations")
        entry = {"file": file.name, "tokens": len(rows), "bytes": file.stat().st_size, "blake2b": _checksum(file)}
        return entry, *sums(rows)

    def _write(self, name: str, start: int, values: np.ndarray) -> None:
        """values [t, ...] into the tensor `name`, over as many shards as it takes."""
        done = 0
        while done < len(values):
            number, offset = divmod(start + done, self.capacity)
            count = min(len(values) - done, self.capacity - offset)
            file, (header, places, size) = self._file(number), self._layout(number)
            place, row_bytes = places[name]
            with _reported(file):
                if self.ranks.first and file not in self._changed and not self._has_full_size(number):
                    with open(file, "wb") as handle:
                        handle.write(header)
                        handle.truncate(size)
                self._changed.add(file)
                with open(file, "r+b") as handle:
                    handle.seek(place + offset * row_bytes)
                    handle.write(memoryview(values[done : done + count]).cast("B"))
            done += count

    def _layout(self, number: int) -> Layout:
        return _layout(min(self.capacity, self.expected - number * self.capacity), self.d, self.dtype)

    def _has_full_size(self, number: int) -> bool:
        file = self._file(number)
        _, _, size = self._layout(number)
        return file.is_file() and file.stat().st_size == size

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.safetensors"


@cache
def _layout(count: int, d: int, dtype: torch.dtype) -> Layout:
    """A shard of `count` rows, as the safetensors library lays it out: larger numbers first, then by name."""
    # (as the library orders them, name, type, bytes of a row, shape)
    tensors = [((-4, 1), name, "I32", 4, [count]) for name in COLUMNS]
    tensors.append(((-4, 0), NORMS, "F32", 4, [count]))
    order = (-dtype.itemsize, 0)
    tensors.append((order, "activations", _NAMES[dtype], d * dtype.itemsize, [count, d]))
    entries, begins, end = {}, {}, 0
    for _, name, kind, row_bytes, shape in sorted(tensors):
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + count * row_bytes]}
        begins[name] = (end, row_bytes)
        end += count * row_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    places = {name: (len(header) + begin, row_bytes) for name, (begin, row_bytes) in begins.items()}
    return header, places, len(header) + end


def _checksum(file: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as handle:
        while chunk := handle.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error}; free some space or choose another --out, then run again"
        ) from None
