"""Writing one split of the activation cache shard by shard."""

from pathlib import Path

import torch
from torch import Tensor

from metasae.data.cache import checksum, sums
from metasae.data.windows import Window
from metasae.files import write_tensors

MAX_SHARD_BYTES = 256 << 20


class ShardWriter:
    """Collects rows and writes a shard whenever one is full. At most one shard is held in memory.

    `entries`: file, tokens, bytes and checksum of each shard written; `n_tokens`: of all.
    """

    def __init__(self, folder: Path, split: str, d: int, dtype: torch.dtype, shard_tokens: int, expected: int):
        self.folder, self.split = folder, split
        self.capacity = max(min(shard_tokens, MAX_SHARD_BYTES // (d * dtype.itemsize), expected), 1)
        self.entries: list[dict] = []
        self.n_tokens, self._expected = 0, expected
        self._held = 0
        self._rows: Tensor | None = None
        self._d, self._dtype = d, dtype
        self._sums: list[tuple[Tensor, Tensor]] = []

    def append(self, rows: Tensor, window: Window) -> None:
        """rows [t, d] of a window's tokens."""
        tokens = torch.from_numpy(window.tokens)
        done = 0
        while done < len(rows):
            if self._rows is None:
                self._rows = torch.empty(self.capacity, self._d, dtype=self._dtype)
                self._columns = torch.empty(3, self.capacity, dtype=torch.int32)
            count = min(len(rows) - done, self.capacity - self._held)
            place = slice(self._held, self._held + count)
            self._rows[place] = rows[done : done + count]
            self._columns[0, place] = tokens[done : done + count]
            self._columns[1, place] = window.document
            self._columns[2, place] = torch.arange(window.start + done, window.start + done + count, dtype=torch.int32)
            self._held += count
            done += count
            if self._held == self.capacity:
                self._write()

    def finish(self) -> None:
        """Writes what is held and frees the memory."""
        if self._held:
            self._write()
        self._rows = None

    def record(self) -> dict:
        """The split's entry in the index. `exhausted`: the text had no more."""
        return {"tokens": self.n_tokens, "exhausted": self.n_tokens < self._expected, "shards": self.entries}

    def statistics(self) -> dict[str, Tensor]:
        """Per shard: sum of x float64 [shards, d], sum of ||x||^2 float64 [shards]."""
        split = self.split
        if not self._sums:
            return {f"{split}.sum": torch.zeros(0, self._d, dtype=torch.float64), f"{split}.sum_sq": torch.zeros(0, dtype=torch.float64)}
        return {f"{split}.sum": torch.stack([total for total, _ in self._sums]), f"{split}.sum_sq": torch.stack([square for _, square in self._sums])}

    def _write(self) -> None:
        file = self.folder / f"{self.split}-{len(self.entries):05d}.safetensors"
        rows = self._rows[: self._held]
        tokens, documents, positions = self._columns[:, : self._held]
        write_tensors(file, {"activations": rows, "tokens": tokens, "documents": documents, "positions": positions})
        self._sums.append(sums(rows))
        self.entries.append({"file": file.name, "tokens": self._held, "bytes": file.stat().st_size, "blake2b": checksum(file)})
        self.n_tokens += self._held
        self._held = 0
