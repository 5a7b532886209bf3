"""Times the phi counts on drawn firing stores that differ in one number.

Of the phi counts the cost model says that counting grows with the pairs of firings on a token, sum of L (L + 1) / 2,
and the statistics with the pairs of latents. What each costs on this machine is taken from the base point, so there the
model meets the measurement by construction.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from cooccurrence import Timed, repeated, zipf_entries
from curves_fit import Point, Series, round_robin

from metasae.doctor.estimate import PROCESS
from metasae.measures.cofiring.cooccurrence import MEMORY, TILE_PAIRS, TILE_ROWS, pair_statistics
from metasae.measures.cofiring.counts import CHUNK
from metasae.measures.firing.firings import BLOCKS, document_blocks

# the name of a series -> the field of a store that it varies
FIELDS = {"tokens": "tokens", "L0": "l0", "latents": "latents"}


@dataclass(frozen=True)
class Store:
    """A drawn firing store."""

    tokens: int
    l0: int
    latents: int


@dataclass(frozen=True)
class Drawn:
    """A store's entries. l0: realised. pairs: sum of L (L + 1) / 2 over tokens. latent_pairs: pairs of latents that
    fire at all."""

    entries: tuple[np.ndarray, np.ndarray]
    latents: int
    l0: float
    pairs: int
    latent_pairs: int


def drawn(store: Store) -> Drawn:
    indptr, indices = zipf_entries(store.tokens, store.latents, store.l0)
    on = np.diff(indptr)
    live = len(np.unique(indices))
    return Drawn(
        (indptr, indices), store.latents, float(on.mean()), int((on * (on + 1) // 2).sum()), live * (live - 1) // 2
    )


def count_once(drawn_store: Drawn) -> dict[str, float]:
    """Seconds of all of `pair_statistics` on the clock, and core seconds of the counting and of the rest within it."""
    with repeated(*drawn_store.entries, drawn_store.latents, 1) as firings:
        blocks = document_blocks(firings.documents, BLOCKS)
        start, cpu = time.perf_counter(), time.process_time()
        pair_statistics(firings, blocks)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"phi": wall, "counting, core time": Timed.last.seconds, "statistics, core time": cpu - Timed.last.seconds}


def phi_bytes(store: Store) -> int:
    """Entries, the parts of a store while it is drawn, and what `pair_statistics` holds: its tiles, and a chunk of
    entries per thread."""
    entries, threads = store.tokens * store.l0, torch.get_num_threads()
    tile = min(TILE_ROWS, TILE_PAIRS // store.latents) * store.latents * (32 + 2 * BLOCKS)
    return (
        8 * entries
        + 60_000 * store.l0 * 40
        + max(tile, min(MEMORY, threads * tile))
        + threads * 30 * min(CHUNK, entries)
    )


def phi_series(base: Store, varied: str, values: tuple[int, ...], rounds: int, limit: int) -> list[Series]:
    """The phi of all pairs against one number of the store: the whole on the clock, its two parts in core time."""
    stores, skipped, in_memory = {}, {}, PROCESS
    for value in values:
        store = replace(base, **{FIELDS[varied]: value})
        if in_memory + phi_bytes(store) > limit:
            skipped[float(value)] = (
                f"it would take {(in_memory + phi_bytes(store)) / 1e9:.1f} GB, and {limit / 1e9:.1f} is the limit"
            )
            continue
        stores[value] = drawn(store)
        in_memory += 8 * store.tokens * store.l0
    if not stores:
        return [Series(varied, "phi", (), "s", skipped)]
    at = {value: drawn_store.l0 if varied == "L0" else float(value) for value, drawn_store in stores.items()}
    count_once(next(iter(stores.values())))
    times = round_robin({at[value]: partial(count_once, drawn_store) for value, drawn_store in stores.items()}, rounds)
    own = getattr(base, FIELDS[varied])
    anchor = own if own in stores else next(iter(stores))
    middle = {name: float(np.median(seconds[at[anchor]])) for name, seconds in times.items()}
    counting, statistics = middle["counting, core time"], middle["statistics, core time"]

    def whole(drawn_store: Drawn) -> float:
        grown = (
            counting * drawn_store.pairs / stores[anchor].pairs
            + statistics * drawn_store.latent_pairs / stores[anchor].latent_pairs
        )
        return middle["phi"] * grown / (counting + statistics)

    said = {
        "phi": (whole, "s"),
        "counting, core time": (lambda drawn_store: float(drawn_store.pairs), "pairs of firings"),
        "statistics, core time": (lambda drawn_store: float(drawn_store.latent_pairs), "pairs of latents"),
    }
    return [
        Series(
            varied,
            name,
            tuple(
                Point(at[value], seconds[at[value]], said[name][0](drawn_store))
                for value, drawn_store in stores.items()
            ),
            said[name][1],
            skipped,
        )
        for name, seconds in times.items()
    ]
