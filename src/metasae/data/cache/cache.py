"""The activation cache: memory-mapped safetensors shards under an index that is written last.

FOLDER/index.json                 what was harvested, every shard's size and checksum; absent until all is there
FOLDER/train-00000.safetensors    activations [t, d], tokens, documents, positions int32 [t], norms float32 [t]
FOLDER/unfinished.json            in place of the index while a harvest is under way (metasae.data.cache.cache_writer)
FOLDER/statistics.safetensors     per split and shard: sum of x float64 [shards, d], sum of ||x||^2 float64 [shards]

A finished cache is never written to. A run that needs more tokens than FOLDER holds has a cache of its own beside it,
FOLDER-<train>-<calibration>-<evaluation>, named after the tokens of each split that it was harvested for.
"""

import glob
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasae.data.cache.loud import counting, in_words, limit_of
from metasae.data.split import Chosen
from metasae.data.text import text as texts
from metasae.errors import UserError, nearest
from metasae.files import read_json, read_tensors

FORMAT = 1
INDEX = "index.json"
UNFINISHED = "unfinished.json"
STATISTICS = "statistics.safetensors"
SHARDS = "*-?????.safetensors"
COLUMNS = ("tokens", "documents", "positions")
# ||x|| of each token, inf for a special token of the model inside a document
NORMS = "norms"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SUM_ROWS = 4096


class StoredSplit:
    """The tokens of one split, or the first `limit` of them, over memory-mapped shards.

    `tokens`, `documents` (numbers in the source) and `positions` (in the document, from 0): numpy int32 [T]. `norms`:
    float32 [T], see NORMS.
    """

    def __init__(self, folder: Path, index: dict, tables: dict[str, Tensor], name: str, limit: int | None = None):
        """Opens a split's shards. tables: the contents of statistics.safetensors. Raises UserError for a missing or
        truncated shard.
        """
        entries = index["splits"][name]["shards"]
        self.folder, self.name, self.d, self.dtype = folder, name, index["d"], DTYPES[index["identity"]["dtype"]]
        self._starts = np.cumsum([0, *(entry["tokens"] for entry in entries)], dtype=np.int64)
        self.n_tokens = int(self._starts[-1]) if limit is None else min(int(self._starts[-1]), limit)
        entries = entries[: int(np.searchsorted(self._starts[:-1], self.n_tokens))]
        self._files = [folder / entry["file"] for entry in entries]
        self._opened = [_open_shard(file, entry) for file, entry in zip(self._files, entries, strict=True)]
        self._shards = [tensors["activations"] for tensors in self._opened]
        self._sums, self._square_sums = tables[f"{name}.sum"], tables[f"{name}.sum_sq"]

    @cached_property
    def tokens(self) -> np.ndarray:
        return self._column("tokens")

    @cached_property
    def documents(self) -> np.ndarray:
        return self._column("documents")

    @cached_property
    def positions(self) -> np.ndarray:
        return self._column("positions")

    @cached_property
    def norms(self) -> np.ndarray:
        columns = [np.empty(0, dtype=np.float32), *(_norms(tensors).numpy() for tensors in self._opened)]
        return np.concatenate(columns)[: self.n_tokens]

    def _column(self, name: str) -> np.ndarray:
        columns = [np.empty(0, dtype=np.int32), *(tensors[name].numpy() for tensors in self._opened)]
        return np.concatenate(columns)[: self.n_tokens]

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
            numbers = range(self._shard_of(start), self._shard_of(stop - 1) + 1)
            begins = {number: int(self._starts[number]) for number in numbers}
            pieces = [self._shards[number][max(start - begin, 0) : stop - begin] for number, begin in begins.items()]
            block = torch.cat(pieces).float()
            if not torch.isfinite(block.sum()):
                self.refuse_bad(np.arange(start, stop), block)
            yield block

    def refuse_bad(self, indices: np.ndarray, block: Tensor) -> None:
        """Raises UserError that names the shard of the first row of block [B, d] that is not finite.

        Returns where all are.
        """
        bad = torch.nonzero(~torch.isfinite(block).all(dim=1))
        if len(bad):
            shard = self._files[self._shard_of(int(indices[int(bad[0])]))]
            raise UserError(
                f"a NaN or inf activation in {shard}; delete the cache folder {self.folder} and harvest again"
            )

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

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
        whole = min(int(np.searchsorted(self._starts[1:], self.n_tokens, side="right")), len(self._shards))
        parts = list(zip(self._sums[:whole], self._square_sums[:whole], strict=True))
        if whole < len(self._shards):
            parts.append(sums(self._shards[whole][: self.n_tokens - int(self._starts[whole])]))
        zeros = torch.zeros(self.d, dtype=torch.float64)
        return sum((total for total, _ in parts), zeros), sum((square for _, square in parts), zeros.new_zeros(()))


