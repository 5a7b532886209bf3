"""Times the Triton kernels and the joint training step on a CUDA device, beside what the device can do.

    python benchmarks/gpu_step.py                     both shapes: GPT-2 large's and Gemma's
    python benchmarks/gpu_step.py --shape paper       one;  --macros 5, --no-dense, --no-tests, --json

First the parity tests run here, compiled for this device, and each kernel is checked against the plain torch ones at full size;
nothing is timed if one fails. A part's floor is the larger of its floating-point operations over the matmul rate measured here
and the bytes that it must move at least once over the copy bandwidth measured here. Whole steps of all engines alternate; medians
are reported. The dense step is `benchmarks/dense.py` in both dtypes. fp32 products are true fp32 everywhere, never TF32.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from dense import DenseJoint
from gpu_captured import CapturedStep
from gpu_clock import milliseconds, seconds_of
from step import N_META, N_PRIMARY, Shape, make_batches

from metasae.recipe import Recipe
from metasae.sae.kernels import fast, kernels, presence, reference
from metasae.sae.optimiser import UnitRowAdam
from metasae.train.trainer import Trainer

SHAPES = {"paper": Shape(1280, 20480, 64, 4096, 1800, 4), "gemma": Shape(3584, 65536, 100, 4096, 5000, 4)}
DEAD = 0.1
PARITY = Path(__file__).parents[1] / "tests" / "sae" / "triton_parity.py"


def rates(device: torch.device, size: int = 8192) -> dict[str, float]:
    """FLOP/s of matmuls in both dtypes and bytes/s of a copy (read and written), on this device, now."""
    out = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out[name] = 2 * size**3 / milliseconds(lambda a=a, b=b: a @ b) * 1e3
    source = torch.empty(size * size * 4, device=device)
    target = torch.empty_like(source)
    out["bytes"] = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3
    return out


def trainer_for(shape: Shape, dtype: str, name: str, device: torch.device, arm: str = "joint", dead: float = 0.0) -> Trainer:
    """A trainer with the kernels of that name, and with their optimiser where they have one."""
    tables = {"tokens": shape.batch * 100_000, "batch": shape.batch, "lr": 3e-4, "dtype": dtype, "k_aux": 0, "dead_after": 10**12}
    recipe = Recipe.load({"sae": {"n": shape.n, "k": shape.k}, "meta": {"n": shape.m, "k": shape.k_m}, "train": tables})
    trainer, module = Trainer(recipe, arm, 0, torch.zeros(shape.d), str(device)), kernels(name)
    trainer.how, trainer.meta_how = replace(trainer.how, kernels=module), replace(trainer.meta_how, kernels=module)
    for learner in (trainer.primary, trainer.meta):
        if learner and name == "triton":
            given = (recipe.train.betas, recipe.train.eps, recipe.train.clip, recipe.train.renormalise)
            learner.optimiser = module.RowAdam(learner.weights, *given, learner.optimiser.norm)
    if dead:
        # silent for longer than the limit, and with encoder rows so short that they are not selected
        count = int(dead * shape.n)
        trainer.primary.weights.W_enc_ND[:count].mul_(1e-3)
        trainer.primary.silent_N[:count] = 2 * 10**12
    return trainer


def dense_for(shape: Shape, dtype: torch.dtype, device: torch.device) -> DenseJoint:
    engine = DenseJoint(shape.d, shape.n, shape.k, shape.m, shape.k_m)
    for sae in (engine.primary, engine.meta):
        for name in ("W_dec", "W_enc", "b_dec"):
            setattr(sae, name, getattr(sae, name).detach().to(device, dtype).requires_grad_())
        sae.adam = torch.optim.Adam([sae.W_dec, sae.W_enc, sae.b_dec], lr=3e-4)
        sae.silent = sae.silent.to(device)
    return engine


def parity(shape: Shape, device: torch.device, batches: list[torch.Tensor]) -> list[tuple[str, float, float]]:
    """(kernel, how far it is from plain torch's on this device, the most it may be) at full size, relative to the largest number."""
    triton = kernels("triton")
    weights = trainer_for(shape, "bf16", "fast", device, "solo").primary.weights
    x, keep = batches[0], shape.k * batches[0].shape[0]
    out = []

    def compare(name: str, ours: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-4) -> None:
        out.append((name, float((ours.float() - wanted.float()).abs().max() / wanted.float().abs().max()), limit))

    from metasae.sae.kernels.triton.encoding import encode_tiles

    pre = encode_tiles(x, weights.W_enc_ND, None, torch.bfloat16)
    compare("encode by tiles", pre, fast.encode(x, weights.W_enc_ND, None, torch.bfloat16), 2e-2)
    kept, _ = fast.select(pre, keep)
    for name, (mine, _) in {
        "select": triton.select(pre, keep),
        "encode_select": triton.encode_select(x, weights.W_enc_ND, None, keep, 0.0, torch.bfloat16),
    }.items():
        same = all(torch.equal(getattr(mine, part), getattr(kept, part)) for part in ("rows", "latents", "values", "offsets"))
        out.append((f"{name}: entries", 0.0 if same else 1.0, 0.0))
    r, squares, dots = triton.residual(kept, weights.W_dec_ND, x)
    wanted = fast.decode(kept, weights.W_dec_ND) - x
    plain_dots = fast.entry_dots(kept, wanted, weights.W_dec_ND)
    compare("decode", triton.decode(kept, weights.W_dec_ND) - x, wanted)
    compare("residual", r, wanted)
    compare("residual: squares", squares, wanted.square().sum(1))
    compare("residual: slopes", dots, plain_dots)
    compare("entry_dots", triton.entry_dots(kept, wanted, weights.W_dec_ND), plain_dots)
    given = (kept, (kept.values, plain_dots), (wanted, x))
    once, again, plain = triton.latent_rows(*given), triton.latent_rows(*given), fast.latent_rows(*given)
    for name, one, two, other in zip(("W_dec", "W_enc"), once, again, plain, strict=True):
        compare(f"latent_rows: {name}", one, other)
        out.append((f"latent_rows: {name} twice the same", float(not torch.equal(one, two)), 0.0))
    some = pre[:, : max(8, int(DEAD * shape.n))]
    out.append(("keep_rows", float(not torch.equal(triton.keep_rows(some, shape.d // 2), reference.keep_rows(some, shape.d // 2))), 0.0))
    out += _parity_of_steps(shape, device, batches)
    return out


def _parity_of_steps(shape: Shape, device: torch.device, batches: list[torch.Tensor]) -> list[tuple[str, float, float]]:
    """Both optimisers on the same gradients; the penalty of both; a few steps of both trainers."""
    one, other = (trainer_for(shape, "fp32", name, device) for name in ("fast", "triton"))
    gradients = one.primary_gradients(batches[0])[2]
    copies = [replace(gradients, **{name: value.clone() for name, value in gradients.tensors().items()}) for _ in range(2)]
    start = one.primary.weights.W_dec_ND.clone()
    for trainer, mine in zip((one, other), copies, strict=True):
        trainer.primary.optimiser.step(mine, 1e-3)
    moved = (one.primary.weights.W_dec_ND - start).abs().max()
    apart = (one.primary.weights.W_dec_ND - other.primary.weights.W_dec_ND).abs().max()
    out = [("RowAdam: what rows moved by", float(apart / moved), 1e-2)]
    values = [trainer._decomposability(torch.zeros_like(start)) for trainer in (one, other)]
    out.append(("penalty", float((values[0][0] - values[1][0]).abs() / values[0][0].clamp(min=1e-12)), 1e-3))
    losses = [[float(trainer.primary_step(batch)[0].total) for batch in batches[:3]] for trainer in (one, other)]
    out.append(("three steps' losses", max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)), 1e-3))
    return out


def parts(shape: Shape, device: torch.device, batches: list[torch.Tensor], rate: dict[str, float]) -> list[tuple[str, float, float]]:
    """(part, ms, floor ms) of the kernels in bf16, and of what they stand in for."""
    from metasae.sae.kernels.triton import encoding

    triton, trainer = kernels("triton"), trainer_for(shape, "bf16", "triton", device)
    weights, meta = trainer.primary.weights, trainer.meta.weights
    x, (n, d, B, m) = batches[0], (shape.n, shape.d, batches[0].shape[0], shape.m)
    keep, dtype = shape.k * B, torch.bfloat16
    kept, cut = triton.encode_select(x, weights.W_enc_ND, None, keep, 0.0, dtype)
    cut_there = torch.full((1,), cut, device=device)
    r, _, dots = triton.residual(kept, weights.W_dec_ND, x)
    gradients, step = trainer.primary_gradients(x)[2], trainer.primary.optimiser
    plain_step = UnitRowAdam(weights, (0.9, 0.999), 1e-8, 1.0, "after")
    into, n_dead = torch.zeros_like(weights.W_dec_ND), int(DEAD * n)
    _, meta_cut = triton.add_penalty(weights.W_dec_ND, meta, shape.k_m, 0.0, True, dtype, 1.0, 0.3, None, into)
    pre = fast.encode(x, weights.W_enc_ND, None, dtype)
    dead = pre[:, :n_dead].contiguous()

    def floor(flops: float = 0, moved: float = 0) -> float:
        return 1e3 * max(flops / rate["bf16"], moved / rate["bytes"])

    out = []
    # W_enc is read in fp32, written and read again in bf16
    encode_floor = floor(2 * B * n * d, 8 * n * d)
    for tiles in (encoding.TILES[dtype], encoding.Tiles(128, 128, 64, 8, 4), encoding.Tiles(128, 128, 64, 4, 3), encoding.Tiles(64, 256, 64, 4, 4)):
        ours, encoding.TILES[dtype] = encoding.TILES[dtype], tiles
        name = f"encode_propose {tiles.rows}x{tiles.columns}x{tiles.depth}, {tiles.warps} warps"
        out.append((name, milliseconds(lambda: triton.encode_propose(x, weights.W_enc_ND, None, keep, cut_there, dtype)), encode_floor))
        encoding.TILES[dtype] = ours
    out += [
        ("encode_select, waited for", milliseconds(lambda: triton.encode_select(x, weights.W_enc_ND, None, keep, cut, dtype)), encode_floor),
        ("  instead of: encode, dense", milliseconds(lambda: fast.encode(x, weights.W_enc_ND, None, dtype)), encode_floor),
        ("  and: select", milliseconds(lambda: triton.select(pre, keep, cut)), floor(moved=pre.nbytes)),
        ("  or: select in torch", milliseconds(lambda: fast.select(pre, keep, cut)), floor(moved=pre.nbytes)),
        ("residual and slopes", milliseconds(lambda: triton.residual(kept, weights.W_dec_ND, x)), floor(moved=4 * n * d + 8 * B * d)),
        ("  instead of: decode", milliseconds(lambda: triton.decode(kept, weights.W_dec_ND)), floor(moved=4 * n * d + 4 * B * d)),
        ("  and: entry_dots", milliseconds(lambda: triton.entry_dots(kept, r, weights.W_dec_ND)), floor(moved=4 * n * d + 4 * B * d)),
        ("latent_rows", milliseconds(lambda: triton.latent_rows(kept, (kept.values, dots), (r, x))), floor(moved=8 * n * d + 8 * B * d)),
        ("  instead of: in torch", milliseconds(lambda: fast.latent_rows(kept, (kept.values, dots), (r, x))), floor(moved=8 * n * d + 8 * B * d)),
        # both matrices: read w, m, v and the gradient twice (its norm comes first), write w, m, v
        ("clip and RowAdam", milliseconds(lambda: step.step(gradients, 0.0)), floor(moved=2 * 4 * n * d * 8)),
        ("  instead of: in torch", milliseconds(lambda: plain_step.step(gradients, 0.0)), floor(moved=2 * 4 * n * d * 8)),
        (
            "add_penalty",
            milliseconds(lambda: triton.add_penalty(weights.W_dec_ND, meta, shape.k_m, meta_cut, True, dtype, 1.0, 0.3, None, into)),
            # W read twice, its bf16 copy written and read, the gradient read and written
            floor(2 * n * m * d, 4 * n * d * 5),
        ),
        (f"keep_rows of {n_dead} columns", milliseconds(lambda: triton.keep_rows(dead, d // 2)), floor(moved=2 * dead.nbytes)),
        ("  instead of: torch.topk", milliseconds(lambda: torch.topk(dead, min(d // 2, n_dead), dim=1)), floor(moved=2 * dead.nbytes)),
        ("meta step", milliseconds(trainer.meta_step), floor(2 * n * m * d, 4 * n * d * 4)),
    ]
    return out


def whole(shape: Shape, batches: list[torch.Tensor], makers: dict, macros: int) -> dict[str, dict[str, float]]:
    """Seconds per step of each engine, meta steps shared out, and the most memory it held. Macro-steps alternate; the first does not count."""
    engines, out = {}, {}
    for name, make in makers.items():
        before = _allocated()
        engines[name] = make()
        _macro(engines[name], batches)
        out[name] = {"peak_bytes": _peak() - before}
    times = {name: [] for name in engines}
    for _ in range(macros):
        for name, engine in engines.items():
            times[name].append(seconds_of(lambda engine=engine: _macro(engine, batches)) / N_PRIMARY)
    for name, engine in engines.items():
        if isinstance(engine, CapturedStep) and not engine.enough():
            sys.exit(f"{name}: the last step's searches found too few or too many candidates, so its time says nothing")
        out[name] |= {"milliseconds": 1e3 * statistics.median(times[name]), "tokens_per_second": batches[0].shape[0] / statistics.median(times[name])}
    return out


def _macro(engine, batches: list[torch.Tensor]) -> None:
    for number in range(N_PRIMARY):
        engine.primary_step(batches[number % len(batches)])
    if getattr(engine, "meta", True):
        for _ in range(N_META):
            engine.meta_step()


def _allocated() -> int:
    """Bytes held on the device now; the peak counts from here."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def measure(name: str, shape: Shape, device: torch.device, given: argparse.Namespace) -> dict:
    rate, batches = rates(device, given.matmul), [batch.to(device) for batch in make_batches(shape)]
    checked = parity(shape, device, batches)
    for kernel, apart, limit in checked:
        if not apart <= limit:
            sys.exit(f"{name}: {kernel} is {apart:.1e} from plain torch, more than {limit:.0e}; nothing was timed")
    gc.collect()
    makers = {
        "triton bf16": lambda: trainer_for(shape, "bf16", "triton", device),
        "triton bf16, dead latents": lambda: trainer_for(shape, "bf16", "triton", device, dead=DEAD),
        "triton bf16 solo": lambda: trainer_for(shape, "bf16", "triton", device, "solo"),
        "torch bf16": lambda: trainer_for(shape, "bf16", "fast", device),
    }
    if not given.no_captured:
        makers["captured bf16, primary only"] = lambda: CapturedStep(trainer_for(shape, "bf16", "triton", device))
    if not given.no_dense:
        makers["dense bf16"] = lambda: _Cast(dense_for(shape, torch.bfloat16, device), torch.bfloat16)
        makers["dense fp32"] = lambda: dense_for(shape, torch.float32, device)
    return {
        "shape": vars(shape),
        "rates": rate,
        "parity": [{"kernel": kernel, "apart": apart, "limit": limit} for kernel, apart, limit in checked],
        "parts": [{"part": part, "ms": ms, "floor_ms": floor} for part, ms, floor in parts(shape, device, batches, rate)],
        "whole": whole(shape, batches, makers, given.macros),
    }


class _Cast:
    """The dense step on activations in its own dtype."""

    def __init__(self, engine: DenseJoint, dtype: torch.dtype):
        self.engine, self.dtype = engine, dtype

    def primary_step(self, x: torch.Tensor):
        return self.engine.primary_step(x.to(self.dtype))

    def meta_step(self):
        return self.engine.meta_step()


def show(name: str, result: dict) -> None:
    rate, shape = result["rates"], result["shape"]
    print(f"\n{name}: {', '.join(f'{key} {value}' for key, value in shape.items())}")
    print(f"  matmul {rate['bf16'] / 1e12:.0f} TFLOP/s bf16, {rate['fp32'] / 1e12:.1f} fp32 (no TF32); copy {rate['bytes'] / 1e12:.2f} TB/s")
    worst = max(result["parity"], key=lambda row: row["apart"])
    print(f"  parity: {len(result['parity'])} checks passed, furthest apart: {worst['kernel']} {worst['apart']:.1e}")
    for row in result["parts"]:
        print(f"    {row['part']:<46}{row['ms']:9.3f} ms  floor {row['floor_ms']:7.3f}  {row['ms'] / max(row['floor_ms'], 1e-9):6.1f}x")
    base = result["whole"].get("dense bf16", {}).get("milliseconds")
    for engine, row in result["whole"].items():
        beside = f"{base / row['milliseconds']:6.1f}x dense bf16" if base else ""
        print(
            f"  {engine:<28}{row['milliseconds']:9.2f} ms {row['tokens_per_second']:12,.0f} tokens/s  {row['peak_bytes'] / 2**30:6.1f} GiB {beside}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    options.add_argument("--macros", type=int, default=5, help="counted macro-steps (10 primary, 5 meta) per engine")
    options.add_argument("--matmul", type=int, default=8192, help="side of the matrices that rates are measured on")
    options.add_argument("--no-dense", action="store_true", help="leave the dense step out")
    options.add_argument("--no-captured", action="store_true", help="leave the CUDA graph out")
    options.add_argument("--no-tests", action="store_true", help="leave the parity tests out (the checks at full size remain)")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu_step.py needs a CUDA device and there is none; run it where there is one (benchmarks/step.py times the step on a CPU)"
        )
    if importlib.util.find_spec("triton") is None:
        sys.exit("benchmarks/gpu_step.py needs the package triton: pip install 'metasae[gpu-kernels]'")
    torch.backends.cuda.matmul.allow_tf32 = False
    if presence.INTERPRETED:
        sys.exit("benchmarks/gpu_step.py times compiled kernels: unset TRITON_INTERPRET")
    if not given.no_tests and subprocess.run([sys.executable, "-m", "pytest", "-q", str(PARITY)], stdout=sys.stderr).returncode:
        sys.exit("the parity tests failed on this device; nothing was timed")
    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if not given.json:
        print(f"{results['device']}, torch {results['torch']}")
    for name in SHAPES if given.shape == "both" else [given.shape]:
        results[name] = measure(name, SHAPES[name], torch.device("cuda"), given)
        gc.collect()
        torch.cuda.empty_cache()
        if not given.json:
            show(name, results[name])
    if given.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
