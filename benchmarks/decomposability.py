"""Times what is measured on the decoder rows: the pursuit, the matching of two seeds, and the grid of critics.

    python benchmarks/decomposability.py                          all three, at the sizes of GPT-2 large and of the demo
    python benchmarks/decomposability.py pursuit --n 3072 --d 384
    python benchmarks/decomposability.py matching grid --json

Rows are made: mixtures of directions with noise for the pursuit and the grid; for the matching two shuffled copies with
noise of different strength and as many rows again that have no counterpart. Each part runs in a process of its own, so
that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn

PARTS = ("pursuit", "matching", "grid")


def unit(rows: Tensor) -> Tensor:
    return nn.functional.normalize(rows, dim=1)


def mixtures(n: int, d: int, seed: int = 0) -> Tensor:
    """Unit rows: three of n / 5 directions that favour some dimensions, with random weights, and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = unit(torch.randn(max(n // 5, 2), d, generator=generator) * torch.arange(1, d + 1) ** -0.3)
    rows = torch.zeros(n, d)
    for _ in range(3):
        rows += directions[torch.randint(len(directions), (n,), generator=generator)] * torch.rand(
            n, 1, generator=generator
        )
    return unit(rows + 0.6 * torch.rand(n, 1, generator=generator) * torch.randn(n, d, generator=generator) / d**0.5)


def two_seeds(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Half of the rows shared up to noise, half without counterpart, the second in another order and a twentieth
    shorter."""
    generator = torch.Generator().manual_seed(0)
    shared = unit(torch.randn(n // 2, d, generator=generator))

    def seed() -> Tensor:
        noise = torch.rand(n // 2, 1, generator=generator) * 1.5 * torch.randn(n // 2, d, generator=generator) / d**0.5
        return unit(
            torch.cat([shared + noise, torch.randn(n - n // 2, d, generator=generator) / d**0.5]) + 0.3 * shared[:1]
        )

    return seed(), seed()[torch.randperm(n, generator=generator)][: n - n // 20]


def pursuit(given: argparse.Namespace) -> dict:
    from metasae.measures.rows.pursuit import pursue

    rows = mixtures(given.n, given.d)
    targets = None if given.targets is None else np.arange(min(given.targets, given.n))
    start = time.perf_counter()
    result = pursue(rows, given.k, targets)
    seconds = time.perf_counter() - start
    summary = result.as_dict()
    return {
        "n": given.n,
        "d": given.d,
        "k": given.k,
        "targets": len(result.targets),
        "seconds": seconds,
        **{
            f"{name}_{k}": summary[f"e_{k}{key}"]
            for k in range(1, given.k + 1)
            for name, key in (("e", ""), ("omp", "_omp"), ("proved", "_proved"))
        },
    }


def matching(given: argparse.Namespace) -> dict:
    from metasae.measures.rows.seeds import match

    a, b = two_seeds(given.n, given.d)
    start = time.perf_counter()
    result = match(a, b)
    seconds = time.perf_counter() - start
    return {
        "n_a": len(a),
        "n_b": len(b),
        "d": given.d,
        "seconds": seconds,
        "mean_r": result.mean_r,
        "found_again_0.7": result.found_again(0.7),
    }


def grid(given: argparse.Namespace) -> dict:
    from metasae.measures.rows.critic import critic_grid
    from metasae.measures.rows.decomposability import GRID_KS, GRID_WIDTHS

    rows = mixtures(given.grid_n, given.grid_d)
    start = time.perf_counter()
    table = critic_grid(rows, given.grid_n, GRID_WIDTHS, GRID_KS, given.steps, 0)
    return {
        "n": given.grid_n,
        "d": given.grid_d,
        "steps": given.steps,
        "points": len(table),
        "seconds": time.perf_counter() - start,
        "table": table,
    }


def run(part: str, given: argparse.Namespace, answer) -> None:
    result = {"pursuit": pursuit, "matching": matching, "grid": grid}[part](given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
    answer.put({**result, "peak_gigabytes": peak, "threads": torch.get_num_threads()})


def alone(part: str, given: argparse.Namespace) -> dict:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=run, args=(part, given, answer))
    process.start()
    while process.is_alive() and answer.empty():
        process.join(0.5)
    if answer.empty():
        raise SystemExit(f"the {part} benchmark ended with exit code {process.exitcode}")
    result = answer.get()
    process.join()
    return result


def show(part: str, result: dict) -> None:
    sizes = ", ".join(
        f"{name} {result[name]:,}"
        for name in ("n", "n_a", "n_b", "d", "k", "targets", "steps", "points")
        if name in result
    )
    print(f"\n{part}: {sizes}; {result['threads']} threads")
    print(f"  {result['seconds']:.1f} s, peak memory {result['peak_gigabytes']:.2f} GB")
    for k in range(1, result.get("k", 0) + 1):
        print(
            f"  {k} parts: mean e {result[f'e_{k}']:.4f}, plain OMP {result[f'omp_{k}']:.4f}, proved for "
            f"{100 * result[f'proved_{k}']:.1f}%"
        )
    if part == "matching":
        print(f"  mean cosine {result['mean_r']:.3f}, above 0.7: {100 * result['found_again_0.7']:.1f}%")
    for row in result.get("table", ()):
        scores = "  ".join(f"{row[name]:8.4f}" for name in ("ve_heldout", "ve_random_heldout", "ve_gaussian_heldout"))
        print(f"  width {row['width']:<6g} k {row['k']}: VE held out, of random rows, of Gaussian rows {scores}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    options.add_argument("--n", type=int, default=20480, help="rows of the pursuit and of each side of the matching")
    options.add_argument("--d", type=int, default=1280)
    options.add_argument("--k", type=int, default=4, help="most parts of the pursuit")
    options.add_argument("--targets", type=int, help="rows to be rebuilt, the first so many; all by default")
    options.add_argument("--grid-n", type=int, default=3072)
    options.add_argument("--grid-d", type=int, default=384)
    options.add_argument("--steps", type=int, default=200, help="steps of each critic")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        options.error(f"no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    results = {}
    for part in given.parts or PARTS:
        results[part] = alone(part, given)
        if not given.json:
            show(part, results[part])
    if given.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
