"""Filling one cache folder: the shards of each split, a note of how far they are, and at the end the index.

FOLDER/unfinished.json   while a harvest is under way: its settings, its cursor and the closed shards; gone once there is an index

A shard is a safetensors file: the length of the header in 8 bytes, the header (JSON: name -> dtype, shape and place of each
tensor), the tensors (https://github.com/huggingface/safetensors#format). Its size is known before its rows are, so every row
goes straight to its place in the file, and none waits in memory.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from metasae.data.cache.cache import COLUMNS, DTYPES, FORMAT, INDEX, SHARDS, STATISTICS, UNFINISHED, sums
from metasae.data.cache.feed import Cursor
from metasae.errors import UserError
from metasae.files import read_json, read_tensors, write_json, write_tensors
from metasae.ranks.ranks import ALONE, Ranks
from metasae.ranks.sharing import RankPool

# A note makes the disk catch up, so it is not written after every pool; a harvest that is killed loses no more than this
# and a pool.
SECONDS_BETWEEN_NOTES = 30.0
MAX_SHARD_BYTES = 256 << 20
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class CacheWriter:
    """One hook point's cache in the making. Tokens of a split are numbered in the order of the feed.

    settings: `tokens` (wanted of each split), `shard_tokens` and whatever else decides which row lies where: a harvest goes
    on only where they are the same. ranks: those that write into the folder, each some of the rows; all of them call the
    same, and the note and the index are the first one's.
    """

    def __init__(self, folder: Path, identity: dict, fingerprint: str, d: int, settings: dict, ranks: Ranks = ALONE):
        self.folder, self.identity, self.fingerprint, self.d, self.settings = folder, identity, fingerprint, d, settings
        self.ranks, dtype, capacity = ranks, DTYPES[identity["dtype"]], settings["shard_tokens"]
        self.splits = {
            split: ShardWriter(folder, split, d, dtype, capacity, count, ranks)
            for split, count in settings["tokens"].items()
        }
        self._noted = time.monotonic()
        self._entries: dict[str, list[dict]] = {}
        self._statistics: dict[str, Tensor] = {}

    def stopped_at(self) -> Cursor | None:
        """Where a harvest of the same settings stopped in this folder; None where there is none to go on with."""
        try:
            note, self._statistics = read_json(self.folder / UNFINISHED), read_tensors(self.folder / STATISTICS)
        except UserError:
            return None  # none there, or damaged
        own = {"format": FORMAT, "fingerprint": self.fingerprint, "settings": self.settings}
        if not isinstance(note, dict) or not own.items() <= note.items():
            return None
        self._entries = note["splits"]
        return Cursor(**note["cursor"])

    def can_resume(self, cursor: Cursor) -> bool:
        return all(writer.is_whole(cursor.found[split]) for split, writer in self.splits.items())

    def resume(self, cursor: Cursor) -> None:
        """Goes on at a cursor that is that of `stopped_at` or before it."""
        for split, writer in self.splits.items():
            writer.restore(cursor.found[split], self._entries[split], self._statistics)

    def begin(self) -> None:
        """Clears the folder of earlier shards. The note goes first: it must not name shards that are gone."""
        if not self.ranks.first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in [self.folder / UNFINISHED, *self.folder.glob(SHARDS), self.folder / STATISTICS]:
            stale.unlink(missing_ok=True)

    def close(self, cursor: Cursor) -> None:
        """Everything before the cursor is written: closes full shards, and notes the cursor if the last note is old."""
        full = sum(writer.n_full(cursor.found[split]) - len(writer.entries) for split, writer in self.splits.items())
        # not before there is one for every rank
        if full >= self.ranks.size:
            for split, writer in self.splits.items():
                writer.close(cursor.found[split])
        if self.ranks.agreed(time.monotonic() - self._noted >= SECONDS_BETWEEN_NOTES):
            self._sync()
            self.ranks.wait()
            self.note(cursor)

    def note(self, cursor: Cursor) -> None:
        """Notes the cursor, so that another process can go on there; nobody waits for the other ranks."""
        self._sync()
        self._noted = time.monotonic()
        if not self.ranks.first:
            return
        write_tensors(self.folder / STATISTICS, self._tables())
        note = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "cursor": asdict(cursor),
            "splits": {split: writer.entries for split, writer in self.splits.items()},
        }
        write_json(self.folder / UNFINISHED, note)

    def finish(self, cursor: Cursor, model: str, n_documents: int) -> None:
        """Writes the index: the cache is whole."""
        for split, writer in self.splits.items():
            writer.finish(cursor.found[split])
        if not self.ranks.first:
            return
        index = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "model": model,
            "d": self.d,
            "documents": n_documents,
            "documents_blake2b": cursor.digest,
            "splits": {split: writer.record() for split, writer in self.splits.items()},
        }
        write_tensors(self.folder / STATISTICS, self._tables())
        write_json(self.folder / INDEX, index)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _sync(self) -> None:
        for writer in self.splits.values():
            writer.sync()

    def _tables(self) -> dict[str, Tensor]:
        return {name: table for writer in self.splits.values() for name, table in writer.statistics().items()}


class ShardWriter:
    """Row i of a split lies in shard i // capacity. Rows may come in any order and more than once; the last writing counts.

    expected: rows of the split at most. `entries`: file, tokens, bytes and checksum of each closed shard; `statistics` of
    the same. ranks: those that write into the folder. The first lays shards out, with the columns of their rows; then all
    write rows, and only when all have written is a shard closed, by one of them. `close` and `finish` are called by all.
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
        self.entries: list[dict] = []
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._changed: set[Path] = set()

    def write(self, start: int, rows_TD: Tensor) -> None:
        """rows [t, d] on the CPU -> the rows from `start` on, in the cache's dtype."""
        rows = rows_TD.to(self.dtype).contiguous()
        self._write("activations", start, rows.view(torch.uint8).numpy())

    def write_columns(self, start: int, columns: dict[str, np.ndarray]) -> None:
        """tokens, documents, positions int32 [t] of the rows from `start` on."""
        for name in COLUMNS:
            self._write(name, start, columns[name])

    def n_full(self, n_tokens: int) -> int:
        """How many shards are full once n_tokens rows are written."""
        return -(-n_tokens // self.capacity) if n_tokens == self.expected else n_tokens // self.capacity

    def close(self, n_tokens: int) -> None:
        """Takes the statistics of the shards that are full now that the first n_tokens rows are written."""
        self._close(range(len(self.entries), self.n_full(n_tokens)))

    def finish(self, n_tokens: int) -> None:
        """Closes all shards; the last is cut to its length where the text ended early."""
        self.close(n_tokens)
        number, rest = divmod(n_tokens, self.capacity)
        if number == len(self.entries) and rest:
            if self.ranks.first:
                with safe_open(self._file(number), framework="pt") as shard:
                    tensors = {name: shard.get_tensor(name)[:rest] for name in (*COLUMNS, "activations")}
                write_tensors(self._file(number), tensors)
            self.ranks.wait()
            self._close(range(number, number + 1))

    def is_whole(self, n_tokens: int) -> bool:
        """Whether the shards of the first n_tokens rows are there at their full size."""
        return all(self._has_full_size(number) for number in range(-(-n_tokens // self.capacity)))

    def restore(self, n_tokens: int, entries: list[dict], statistics: dict[str, Tensor]) -> None:
        """Goes on behind the first n_tokens rows, with what an earlier writer at that place or behind it had closed."""
        pairs = list(zip(statistics[f"{self.split}.sum"], statistics[f"{self.split}.sum_sq"], strict=True))
        # one of the two may be ahead where the writer was stopped between them; and full shards need not all be closed
        count = min(self.n_full(n_tokens), len(entries), len(pairs))
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
            file, layout = self._file(number), self._layout(number)
            place, row_bytes = layout.places[name]
            with _reported(file):
                if self.ranks.first and file not in self._changed and not self._has_full_size(number):
                    with open(file, "wb") as handle:
                        handle.write(layout.header)
                        handle.truncate(layout.size)
                self._changed.add(file)
                with open(file, "r+b") as handle:
                    handle.seek(place + offset * row_bytes)
                    handle.write(memoryview(values[done : done + count]).cast("B"))
            done += count

    def _layout(self, number: int) -> "_Layout":
        return _layout(min(self.capacity, self.expected - number * self.capacity), self.d, self.dtype)

    def _has_full_size(self, number: int) -> bool:
        file = self._file(number)
        return file.is_file() and file.stat().st_size == self._layout(number).size

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
        entry = {"file": file.name, "tokens": len(rows), "bytes": file.stat().st_size, "blake2b": _checksum(file)}
        return entry, sums(rows)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.safetensors"


@dataclass(frozen=True)
class _Layout:
    """places: name -> (where the tensor begins in the file, bytes of a row). size: of the file."""

    header: bytes
    places: dict[str, tuple[int, int]]
    size: int


@cache
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
    places = {name: (len(header) + begin, row_bytes) for name, (begin, row_bytes) in begins.items()}
    return _Layout(header, places, len(header) + end)


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
