"""The firings in the order of latents: on which tokens does latent i fire, and how strongly.

A counting sort. The counts of each latent give where its entries begin; one pass over the tokens puts every entry in
its place. Within a latent, tokens rise. O(nnz) time; beside the result, memory for one chunk of entries.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from metasae.measures.firing.arrays import (
    Kind,
    damaged,
    empty_array,
    entry_of,
    open_arrays,
    read_index,
    whole_folder,
    write_index,
)
from metasae.measures.firing.firings import Firings, chunks
from metasae.measures.firing.store import STORE, open_firings
from metasae.progress.progress import SILENT, Progress

VIEW = Kind("firing store by latent", 1, {"indptr": "<i8", "tokens": "<i4", "values": "<f4"})
FOLDER = "by_latent"
# Entries sorted at a time: about 200 MB.
CHUNK = 1 << 22


@dataclass(frozen=True)
class ByLatent:
    """Latent i fires on tokens[indptr[i] : indptr[i + 1]], rising, with values at the same places.

    indptr: int64 [n + 1]. tokens: int32 [nnz], numbers of tokens in the split, not ids in the vocabulary. values:
    float32 [nnz]. The arrays may be read-only memory-maps. n_tokens: T, of the split.
    """

    indptr: np.ndarray
    tokens: np.ndarray
    values: np.ndarray
    n_tokens: int

    @property
    def n_latents(self) -> int:
        return len(self.indptr) - 1

    def counts(self) -> np.ndarray:
        """How many tokens each latent fires on: int64 [n]."""
        return np.diff(self.indptr)

    def latent(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [c], values float32 [c]) of one latent. Raises IndexError when there is no such latent."""
        if not 0 <= i < self.n_latents:
            raise IndexError(f"latents go from 0 to {self.n_latents - 1}, not {i}")
        entries = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.tokens[entries], self.values[entries]


def by_latent(firings: Firings, chunk: int = CHUNK) -> ByLatent:
    """The firings in the order of latents, in memory: 8 bytes per firing."""
    view = ByLatent(
        _starts(firings),
        np.empty(len(firings.indices), np.int32),
        np.empty(len(firings.indices), np.float32),
        firings.n_tokens,
    )
    _scatter(firings, view, chunk, SILENT)
    return view


def write_by_latent(folder: Path, chunk: int = CHUNK, progress: Progress = SILENT) -> ByLatent:
    """Sorts the firing store in `folder` by latent and keeps the result in it, for `open_by_latent`. Bounded memory.

    Raises UserError for a folder without a whole firing store, and when the disk is full.
    """
    firings, source = open_firings(folder), _source(folder)
    lengths = {"indptr": firings.n_latents + 1, "tokens": len(firings.indices), "values": len(firings.indices)}
    with whole_folder(folder / FOLDER, VIEW) as part:
        arrays = {name: empty_array(part, name, dtype, lengths[name]) for name, dtype in VIEW.arrays.items()}
        arrays["indptr"][:] = _starts(firings)
        _scatter(firings, ByLatent(n_tokens=firings.n_tokens, **arrays), chunk, progress)
        write_index(part, VIEW, {"firings": source}, {name: entry_of(array) for name, array in arrays.items()})
    return open_by_latent(folder)


def open_by_latent(folder: Path) -> ByLatent:
    """Opens what `write_by_latent` wrote into a firing store, as read-only memory-maps.

    Raises UserError when there is none, when it is damaged, and when it belongs to another store.
    """
    index = read_index(folder / FOLDER, VIEW)
    arrays = open_arrays(folder / FOLDER, VIEW, index)
    store = read_index(folder, STORE)
    if index.get("firings") != _source(folder):
        raise damaged(folder / FOLDER, VIEW, "it was made from other firings")
    if not arrays["indptr"][-1] == len(arrays["tokens"]) == len(arrays["values"]):
        raise damaged(folder / FOLDER, VIEW, "its arrays do not fit each other")
    return ByLatent(n_tokens=store["n_tokens"], **arrays)


def _starts(firings: Firings) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(firings.counts())])


def _scatter(firings: Firings, view: ByLatent, chunk: int, progress: Progress) -> None:
    """Puts every entry in its place, chunk by chunk of whole tokens."""
    ends = np.array(view.indptr[:-1])  # where the next entry of each latent goes
    with progress.task("sorting firings by latent", len(firings.indices), "firings") as task:
        for first, last in chunks(firings.indptr, (0, firings.n_tokens), chunk):
            entries = slice(int(firings.indptr[first]), int(firings.indptr[last]))
            rows = firings.indptr[first : last + 1] - firings.indptr[first]
            shape = (last - first, firings.n_latents)
            columns = csr_array((firings.values[entries], firings.indices[entries], rows), shape=shape).tocsc()
            counts = np.diff(columns.indptr)
            places = np.repeat(ends - columns.indptr[:-1], counts) + np.arange(len(columns.data))
            view.tokens[places] = columns.indices + first
            view.values[places] = columns.data
            ends += counts
            task.advance(len(places))


def _source(folder: Path) -> list[str]:
    """The checksums of a store's firings, by which it is recognised."""
    arrays = read_index(folder, STORE)["arrays"]
    return [arrays[name]["blake2b"] for name in ("indptr", "indices", "values")]
