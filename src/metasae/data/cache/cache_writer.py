"""Filling one cache folder: the shards of each split, a note of how far they are, and at the end the index.

FOLDER/unfinished.json   while a harvest is under way: its settings, its cursor and the closed shards; gone once there is an index
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from metasae.data.cache.cache import DTYPES, FORMAT, INDEX, SHARDS, STATISTICS, UNFINISHED
from metasae.data.cache.feed import Cursor
from metasae.data.cache.shards import ShardWriter
from metasae.errors import UserError
from metasae.files import read_json, read_tensors, write_json, write_tensors
from metasae.ranks.ranks import ALONE, Ranks

# A note makes the disk catch up, so it is not written after every pool; a harvest that is killed loses no more than this and a pool.
SECONDS_BETWEEN_NOTES = 30.0

Complete = Callable[[dict, dict[str, torch.Tensor]], tuple[dict, dict[str, torch.Tensor]]]


class CacheWriter:
    """One hook point's cache in the making. Tokens of a split are numbered in the order of the feed.

    settings: `tokens` (wanted of each split), `shard_tokens` and whatever else decides which row lies where: a harvest goes on
    only where they are the same. ranks: those that write into the folder, each some of the rows; all of them call the same, and
    the note and the index are the first one's.
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
        self._statistics: dict[str, torch.Tensor] = {}

    def held(self) -> Cursor | None:
        """Where a harvest of the same settings stopped in this folder; None where there is none to go on with."""
        try:
            note, self._statistics = read_json(self.folder / UNFINISHED), read_tensors(self.folder / STATISTICS)
        except UserError:
            return None  # none there, or damaged
        mine = {"format": FORMAT, "fingerprint": self.fingerprint, "settings": self.settings}
        if not isinstance(note, dict) or not mine.items() <= note.items():
            return None
        self._entries = note["splits"]
        return Cursor(**note["cursor"])

    def can_resume(self, cursor: Cursor) -> bool:
        return all(writer.whole(cursor.found[split]) for split, writer in self.splits.items())

    def resume(self, cursor: Cursor) -> None:
        """Goes on at a cursor that is that of `held` or before it."""
        for split, writer in self.splits.items():
            writer.restore(cursor.found[split], self._entries[split], self._statistics)

    def begin(self) -> None:
        """Clears the folder of earlier shards. The note goes first: it must not speak of shards that are gone."""
        if not self.ranks.first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        for stale in [*self.folder.glob(SHARDS), self.folder / STATISTICS]:
            stale.unlink(missing_ok=True)

    def close(self, cursor: Cursor) -> None:
        """Everything before the cursor is written: closes full shards, and notes the cursor if the last note is old."""
        full = sum(writer.closed(cursor.found[split]) - len(writer.entries) for split, writer in self.splits.items())
        # not before there is one for every rank
        if full >= self.ranks.size:
            for split, writer in self.splits.items():
                writer.close(cursor.found[split])
        if self.ranks.agreed(time.monotonic() - self._noted >= SECONDS_BETWEEN_NOTES):
            self.sync()
            self.ranks.wait()
            self.note(cursor)

    def sync(self) -> None:
        """See `ShardWriter.sync`."""
        for writer in self.splits.values():
            writer.sync()

    def note(self, cursor: Cursor) -> None:
        """Notes the cursor, so that another process can go on there; nobody waits for the other ranks."""
        self.sync()
        self._noted = time.monotonic()
        if not self.ranks.first:
            return
        write_tensors(self.folder / STATISTICS, self._tables())
        splits = {split: writer.entries for split, writer in self.splits.items()}
        note = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "cursor": cursor.as_dict(),
            "splits": splits,
        }
        write_json(self.folder / UNFINISHED, note)

    def finish(
        self, cursor: Cursor, model: str, n_documents: int, complete: Complete = lambda index, tables: (index, tables)
    ) -> None:
        """Writes the index: the cache is whole. complete: (index, statistics) -> the same with what else belongs to the cache."""
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
        index, tables = complete(index, self._tables())
        write_tensors(self.folder / STATISTICS, tables)
        write_json(self.folder / INDEX, index)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _tables(self) -> dict[str, torch.Tensor]:
        return {name: table for writer in self.splits.values() for name, table in writer.statistics().items()}
