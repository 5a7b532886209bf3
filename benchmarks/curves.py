"""Cost curves of this machine: how the time of a training step and of the phi counts grows with each number alone.

    python benchmarks/curves.py --out DIR          writes curves.json, curves.md and curves.png there
    --only step | phi, --quick (tiny shapes, seconds: it shows that the command works, not what anything costs)

The step is that of `benchmarks/step.py`: fast kernels, bf16, 10 primary to 5 meta steps, warm. Each number is varied
alone about a base shape, but for m, which is 9% of n throughout. Points of a series take turns, round after round, so
that a machine that drifts is as unkind to each; medians and quartiles over rounds, and power laws fitted to the medians
(`curves_fit.py`).

The cost model of a step, with F = FLOP/s of a bf16 product and M = bytes/s of a copy, both measured here first:

    (2Bnd + 3nmd) / F + (2Bn + 16kBd + 64nd) / M

3nmd: the penalty's encoding of all rows, 2nmd, and half a meta step's; not in a solo step. 2Bn: selection reads the
pre-activations. 16kBd: rows gathered by decoding, slopes and both weight gradients. 64nd: gradients written, and clip,
projection and Adam. It is the sum of the floors of `step.py`'s parts, which are timed at both ends of every series to
show where measurement and model part. For the phi counts see `curves_phi.py`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from curves_fit import Point, Series, round_robin
from curves_phi import Store, phi_series
from curves_show import draw, tables
from step import Shape, macro_steps, make_batches, parts, rates, trainer_for

from metasae.device import keep_freed_memory
from metasae.doctor.estimate import PROCESS, train_bytes
from metasae.doctor.machine import machine, peak_resident
from metasae.measures.firing.firings import BLOCKS
from metasae.recipe.recipe import Recipe

LIMIT = 8 * 10**9
# the mix of a macro-step of 10 and 5, in shorter turns
N_PRIMARY, N_META = 4, 2


@dataclass(frozen=True)
class Plan:
    """What is measured: a base, the values of each number that is varied about it (with the base's own), and counted
    rounds."""

    shape: Shape
    shapes: dict[str, tuple[int, ...]]
    arms: tuple[int, ...]
    step_rounds: int
    store: Store
    stores: dict[str, tuple[int, ...]]
    phi_rounds: int


FULL = Plan(
    Shape(384, 8192, 32, 2048, 737, 4),
    {
        "n": (2048, 4096, 8192, 16384, 40960),
        "d": (128, 256, 384, 768, 1536),
        "k": (8, 16, 32, 64, 128, 256),
        "B": (512, 1024, 2048, 4096, 8192),
    },
    (1, 2, 3, 4),
    9,
    Store(100_000, 32, 4096),
    {
        "tokens": (25_000, 50_000, 100_000, 200_000, 400_000),
        "L0": (8, 16, 32, 64, 128),
        "latents": (1024, 2048, 4096, 8192, 16384),
    },
    5,
)
QUICK = Plan(
    Shape(64, 512, 8, 256, 46, 4),
    {"n": (256, 512, 1024), "d": (32, 64, 128), "k": (4, 8, 16), "B": (128, 256, 512)},
    (1, 2),
    3,
    Store(4000, 8, 256),
    {"tokens": (2000, 4000, 8000), "L0": (4, 8, 16), "latents": (128, 256, 512)},
    2,
)


def shape_with(base: Shape, varied: str, value: int) -> Shape:
    if varied == "n":
        return replace(base, n=value, m=round(0.09 * value))
    return replace(base, **{"batch" if varied == "B" else varied: value})


def flops(shape: Shape, joint: bool = True) -> float:
    """Of the dense products of a step with its share of meta steps."""
    return 2.0 * shape.batch * shape.n * shape.d + joint * penalty_flops(shape)


def penalty_flops(shape: Shape) -> float:
    return 3.0 * shape.n * shape.m * shape.d


def model_seconds(shape: Shape, rate: dict[str, float], joint: bool = True) -> float:
    """See the head of this file."""
    moved = 2 * shape.batch * shape.n + 16 * shape.k * shape.batch * shape.d + 64 * shape.n * shape.d
    return flops(shape, joint) / rate["bf16"] + moved / rate["bytes"]


def affordable(shapes: dict[float, Shape], engines: int, limit: int) -> tuple[dict[float, Shape], dict[float, str]]:
    """(the shapes whose trainers, `engines` each, fit together into `limit` bytes, why the others were left out)."""
    kept, skipped, in_memory, passing = {}, {}, PROCESS, 0
    for x, shape in sorted(shapes.items()):
        recipe = Recipe.load(
            {
                "sae": {"n": shape.n, "k": shape.k},
                "meta": {"n": shape.m, "k": shape.k_m},
                "train": {"batch": shape.batch},
            }
        )
        peak, weights = train_bytes(recipe, shape.d, 2)
        # batches are drawn from as many codes as twice the width, in fp32
        lasting, most = (
            in_memory + engines * weights + 16 * shape.batch * shape.d,
            max(passing, peak - weights, 24 * shape.batch * shape.d),
        )
        if lasting + most > limit:
            skipped[x] = (
                f"it would take {(lasting + most) / 1e9:.1f} GB with the points before it, and "
                f"{limit / 1e9:.1f} is the limit"
            )
        else:
            kept[x], in_memory, passing = shape, lasting, most
    return kept, skipped


def step_series(plan: Plan, varied: str, rate: dict[str, float], limit: int = LIMIT) -> list[Series]:
    """The joint step against one number, and against n the solo step and what the joint one takes beyond it."""
    arms = ("joint", "solo") if varied == "n" else ("joint",)
    shapes, skipped = affordable(
        {float(x): shape_with(plan.shape, varied, x) for x in plan.shapes[varied]}, len(arms), limit
    )
    if not shapes:
        return [Series(varied, "joint step", (), "s", skipped)]
    times = round_robin({x: step_sampler(shape, arms) for x, shape in shapes.items()}, plan.step_rounds)
    asked = {
        "joint": lambda shape: (model_seconds(shape, rate), flops(shape)),
        "solo": lambda shape: (model_seconds(shape, rate, False), flops(shape, False)),
        "penalty and meta": lambda shape: (penalty_flops(shape) / rate["bf16"], penalty_flops(shape)),
    }
    return [
        Series(
            varied,
            f"{name} step" if name in arms else name,
            tuple(Point(x, by_x[x], *asked[name](shapes[x])) for x in shapes),
            "s",
            skipped,
        )
        for name, by_x in times.items()
    ]


def step_sampler(shape: Shape, arms: tuple[str, ...]) -> Callable[[], dict[str, float]]:
    """A call gives the seconds of a primary step with its share of meta steps of every arm, and the difference of two.
    Warm from the first."""
    batches = make_batches(shape, 4)
    runs = {arm: macro_steps(trainer_for(shape, "bf16", arm=arm), batches, N_PRIMARY, N_META) for arm in arms}
    for run in runs.values():
        next(run)

    def sample() -> dict[str, float]:
        by_x = {arm: next(run) for arm, run in runs.items()}
        return by_x | ({"penalty and meta": by_x["joint"] - by_x["solo"]} if len(arms) > 1 else {})

    return sample


def ends(plan: Plan, rate: dict[str, float], limit: int = LIMIT) -> dict[str, list[tuple[str, float, float]]]:
    """(part, ms, floor ms) of the base's step and of the first and last shape of every series that fits into `limit`
    bytes."""
    chosen = {"base": plan.shape}
    for varied, values in plan.shapes.items():
        chosen |= {f"{varied} = {value:,}": shape_with(plan.shape, varied, value) for value in (values[0], values[-1])}
    return {
        name: parts(shape, make_batches(shape, 1), trainer_for(shape, "bf16"), rate)
        for name, shape in chosen.items()
        if affordable({0.0: shape}, 1, limit)[0]
    }


def arms_series(plan: Plan, rate: dict[str, float]) -> Series:
    """One step of every arm, arms trained in turn as a run trains them: each is made anew, warmed, timed and given up
    before the next."""
    batches = make_batches(plan.shape, 4)

    def sample(count: int) -> dict[str, float]:
        seconds = 0.0
        for _ in range(count):
            trainer = trainer_for(plan.shape, "bf16")
            next(macro_steps(trainer, batches, 1, 1))
            seconds += next(macro_steps(trainer, batches, N_PRIMARY, N_META))
        return {"joint steps": seconds}

    sample(1)
    by_x = round_robin({float(count): partial(sample, count) for count in plan.arms}, plan.step_rounds)["joint steps"]
    one = model_seconds(plan.shape, rate), flops(plan.shape)
    return Series(
        "arms", "joint steps", tuple(Point(x, seconds, x * one[0], x * one[1]) for x, seconds in by_x.items())
    )


def measure(plan: Plan, only: str | None = None) -> tuple[list[Series], dict, dict]:
    """All series, the parts of the step at their ends, and the facts of the machine with the rates and the minutes it
    took."""
    start, here = time.perf_counter(), machine()
    facts = {key: here[key] for key in ("cpu", "cores", "threads", "torch", "bf16")} | {"dtype": "bf16"}
    series, at_ends = [], {}
    if only != "phi":
        facts["rates"] = rates()
        for varied in plan.shapes:
            series += step_series(plan, varied, facts["rates"])
            _say(series[-1], start)
        series.append(arms_series(plan, facts["rates"]))
        _say(series[-1], start)
        at_ends = ends(plan, facts["rates"])
    if only != "step":
        for varied in plan.stores:
            series += phi_series(plan.store, varied, plan.stores[varied], plan.phi_rounds, LIMIT)
            _say(series[-1], start)
    return series, at_ends, facts | {"minutes": (time.perf_counter() - start) / 60, "peak_bytes": peak_resident()}


def _say(done: Series, start: float) -> None:
    print(
        f"{done.varied}: {len(done.points)} points, {len(done.skipped)} left out; "
        f"{(time.perf_counter() - start) / 60:.1f} min",
        flush=True,
    )


def worded(plan: Plan, facts: dict, only: str | None) -> list[str]:
    """The paragraphs above the tables."""
    shape, store = plan.shape, plan.store
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}; "
        f"{facts['minutes']:.1f} minutes, at most {facts['peak_bytes'] / 1e9:.1f} GB."
    ]
    if only != "phi":
        rate = facts["rates"]
        lines.append(
            f"Steps: bf16 products ({rate['bf16'] / 1e12:.2f} TFLOP/s measured; copies "
            f"{rate['bytes'] / 1e9:.1f} GB/s), base d={shape.d} n={shape.n} "
            f"k={shape.k} B={shape.batch} m={shape.m} k_m={shape.k_m}, m = 0.09n; medians of "
            f"{plan.step_rounds} rounds of {N_PRIMARY} primary and "
            f"{N_META} meta steps, per primary step."
        )
    if only != "step":
        lines.append(
            f"phi: base {store.tokens:,} tokens, L0 {store.l0}, n {store.latents:,}, Zipf-like rates, {BLOCKS} blocks; "
            f"medians of {plan.phi_rounds} rounds."
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for curves.json, curves.md and curves.png")
    options.add_argument("--only", choices=["step", "phi"])
    options.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    given = options.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    plan = QUICK if given.quick else FULL
    series, at_ends, facts = measure(plan, given.only)
    listed = {
        name: [dict(zip(("part", "ms", "floor_ms"), part, strict=True)) for part in by_x]
        for name, by_x in at_ends.items()
    }
    by_x = {"machine": facts, "plan": asdict(plan), "series": [s.as_dict() for s in series], "parts": listed}
    (given.out / "curves.json").write_text(json.dumps(by_x, indent=2) + "\n")
    (given.out / "curves.md").write_text(tables(series, at_ends, worded(plan, facts, given.only)))
    draw(series, given.out / "curves.png")


if __name__ == "__main__":
    main()
