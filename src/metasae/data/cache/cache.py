"""The activation cache: memory-mapped safetensors shards under an index that is written last.

FOLDER/index.json                    what was harvested and every shard's size and checksum; absent while a harvest is incomplete
FOLDER/train-00000.safetensors       activations [t, d], tokens, documents, positions int32 [t]
FOLDER/unfinished.json               in the place of the index while a harvest is under way (metasae.data.cache.cache_writer)
FOLDER/statistics.safetensors        per split and shard: sum of x float64 [shards, d] and sum of ||x||^2 float64 [shards]
FOLDER/larger/                       more of some splits in the making (metasae.data.cache.growth)

What is open keeps its shards when others take their place: they are mapped, and go when nobody holds them any more.
"""

import hashlib
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasae.errors import UserError, nearest
from metasae.files import read_json, read_tensors

FORMAT = 1
INDEX = "index.json"
UNFINISHED = "unfinished.json"
STATISTICS = "statistics.safetensors"
LARGER = "larger"
SHARDS = "*-?????.safetensors"
COLUMNS = ("tokens", "documents", "positions")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SUM_ROWS = 4096
# Rows at a time where two caches are compared.
_COMPARED = 1 << 20
# More of a split is put in place within moments: so often, so many seconds apart, is an index waited for.
_LOOKS, _SECONDS_BETWEEN_LOOKS = 100, 0.05