class ActivationCache:
    """A finished cache. `index`: the contents of index.json.

    tokens: the number of tokens of each split that are shown, the first ones, which are those that a smaller harvest of
    the same text would hold; `is_held` checks that there are enough. norm_limit: in medians of the calibration tokens'
    norms; longest: the same in the model's units; a split shows no token with a longer activation and no special token.
    Raises UserError for a folder without a finished harvest, and for a missing or truncated shard.
    """

    def __init__(
        self,
        folder: str | Path,
        tokens: dict[str, int] | None = None,
        norm_limit: float = 0.0,
        longest: float | None = None,
    ):
        self.folder, limits = Path(folder), tokens or {}
        self.index = index = read_index(self.folder)
        self.d, self.fingerprint = index["d"], index["fingerprint"]
        tables = read_tensors(self.folder / STATISTICS)
        self._splits = {
            name: StoredSplit(self.folder, index, tables, name, limits.get(name)) for name in index["splits"]
        }
        self.norm_limit = norm_limit
        like = self._splits.get("calibration") or next(iter(self._splits.values()))
        self.longest = limit_of(like.norms, norm_limit) if longest is None else longest
        self._chosen: dict[str, StoredSplit | Chosen] = {}

    @property
    def text(self) -> str:
        """What the model read, in words."""
        return texts.in_words(self.index["identity"]["text"], self.index.get("kinds", ()))

    @property
    def left_out(self) -> str:
        """The tokens that no split shows, and why, in words; "" where all are shown."""
        return in_words([split.norms for split in self._splits.values()], self.norm_limit, self.longest)

    def split(self, name: str) -> StoredSplit | Chosen:
        """`train`, `calibration` or `evaluation`. Raises UserError for a split that was not harvested."""
        if name not in self._splits:
            raise UserError(f"the cache {self.folder} has no split '{name}'{nearest(name, self._splits)}")
        if name not in self._chosen:
            split = self._splits[name]
            counts = counting(split.norms, self.longest)
            self._chosen[name] = split if counts.all() else Chosen(split, np.flatnonzero(counts))
        return self._chosen[name]


def is_held(folder: str | Path, fingerprint: str, tokens: dict[str, int]) -> bool:
    """Whether a folder holds a finished harvest of this fingerprint with at least `tokens` of each split, or all that
    its text has.

    Raises UserError for an index of another version.
    """
    index = read_index(Path(folder)) if (Path(folder) / INDEX).is_file() else {}
    if index.get("fingerprint") != fingerprint:
        return False
    splits, nothing = index["splits"], {"tokens": 0, "exhausted": False}
    records = {name: splits.get(name, nothing) for name, count in tokens.items() if count > 0}
    return all(record["exhausted"] or record["tokens"] >= tokens[name] for name, record in records.items())


def large_enough(folder: Path, fingerprint: str, tokens: dict[str, int]) -> Path | None:
    """The cache with at least `tokens` of each split (`is_held`): `folder` or one beside it; None where neither has
    them.
    """
    larger = sorted(folder.absolute().parent.glob(f"{glob.escape(folder.absolute().name)}-*-*-*"))
    return next((place for place in (folder, *larger) if is_held(place, fingerprint, tokens)), None)


def beside(folder: Path, tokens: dict[str, int]) -> Path:
    """The folder beside `folder` for a cache of these tokens, where the cache in `folder` is too small."""
    counts = "-".join(str(tokens.get(name, 0)) for name in texts.SPLITS)
    return folder.absolute().with_name(f"{folder.absolute().name}-{counts}")


def read_index(folder: Path) -> dict:
    """The contents of index.json. Raises UserError when there is none, or one of another version."""
    path = folder / INDEX
    if not path.is_file():
        how = "it continues where it stopped" if (folder / UNFINISHED).is_file() else "it starts anew"
        raise UserError(f"no finished harvest in {folder}; run the harvest again: {how}")
    index = read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path} is not an index of this version; delete the cache folder {folder} and harvest again")
    return index


def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [t, d] -> (sum of x float64 [d], sum of ||x||^2 float64 []).

    In fixed blocks, so that the result is always the same.
    """
    total, square = torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows_block in rows.split(_SUM_ROWS):
        block = rows_block.double()
        total += block.sum(dim=0)
        square += block.square_().sum()
    return total, square


def _norms(tensors: dict[str, Tensor]) -> Tensor:
    """Norms of a shard's tokens, computed where the shard is of an earlier release and does not hold them."""
    if NORMS in tensors:
        return tensors[NORMS]
    return torch.linalg.vector_norm(tensors["activations"], dim=1, dtype=torch.float32)


def _open_shard(file: Path, entry: dict) -> dict[str, Tensor]:
    """activations [t, d], the columns [t] and, where it has them, the norms [t] of a shard, memory-mapped: nothing is
    read until a row is asked for.
    """
    try:
        if file.stat().st_size != entry["bytes"]:
            raise OSError(f"it has {file.stat().st_size} bytes instead of {entry['bytes']}")
        with safe_open(file, framework="pt") as shard:
            names = ["activations", *COLUMNS, *({NORMS} & set(shard.keys()))]
            return {name: shard.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        why = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"the shard {file} is damaged: {why}; delete the cache folder {file.parent} and harvest again"
        ) from None
