"""Times the training step of the arm `atomic` and of its parts beside solo's, Matryoshka's and joint's.

    python benchmarks/atomic.py                demo-full's shape;  --shape smollm2, --steps 1000, --json

Every training is short, with the times of the nesting as shares of it. All of them take their steps in turn in one
process, since machines drift. A training's time is the sum over twentieths of the training of the median step.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from step import SHAPES, Shape, make_batches

from metasae.device import keep_freed_memory
from metasae.recipe.recipe import Recipe
from metasae.train.trainer import Trainer

SHAPES = SHAPES | {"demo-full": Shape(384, 1536, 32, 512, 138, 4), "smollm2": Shape(576, 2304, 32, 512, 207, 4)}
ROWS = {
    "solo": ("solo", {}),
    "joint": ("joint", {}),
    "Matryoshka, two levels": ("solo", {"sae.architecture": "matryoshka", "sae.prefixes": [0.25, 1.0]}),
    "margin alone": ("atomic", {"train.nest.weight": 0.0}),
    "nesting alone": ("atomic", {"train.margin": 0.0}),
    "atomic": ("atomic", {}),
}


def trainer_of(shape: Shape, arm: str, values: dict, steps: int) -> Trainer:
    base = {
        "sae.n": shape.n,
        "sae.k": shape.k,
        "meta.n": shape.m,
        "meta.k": shape.k_m,
        "train.tokens": steps * shape.batch,
        "train.batch": shape.batch,
    }
    return Trainer(Recipe.load({}, base | values), arm, 0, torch.zeros(shape.d))


def seconds(shape: Shape, steps: int) -> dict[str, list[float]]:
    """For each row the seconds of every primary step, with the meta steps that follow it."""
    trainers = {name: trainer_of(shape, arm, values, steps) for name, (arm, values) in ROWS.items()}
    batches, times = make_batches(shape, 32), {name: [] for name in ROWS}
    for step in range(steps):
        x = batches[step % len(batches)]
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.primary_step(x, with_penalty=False)
            while trainer.next_action() == "meta":
                trainer.meta_step()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="demo-full")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    keep_freed_memory()
    parts = max(1, asked.steps // 20)
    times = seconds(SHAPES[asked.shape], asked.steps)
    step_ms = {}
    for name, row in times.items():
        medians = [statistics.median(row[start : start + parts]) for start in range(0, len(row), parts)]
        step_ms[name] = 1e3 * statistics.mean(medians)
    if asked.json:
        print(json.dumps(step_ms))
        return
    print(f"{asked.shape}, {asked.steps} steps, {torch.get_num_threads()} threads")
    for name, ms in step_ms.items():
        print(f"{name:24s} {ms:6.2f} ms   {ms / step_ms['solo'] - 1:+.0%} of solo")


if __name__ == "__main__":
    main()