class Split:
    """The first `n_tokens` tokens of one split, over memory-mapped shards.

    `tokens`, `documents` (numbers in the source) and `positions` (in the document, from 0): numpy int32 [T].
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        entries: list[dict],
        n_tokens: int,
        d: int,
        dtype: torch.dtype,
        sums: tuple[Tensor, Tensor],
    ):
        self.folder, self.name, self.n_tokens, self.d, self.dtype = folder, name, n_tokens, d, dtype
        counts = [entry["tokens"] for entry in entries]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        used = int(np.searchsorted(self._starts[:-1], n_tokens))
        self._files = [folder / entry["file"] for entry in entries[:used]]
        self._entries, self._sums = entries[:used], sums
        opened = [_open_shard(file, entry, d, dtype) for file, entry in zip(self._files, self._entries, strict=True)]
        self._shards = [shard["activations"] for shard in opened]
        # mapped with the rows, so that they are of one harvest whenever they are read
        self._columns = {name: [shard[name] for shard in opened] for name in COLUMNS}

    def __len__(self) -> int:
        return self.n_tokens

    @cached_property
    def tokens(self) -> np.ndarray:
        return self._column("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        return self._column("documents")

    @cached_property
    def positions(self) -> np.ndarray:
        return self._column("positions")

    def rows(self, indices: Tensor | np.ndarray) -> Tensor:
        """indices int [B], in any order, repeats allowed -> activations [B, d] in the cache's dtype."""
        indices = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.n_tokens:
            raise IndexError(f"rows of split '{self.name}' go from 0 to {self.n_tokens - 1}")
        if len(self._shards) == 1:
            return self._shards[0].index_select(0, indices)
        ordered, order = torch.sort(indices)
        bounds = torch.searchsorted(ordered, torch.from_numpy(self._starts)).tolist()
        gathered = torch.empty(len(indices), self.d, dtype=self.dtype)
        for number, shard in enumerate(self._shards):
            a, b = bounds[number], bounds[number + 1]
            if a < b:
                torch.index_select(shard, 0, ordered[a:b] - int(self._starts[number]), out=gathered[a:b])
        return torch.empty_like(gathered).index_copy_(0, order, gathered)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Consecutive blocks [size, d] float32 in order; the last one is shorter. Raises UserError for a NaN or inf."""
        for start in range(0, self.n_tokens, size):
            stop = min(start + size, self.n_tokens)
            block = self._slice(self._shards, start, stop).float()
            if not torch.isfinite(block.sum()):
                self.refuse_bad(np.arange(start, stop), block)
            yield block

    def begins_as(self, other: "Split") -> bool:
        """Whether the first tokens are those of `other`, of the same documents; it is read in parts."""
        if other.n_tokens > self.n_tokens:
            return False
        return all(
            torch.equal(self._slice(self._columns[name], start, stop), other._slice(other._columns[name], start, stop))
            for start, stop in (
                (start, min(start + _COMPARED, other.n_tokens)) for start in range(0, other.n_tokens, _COMPARED)
            )
            for name in COLUMNS
        )

    def shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        """Raises UserError that names the shard of the first row of block [B, d] that is not finite; returns when all are."""
        bad = torch.nonzero(~torch.isfinite(block).all(dim=1))
        if len(bad):
            shard = self._files[self.shard_of(int(indices[int(bad[0])]))]
            raise UserError(
                f"a NaN or inf activation in {shard}; delete the cache folder {self.folder} and harvest again"
            )

    @cached_property
    def mean(self) -> Tensor:
        """Mean activation, float64 [d]."""
        return self._totals[0] / max(self.n_tokens, 1)

    @cached_property
    def mean_square(self) -> float:
        """Mean of ||x||^2 over the tokens, summed in float64."""
        return float(self._totals[1]) / max(self.n_tokens, 1)

    @cached_property
    def _totals(self) -> tuple[Tensor, Tensor]:
        # whole shards were summed when they were written; only a shard that is used in part is read again
        whole = int(np.searchsorted(self._starts[1:], self.n_tokens, side="right"))
        totals = [(self._sums[0][number], self._sums[1][number]) for number in range(min(whole, len(self._shards)))]
        if whole < len(self._shards):
            totals.append(sums(self._shards[whole][: self.n_tokens - int(self._starts[whole])]))
        total, square = torch.zeros(self.d, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for shard_total, shard_square in totals:
            total, square = total + shard_total, square + shard_square
        return total, square

    def _column(self, name: str) -> np.ndarray:
        columns = [column.numpy() for column in self._columns[name]]
        return np.concatenate(columns)[: self.n_tokens] if columns else np.empty(0, dtype=np.int32)

    def _slice(self, tensors: list[Tensor], start: int, stop: int) -> Tensor:
        """Rows start to stop (behind start) of a tensor that lies in one part for each shard."""
        pieces = []
        for number in range(self.shard_of(start), self.shard_of(stop - 1) + 1):
            offset = int(self._starts[number])
            pieces.append(tensors[number][max(start - offset, 0) : stop - offset])
        return torch.cat(pieces)

    def __repr__(self) -> str:
        return f"Split('{self.name}', {self.n_tokens:,} tokens, d={self.d}, {len(self._shards)} shards)"


class ActivationCache:
    """A finished cache. `index`: the contents of index.json. `limits`: only the first so many tokens of a split are shown.

    A limited cache shows the tokens that a smaller harvest of the same text would hold.
    """

    def __init__(self, folder: Path, index: dict, limits: dict[str, int] | None = None):
        self.folder, self.index = folder, index
        self.d, self.fingerprint = index["d"], index["fingerprint"]
        self.dtype = DTYPES[index["identity"]["dtype"]]
        self.limits = dict(limits or {})
        tables = read_tensors(folder / STATISTICS)
        self._splits = {
            name: open_split(folder, index, tables, name, self.limits.get(name)) for name in index["splits"]
        }

    def split(self, name: str) -> Split:
        """`train`, `calibration` or `evaluation`. Raises UserError for a split that was not harvested."""
        if name not in self._splits:
            raise UserError(f"the cache {self.folder} has no split '{name}'{nearest(name, self._splits)}")
        return self._splits[name]

    def verify(self) -> None:
        """Reads every shard and compares its checksum. Raises UserError that names the damaged one."""
        for split in self.index["splits"].values():
            for entry in split["shards"]:
                if checksum(self.folder / entry["file"]) != entry["blake2b"]:
                    raise _damaged(self.folder / entry["file"], "its checksum differs")


def open_cache(
    folder: str | Path, fingerprint: str | None = None, tokens: dict[str, int] | None = None
) -> ActivationCache:
    """Opens a finished cache; `tokens` shows only the first so many of each split. Whether there are so many, `is_held` says.

    Where more of a split is put in place meanwhile, what is opened is all of the old cache or all of the new.

    Raises UserError for a folder without a finished harvest, another fingerprint, and a missing or truncated shard.
    """
    folder = Path(folder)
    while True:
        index = read_index(folder)
        if fingerprint is not None and index["fingerprint"] != fingerprint:
            raise UserError(
                f"the cache {folder} holds activations of another harvest; choose another harvest.cache or delete the folder"
            )
        try:
            cache = ActivationCache(folder, index, tokens)
        except UserError:
            if read_index(folder) == index:
                raise
        else:
            if read_index(folder) == index:
                return cache


def open_split(folder: Path, index: dict, tables: dict[str, Tensor], name: str, limit: int | None = None) -> Split:
    """One split of an index and its statistics, or the first `limit` tokens of it. Raises UserError for a missing or truncated shard."""
    entries = index["splits"][name]["shards"]
    held = sum(entry["tokens"] for entry in entries)
    n_tokens = held if limit is None else min(held, limit)
    dtype = DTYPES[index["identity"]["dtype"]]
    return Split(folder, name, entries, n_tokens, index["d"], dtype, (tables[f"{name}.sum"], tables[f"{name}.sum_sq"]))


def is_held(folder: str | Path, fingerprint: str, tokens: dict[str, int]) -> bool:
    """Whether a folder holds a finished harvest of this fingerprint with so many tokens of each split, or all that its text has.

    Raises UserError for an index of another version.
    """
    if not (Path(folder) / INDEX).is_file():
        return False
    index = read_index(Path(folder))
    return index["fingerprint"] == fingerprint and not lacking(index, tokens)


def lacking(index: dict, tokens: dict[str, int]) -> list[str]:
    """The splits of which a cache of this index has neither so many tokens nor all that its text has."""
    splits = index["splits"]
    return [
        split
        for split, count in tokens.items()
        if count > 0 and not (split in splits and (splits[split]["tokens"] >= count or splits[split]["exhausted"]))
    ]


def read_index(folder: Path) -> dict:
    """The contents of index.json. Raises UserError when there is none, or one of another version."""
    path, going_on, failed = folder / INDEX, folder / LARGER / INDEX, False
    for _ in range(_LOOKS):
        if path.is_file():
            try:
                return _of_this_version(read_json(path), folder)
            except UserError:
                # a larger cache that is put in place just now takes the old index away between the look and the reading, but only once
                if failed and not going_on.is_file():
                    raise
                failed = True
        elif not going_on.is_file():
            # nobody is at it, unless what lay aside came into its place between the two looks
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if not path.is_file():
        how = (
            "it goes on where it stopped" if (folder / UNFINISHED).is_file() or going_on.is_file() else "it starts anew"
        )
        raise UserError(f"no finished harvest in {folder}; run the harvest again: {how}")
    return _of_this_version(read_json(path), folder)


def _of_this_version(index: object, folder: Path) -> dict:
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(
            f"{folder / INDEX} is no index of this version; delete the cache folder {folder} and harvest again"
        )
    return index


def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [t, d] -> (sum of x float64 [d], sum of ||x||^2 float64 []), in fixed blocks so that the result is always the same."""
    total, square = torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for start in range(0, len(rows), _SUM_ROWS):
        block = rows[start : start + _SUM_ROWS].double()
        total += block.sum(dim=0)
        square += block.square_().sum()
    return total, square


def checksum(file: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 22):
                state.update(chunk)
    except FileNotFoundError:
        raise _damaged(file, "it is missing") from None
    return state.hexdigest()


def _open_shard(file: Path, entry: dict, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """activations [t, d] and the columns [t] of a shard, memory-mapped: nothing is read until a row is asked for."""
    if not file.is_file():
        raise _damaged(file, "it is missing")
    if file.stat().st_size != entry["bytes"]:
        raise _damaged(file, f"it has {file.stat().st_size} bytes instead of {entry['bytes']}")
    with _opened(file) as shard:
        tensors = {name: shard.get_tensor(name) for name in ("activations", *COLUMNS)}
    activations = tensors["activations"]
    if activations.shape != (entry["tokens"], d) or activations.dtype != dtype:
        raise _damaged(file, f"it holds {tuple(activations.shape)} {activations.dtype}")
    return tensors


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"the shard {file} is damaged: {why}; delete the cache folder {file.parent} and harvest again")
