"""Times the joint training step: whole, and part by part beside each part's floor.

    python benchmarks/step.py                  both shapes, bf16 and fp32, the dense step beside them
    python benchmarks/step.py --shape small    one shape;  --steps 20, --dead 0.3, --json

Whole steps of all engines alternate in one process and medians are reported, since machines drift. A floor is the
part's floating-point operations over the matmul rate measured here, or its bytes over the copy bandwidth measured here.
The dense step is `benchmarks/dense.py`. SAELens's BatchTopK trainer is timed as well when it is installed.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from dense import DenseJoint
from peers import peers

from metasae.device import keep_freed_memory
from metasae.recipe.recipe import Recipe
from metasae.sae.kernels import fast
from metasae.train.trainer import Trainer

N_PRIMARY, N_META = 10, 5


@dataclass(frozen=True)
class Shape:
    d: int
    n: int
    k: int
    batch: int
    m: int
    k_m: int


SHAPES = {"small": Shape(384, 3072, 32, 2048, 276, 4), "large": Shape(1280, 20480, 64, 4096, 1800, 4)}


def milliseconds(call, repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def rates() -> dict[str, float]:
    """FLOP/s of matmuls in both dtypes and bytes/s of a copy (read and written), on this machine, now."""
    out = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
        out[name] = 2 * 2048 * 1024 * 4096 / milliseconds(lambda a=a, b=b: a @ b) * 1e3
    source, target = torch.randn(32 << 20), torch.empty(32 << 20)
    out["bytes"] = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3
    return out


def make_batches(shape: Shape, count: int = 8) -> list[torch.Tensor]:
    """Sparse combinations of 2 d directions with E||x||^2 near d, so that selection meets a realistic tail."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * shape.d, shape.d, generator=generator)
    out = []
    for _ in range(count):
        codes = torch.rand(shape.batch, 2 * shape.d, generator=generator)
        x = (codes * (codes > 0.97)) @ directions
        out.append(x * (shape.d / x.square().sum(1).mean()).sqrt())
    return out


def trainer_for(shape: Shape, dtype: str, dead: float = 0.0, arm: str = "joint") -> Trainer:
    recipe = Recipe.load(
        {
            "sae": {"n": shape.n, "k": shape.k},
            "meta": {"n": shape.m, "k": shape.k_m},
            "train": {
                "tokens": shape.batch * 100_000,
                "batch": shape.batch,
                "lr": 3e-4,
                "dtype": dtype,
                "k_aux": 0,
                "dead_after": 10**12,
            },
        }
    )
    trainer = Trainer(recipe, arm, 0, torch.zeros(shape.d))
    if dead:
        # silent for longer than the limit, and with encoder rows so short that they are not selected
        count = int(dead * shape.n)
        trainer.primary.weights.W_enc_ND[:count].mul_(1e-3)
        trainer.primary.silent_N[:count] = 2 * 10**12
    return trainer


def macro_steps(engine, batches: list[torch.Tensor], n_primary: int = N_PRIMARY, n_meta: int = N_META):
    """Yields the seconds of one primary step plus its share of the meta steps, over whole macro-steps."""
    position = 0
    while True:
        start = time.perf_counter()
        for _ in range(n_primary):
            engine.primary_step(batches[position % len(batches)])
            position += 1
        if getattr(engine, "meta", True):
            for _ in range(n_meta):
                engine.meta_step()
        yield (time.perf_counter() - start) / n_primary


def whole(shape: Shape, batches: list[torch.Tensor], engines: dict, macros: int) -> dict[str, float]:
    """Median seconds per step of each engine; macro-steps alternate between engines after one of warm-up each."""
    # our step is so much shorter than others' that 2 primary and 1 meta steps, the same mix, stand for their macro-step
    short = {"n_primary": 2, "n_meta": 1}
    runs = {
        name: macro_steps(engine, batches, **({} if isinstance(engine, Trainer) else short))
        for name, engine in engines.items()
    }
    for run in runs.values():
        next(run)
    times = {name: [] for name in runs}
    for _ in range(macros):
        for name, run in runs.items():
            times[name].append(next(run))
    return {name: statistics.median(values) for name, values in times.items()}


