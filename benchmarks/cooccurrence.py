"""Times the exact co-firing counts and phi statistics on planted firings, and what they would take at full size.

    python benchmarks/cooccurrence.py                      500k tokens, n = 20,480, L0 = 64, Zipf rates, 2 threads
    python benchmarks/cooccurrence.py --repeats 40         the same slice 40 times over, memory-mapped: 20M tokens
    --latents 65536, --l0 100, --tokens 100000, --threads 1, --blocks 0, --json

A pair is one step of the counts: a token with L latents on has L (L + 1) / 2 of them. Counting grows with the tokens,
the statistics do not. Rates are per second of a core's own time, so a busy machine tells the same; the minutes at full
size are those times over the number of threads, each on a free core. Peak memory is that of the process with the slice
in it, pages of the mapped file included, which the system takes back when it needs them.
"""

import argparse
import json
import resource
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from metasae.device import keep_freed_memory
from metasae.measures.cofiring import cooccurrence
from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.counts import CoFirings
from metasae.measures.firing.firings import Firings, document_blocks

FULL = 20_000_000
DOCUMENT = 128


def zipf_entries(
    tokens: int, latents: int, l0: float, seed: int = 0, exponent: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """indptr int64 [T + 1] and indices int32 of firings with rates ~ 1 / rank^exponent in shuffled order and about `l0`
    per token."""
    rng = np.random.default_rng(seed)
    weights = rng.permutation(1 / np.arange(1, latents + 1) ** exponent)
    edges = np.cumsum(weights / weights.sum())
    # draws that hit the same latent twice count once
    draws = draws_for(weights / weights.sum(), l0)
    indices, per_token = [], [np.zeros(1, np.int64)]
    for start in range(0, tokens, 50_000):
        drawn = (
            np.searchsorted(edges, rng.random((min(50_000, tokens - start), draws)))
            .clip(max=latents - 1)
            .astype(np.int32)
        )
        drawn.sort(axis=1)
        new = np.concatenate([np.ones((len(drawn), 1), bool), np.diff(drawn, axis=1) > 0], axis=1)
        indices.append(drawn[new])
        per_token.append(new.sum(1))
    return np.cumsum(np.concatenate(per_token)), np.concatenate(indices)


def draws_for(shares: np.ndarray, l0: float) -> int:
    """The draws after which `l0` different latents are expected."""
    draws = int(l0)
    while (1 - (1 - shares) ** draws).sum() < l0:
        draws += 1
    return draws


@contextmanager
def repeated(indptr: np.ndarray, indices: np.ndarray, latents: int, repeats: int):
    """The slice `repeats` times over as Firings; from a memory-mapped file when there is more than one."""
    tokens = (len(indptr) - 1) * repeats
    documents = np.arange(tokens, dtype=np.int32) // DOCUMENT
    nothing, none = np.broadcast_to(np.float32(0), len(indices) * repeats), np.broadcast_to(np.int32(0), tokens)
    if repeats == 1:
        yield Firings(indptr, indices, nothing, latents, documents, none, none)
        return
    offsets = np.concatenate([indptr[:-1] + copy * indptr[-1] for copy in range(repeats)] + [[repeats * indptr[-1]]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "indices"
        with path.open("wb") as file:
            for _ in range(repeats):
                indices.tofile(file)
        yield Firings(offsets, np.memmap(path, np.int32, "r"), nothing, latents, documents, none, none)


class Timed(CoFirings):
    """Adds up the core time of all threads in the counting; takes the place of `CoFirings` in `pair_statistics`."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seconds, Timed.last = 0.0, self

    def tile(self, *args) -> np.ndarray:
        start = time.thread_time()
        tile = super().tile(*args)
        self.seconds += time.thread_time() - start
        return tile


cooccurrence.CoFirings = Timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--latents", type=int, default=20_480)
    parser.add_argument("--l0", type=float, default=64)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    indptr, indices = zipf_entries(options.tokens, options.latents, options.l0)
    active = np.diff(indptr)
    with repeated(indptr, indices, options.latents, options.repeats) as firings:
        blocks = document_blocks(firings.documents, options.blocks) if options.blocks else None
        start, cpu = time.perf_counter(), time.process_time()
        phi = pair_statistics(firings, blocks)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    counting, statistics = Timed.last.seconds, cpu - Timed.last.seconds
    pairs = int((active * (active + 1) // 2).sum()) * options.repeats
    result = {
        "tokens": firings.n_tokens,
        "latents": options.latents,
        "l0": firings.l0,
        "threads": options.threads,
        "blocks": options.blocks,
        "mean_abs_phi": phi["mean_abs_phi"],
        "pairs": pairs,
        "seconds": wall,
        "counting_core_seconds": counting,
        "statistics_core_seconds": statistics,
        "pairs_per_core_second": pairs / counting,
        "minutes_at_20M": (counting * FULL / firings.n_tokens + statistics) / options.threads / 60,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{firings.n_tokens:,} tokens, n = {options.latents:,}, L0 = {firings.l0:.1f}, {options.blocks} blocks")
    print(f"all         {wall:8.1f} s with {options.threads} threads")
    print(
        f"counts      {counting:8.1f} core-s   {pairs / counting / 1e6:,.1f}M pairs per core-s of {pairs / 1e9:.2f}e9"
    )
    print(f"statistics  {statistics:8.1f} core-s   {phi['n_pairs'] / 1e6:,.0f}M pairs of latents")
    print(f"20M tokens  {result['minutes_at_20M']:8.1f} min on {options.threads} free cores")
    print(f"peak memory {result['peak_gib']:8.2f} GiB")


if __name__ == "__main__":
    main()
