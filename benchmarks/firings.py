"""Times the firing store: writing, opening, sorting by latent, and the calibration rules, beside the floor of one pass.

    python benchmarks/firings.py                                   an SAE and activations of the demo's size, drawn
    python benchmarks/firings.py --sae RUN/arms/joint-s0/primary --cache RUNS/activations/KEY
    python benchmarks/firings.py --tokens 20000 --json

The floor of a pass over T tokens is its 2 T d n floating-point operations over the matmul rate measured here, in bf16
where the screen multiplies in it (see `measures/firing/selection.py`). Stores go to a temporary folder, or to --folder.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from step import peak_megabytes, rates

from metasae.data.cache.cache import ActivationCache
from metasae.data.split import head
from metasae.measures.firing.by_latent import by_latent, write_by_latent
from metasae.measures.firing.calibrate import RULES, calibrate
from metasae.measures.firing.firings import fire
from metasae.measures.firing.selection import Screen
from metasae.measures.firing.store import is_store_of, open_firings, write_firings
from metasae.sae.sae import SAE, SAEConfig

D, N, K, BLOCK, DOCUMENT = 384, 3072, 32, 2048, 128


class MadeUp:
    """T tokens of sparse combinations of 2 d directions; eight blocks of them again and again."""

    def __init__(self, n_tokens: int):
        generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(2 * D, D, generator=generator), dim=1)
        codes = torch.rand(8 * BLOCK, 2 * D, generator=generator)
        self.rows_of = ((codes * (codes > 0.97)) @ directions).split(BLOCK)
        self.n_tokens = n_tokens
        place = np.arange(n_tokens, dtype=np.int32)
        self.documents, self.positions, self.tokens = place // DOCUMENT, place % DOCUMENT, place % 30_000

    def blocks(self, size: int):
        done, number = 0, 0
        while done < self.n_tokens:
            for part in self.rows_of[number % 8].split(size):
                yield part[: self.n_tokens - done]
                done += len(part)
                if done >= self.n_tokens:
                    return
            number += 1


def made_up_sae() -> SAE:
    sae = SAE(SAEConfig(d_in=D, d_sae=N, k=K))
    sae.init_weights(torch.Generator().manual_seed(1))
    return sae


def timed(call):
    """(seconds, result)."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure(sae: SAE, calibration, split, folder: Path, batch: int) -> dict:
    seconds, thresholds = {}, {}
    for rule in RULES:
        sae.threshold = None
        spent, calibrated = timed(lambda rule=rule: calibrate(sae, calibration, batch, rule=rule))
        seconds[f"calibrate {rule} (L0 {calibrated.l0:.2f} on {calibrated.n_tokens:,} tokens)"] = spent
        thresholds[rule] = sae.threshold
    sae.threshold = thresholds["rate"]
    before = peak_megabytes()
    seconds["write_firings"], firings = timed(lambda: write_firings(sae, split, folder, batch))
    beyond = peak_megabytes() - before
    seconds["open_firings"] = timed(lambda: open_firings(folder))[0]
    seconds["is_store_of"] = timed(lambda: is_store_of(folder, sae, split))[0]
    seconds["write_by_latent"] = timed(lambda: write_by_latent(folder))[0]
    seconds["by_latent, in memory"] = timed(lambda: by_latent(firings))[0]
    seconds["fire, in memory"] = timed(lambda: fire(sae, split, batch))[0]
    screened, n, d = Screen(sae, 0.0).screened, sae.config.d_sae, sae.config.d_in
    rate = rates()["bf16" if screened else "fp32"]
    return {
        "n_tokens": split.n_tokens,
        "n_latents": n,
        "d": d,
        "l0": firings.l0,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "floor_seconds_of_one_pass": 2 * split.n_tokens * d * n / rate,
        "matmul_flops": rate,
        "screened": screened,
        "megabytes_on_disk": sum(file.stat().st_size for file in folder.glob("*.bin")) / 2**20,
        "megabytes_of_memory_beyond_calibration": beyond,
    }


def show(result: dict) -> None:
    dtype = "bf16" if result["screened"] else "fp32"
    print(
        f"{result['n_tokens']:,} tokens, d = {result['d']}, n = {result['n_latents']}, L0 = "
        f"{result['l0']:.2f}, {result['threads']} threads"
    )
    print(
        f"  {result['megabytes_on_disk']:.0f} MB on disk, "
        f"{result['megabytes_of_memory_beyond_calibration']:.0f} MB of memory beyond calibration's"
    )
    floor, rate = result["floor_seconds_of_one_pass"], result["matmul_flops"]
    print(f"  floor of one pass {floor:.2f} s at {rate / 1e12:.2f} TFLOP/s in {dtype}")
    for part, seconds in result["seconds"].items():
        print(f"    {part:<50}{seconds:9.3f} s")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sae", type=Path, help="an SAE's folder")
    options.add_argument("--cache", type=Path, help="an activation cache's folder")
    options.add_argument("--tokens", type=int, default=200_000)
    options.add_argument("--calibration-tokens", type=int, default=50_000)
    options.add_argument("--batch", type=int, default=BLOCK)
    options.add_argument("--folder", type=Path, help="where to leave the store")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    if (given.sae is None) != (given.cache is None):
        options.error("--sae and --cache go together")
    if given.sae:
        cache, sae = ActivationCache(given.cache), SAE.load(given.sae)
        calibration, split = (
            head(cache.split("calibration"), given.calibration_tokens),
            head(cache.split("evaluation"), given.tokens),
        )
    else:
        calibration, split, sae = MadeUp(given.calibration_tokens), MadeUp(given.tokens), made_up_sae()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(sae, calibration, split, given.folder or Path(scratch) / "firings", given.batch)
    print(json.dumps(result, indent=2)) if given.json else show(result)


if __name__ == "__main__":
    main()
