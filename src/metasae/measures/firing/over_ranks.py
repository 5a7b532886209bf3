"""Firings over ranks: each runs the SAE on its stretch of the tokens, and the parts are put together, equal to the byte or bit."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from metasae.data.split import own_part
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import Ranks


def fire(sae, split, ranks: Ranks, batch: int = 2048, progress: Progress = SILENT) -> Firings:
    """`metasae.measures.firing.firings.fire`, the work shared by all ranks; each holds the whole in memory."""
    from metasae.measures.firing.firings import fire as fire_alone
    from metasae.measures.firing.store import STORE

    own = fire_alone(sae, own_part(split, batch, ranks), batch, progress)
    if ranks.size == 1:
        return own
    parts = ranks.objects(own)
    return Firings(
        n_latents=own.n_latents, **{name: np.concatenate(list(_pieces(parts, name))) for name in STORE.arrays}
    )


def write_firings(
    sae,
    split,
    folder: str | Path,
    ranks: Ranks,
    batch: int = 2048,
    progress: Progress = SILENT,
    provenance: dict | None = None,
) -> Firings:
    """`metasae.measures.firing.store.write_firings`, the work shared by all ranks; each returns the whole store, mapped from disk.

    The folder must lie on a disk that all ranks see.
    """
    from metasae.measures.firing.store import open_firings
    from metasae.measures.firing.store import write_firings as write_alone

    if ranks.size == 1:
        return write_alone(sae, split, folder, batch, progress, provenance)
    folder = Path(folder)
    if ranks.first:
        # of a job that was killed, perhaps of more ranks
        for left in folder.parent.glob(f".{folder.name}.rank*"):
            shutil.rmtree(left, ignore_errors=True)
    ranks.wait()
    with _own_part(folder, ranks) as part:
        write_alone(sae, own_part(split, batch, ranks), part, batch, progress)
        ranks.wait()
        if ranks.first:
            _put_together(
                sae, split, folder, [open_firings(_part(folder, rank)) for rank in range(ranks.size)], provenance
            )
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


def _pieces(parts: Sequence[Firings], name: str) -> Iterator[np.ndarray]:
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
    part = _part(folder, ranks.rank)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(folder: Path, rank: int) -> Path:
    return folder.with_name(f".{folder.name}.rank{rank}")