def parts(
    shape: Shape, batches: list[torch.Tensor], trainer: Trainer, rate: dict[str, float]
) -> list[tuple[str, float, float]]:
    """(part, ms, floor ms) of one bf16 primary step, and of the penalty and a meta step."""
    w, x = trainer.primary.weights, batches[0]
    pre = fast.encode(x, w.W_enc_ND, None, torch.bfloat16)
    kept, cut = fast.select(pre, shape.k * shape.batch)
    dots = fast.entry_dots(kept, x, w.W_dec_ND)
    gathered = kept.values.numel() * shape.d * 4

    def flops(rows: float, n: float) -> float:
        """Milliseconds of a product."""
        return 2 * rows * shape.d * n / rate["bf16"] * 1e3

    def moved(count: float) -> float:
        """Milliseconds to move so many bytes."""
        return count / rate["bytes"] * 1e3

    gradients = trainer.primary_gradients(x)[2]
    numel = 2 * shape.n * shape.d
    return [
        ("encode", milliseconds(lambda: fast.encode(x, w.W_enc_ND, None, torch.bfloat16)), flops(shape.batch, shape.n)),
        ("select", milliseconds(lambda: fast.select(pre, shape.k * shape.batch, cut)), moved(pre.nbytes)),
        ("decode", milliseconds(lambda: fast.decode(kept, w.W_dec_ND)), moved(gathered)),
        ("slopes of entries", milliseconds(lambda: fast.entry_dots(kept, x, w.W_dec_ND)), moved(gathered)),
        (
            "weight gradients",
            milliseconds(lambda: fast.latent_rows(kept, (kept.values, dots), (x, x))),
            moved(2 * gathered + numel * 4),
        ),
        (
            "clip, project, Adam, renorm",
            milliseconds(lambda: trainer.primary.optimiser.step(gradients, 0.0)),
            moved(numel * 4 * 7),
        ),
        ("penalty", milliseconds(lambda: trainer._decomposability(None)), flops(shape.n, shape.m)),
        ("meta step / 2", milliseconds(trainer.meta_step) / 2, flops(shape.n, shape.m) / 2),
    ]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    options.add_argument("--macros", type=int, default=3, help="counted macro-steps (10 primary, 5 meta) per engine")
    options.add_argument("--dead", type=float, default=0.3, help="share of dead latents in the run with them")
    options.add_argument("--no-dense", action="store_true", help="leave the dense step out (it is slow)")
    options.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    keep_freed_memory()
    results = {}
    for name in SHAPES if given.shape == "both" else [given.shape]:
        results[name] = measure(SHAPES[name], given)
        if not given.json:
            show(name, SHAPES[name], results[name])
    if given.json:
        print(json.dumps(results, indent=2))


def measure(shape: Shape, given: argparse.Namespace) -> dict:
    rate, batches = rates(), make_batches(shape)
    before = peak_megabytes()
    engines = {"bf16": trainer_for(shape, "bf16")}
    next(macro_steps(engines["bf16"], batches))
    state = 4 * (4 * 2 * shape.n * shape.d + 4 * 2 * shape.m * shape.d) / 2**20
    beyond = peak_megabytes() - before - state
    engines |= {
        "fp32": trainer_for(shape, "fp32"),
        "bf16, dead latents": trainer_for(shape, "bf16", given.dead),
        "bf16 solo": trainer_for(shape, "bf16", arm="solo"),
        "fp32 solo": trainer_for(shape, "fp32", arm="solo"),
    }
    if not given.no_dense:
        engines["dense fp32"] = DenseJoint(shape.d, shape.n, shape.k, shape.m, shape.k_m)
    if not given.no_peers:
        engines |= peers(shape.d, shape.n, shape.k, shape.batch)
    seconds = whole(shape, batches, engines, given.macros)
    table = parts(shape, batches, trainer_for(shape, "bf16"), rate)
    return {
        "shape": vars(shape),
        "rates": rate,
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: shape.batch / value for name, value in seconds.items()},
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "parts": [{"part": part, "ms": ms, "floor_ms": floor} for part, ms, floor in table],
        "megabytes_beyond_weights_and_optimiser": beyond,
    }


def show(name: str, shape: Shape, result: dict) -> None:
    rate = result["rates"]
    print(f"\n{name}: {shape}")
    print(
        f"  matmul {rate['bf16'] / 1e12:.2f} TFLOP/s bf16, {rate['fp32'] / 1e12:.2f} fp32; copy "
        f"{rate['bytes'] / 1e9:.1f} GB/s",
        end="; ",
    )
    print(f"{result['threads']} threads")
    base = result["milliseconds"].get("dense fp32")
    for engine, ms in result["milliseconds"].items():
        times = f"{base / ms:6.1f}x the dense step" if base else ""
        print(f"  {engine:<27}{ms:9.1f} ms {result['tokens_per_second'][engine]:10,.0f} tokens/s {times}")
    print(f"  memory beyond weights and optimiser: {result['megabytes_beyond_weights_and_optimiser']:.0f} MB")
    total = result["milliseconds"]["bf16"]
    for row in result["parts"]:
        print(
            f"    {row['part']:<28}{row['ms']:9.2f} ms  floor {row['floor_ms']:8.2f}  "
            f"{100 * row['ms'] / total:5.1f}% of the step"
        )


if __name__ == "__main__":
    main()
