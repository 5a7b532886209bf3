"""Measuring on several ranks: the firings are written by all, co-firings are counted tile by tile on all, the totals are exact.

A rank runs the SAE on a stretch of the tokens that is a multiple of the batch, so it meets the very blocks that one process would
meet; the parts are then put together into one store, equal to the byte. Tiles of rows are dealt out in turn and come back in order,
so what is added up over them is added up as with one process, and every number is the same to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from metasae.measures.firing.firings import Firings
from metasae.parallel.ranks import Ranks
from metasae.progress import SILENT, Progress

Start = TypeVar("Start")
Part = TypeVar("Part")


class RankPool:
    """In the place of an executor: `map` works each item out on one rank and gives every rank all results, in order.

    Called by all ranks with the same items. Results travel between the ranks of one job only.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def map(self, of: Callable[[Start], Part], items: Sequence[Start]) -> Iterator[Part]:
        size = self.ranks.size
        for first in range(0, len(items), size):
            turn = items[first : first + size]
            own = of(turn[self.ranks.rank]) if self.ranks.rank < len(turn) else None
            yield from self.ranks.objects(own, "tiles")[: len(turn)]

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_) -> None:
        pass


class Stretch:
    """Tokens start <= t < stop of a split, as a split."""

    def __init__(self, split, start: int, stop: int):
        self.split, self.start, self.stop = split, start, stop
        self.n_tokens = stop - start
        self.documents, self.tokens, self.positions = (np.asarray(getattr(split, name))[start:stop] for name in ("documents", "tokens", "positions"))

    def blocks(self, size: int) -> Iterator[torch.Tensor]:
        for first in range(self.start, self.stop, size):
            yield self.split.rows(torch.arange(first, min(first + size, self.stop))).float()


def stretch_of(n_tokens: int, batch: int, ranks: Ranks) -> tuple[int, int]:
    """(start, stop) of this rank's tokens: whole batches, shared out as evenly as they go."""
    batches = -(-n_tokens // batch)
    first, last = (batches * edge // ranks.size for edge in (ranks.rank, ranks.rank + 1))
    return min(first * batch, n_tokens), min(last * batch, n_tokens)


def write_firings(
    sae, split, folder: str | Path, ranks: Ranks, batch: int = 2048, progress: Progress = SILENT, provenance: dict | None = None
) -> Firings:
    """`metasae.measures.firing.store.write_firings`, the work shared by all ranks; each returns the whole store, mapped from disk.

    The folder must lie on a disk that all ranks see.
    """
    from metasae.measures.firing.store import open_firings
    from metasae.measures.firing.store import write_firings as write_alone

    if ranks.size == 1:
        return write_alone(sae, split, folder, batch, progress, provenance)
    folder = Path(folder)
    with _own_part(folder, ranks) as part:
        write_alone(sae, Stretch(split, *stretch_of(split.n_tokens, batch, ranks)), part, batch, progress)
        ranks.wait()
        if ranks.first:
            _put_together(sae, split, folder, [open_firings(_part(folder, rank)) for rank in range(ranks.size)], provenance)
        ranks.wait()
    return open_firings(folder)


def _put_together(sae, split, folder: Path, parts: list[Firings], provenance: dict | None) -> None:
    """The store of all tokens from those of its stretches, array by array."""
    from metasae.measures.firing.arrays import ArrayFile, whole_folder, write_index
    from metasae.measures.firing.store import STORE, sae_fingerprint, split_fingerprint

    with whole_folder(folder, STORE) as place:
        entries = {}
        for name, dtype in STORE.arrays.items():
            with closing(ArrayFile(place, name, dtype)) as file:
                for array in _pieces(parts, name):
                    file.append(array)
            entries[name] = file.entry()
        n_tokens, n_firings = entries["indptr"]["shape"][0] - 1, entries["indices"]["shape"][0]
        facts = {
            "n_tokens": n_tokens,
            "n_latents": sae.n_latents,
            "n_firings": n_firings,
            "l0": n_firings / n_tokens if n_tokens else 0.0,
            "sae": sae_fingerprint(sae),
            "split": split_fingerprint(split),
            "provenance": provenance,
        }
        write_index(place, STORE, facts, entries)


def _pieces(parts: list[Firings], name: str) -> Iterator[np.ndarray]:
    """The arrays of this name, in the order of tokens; offsets count on from part to part."""
    if name != "indptr":
        yield from (getattr(part, name) for part in parts)
        return
    yield np.zeros(1, np.int64)
    before = 0
    for part in parts:
        yield np.asarray(part.indptr[1:]) + before
        before += len(part.indices)


@contextmanager
def _own_part(folder: Path, ranks: Ranks) -> Iterator[Path]:
    import shutil

    part = _part(folder, ranks.rank)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(folder: Path, rank: int) -> Path:
    return folder.with_name(f".{folder.name}.rank{rank}")
