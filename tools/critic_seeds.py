"""How far critics of other seeds differ, beside the error that a comparison prints: ten critics on SAEs of one run.

    python tools/critic_seeds.py RUN [--critics 10] [--seed 0]

Each SAE of one seed is judged by so many critics, one by one. Printed for each score: the standard deviation over
critics; the error (standard error, and half of the 95% interval by Student's t) that five critics print; and how often
that interval, of every five of the ten, holds the mean of the other five. Likewise for each arm minus solo.
"""

import argparse
import math
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import torch

from metasae.arms.folder import Arm, RunFolder
from metasae.intervals.crossed import t_half_width
from metasae.measures.firing.store import open_firings
from metasae.measures.rows.critic import by_score, judge_beside_floors
from metasae.measures.rows.decomposability import _live_rows
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE

PRINTED = 5
SCORES = tuple(kind + floor for floor in ("", "_excess", "_excess_over_gaussian") for kind in ("ve", "ve_heldout"))


def critics_of(arm: Arm, recipe: Recipe, count: int) -> dict[str, list[float]]:
    """Score -> its values by critic seeds 0, 1, 2 ..."""
    sae, spec = arm.sae(), recipe.measure
    live = open_firings(arm.folder / "firings").counts() > 0
    m = max(1, round(spec.meta_n * sae.n_latents))
    with torch.no_grad():
        judged = judge_beside_floors(
            _live_rows(sae, live), m, spec.meta_k, spec.meta_steps, range(count), recipe.train.dtype
        )
    return by_score(judged)


def share_covered(values: list[float]) -> float:
    """How often the interval of five critics holds the mean of the others, which has an error of its own."""
    inside = []
    for chosen in combinations(range(len(values)), PRINTED):
        printed = [values[i] for i in chosen]
        others = [value for i, value in enumerate(values) if i not in chosen]
        # the others' mean errs as well, so the distance has both variances
        variance = stdev(printed) ** 2 / PRINTED
        widened = variance * (1 + PRINTED / len(others))
        inside.append(abs(fmean(printed) - fmean(others)) <= t_half_width(widened, PRINTED))
    return fmean(inside)


def show(name: str, values: list[float]) -> None:
    error = stdev(values[:PRINTED]) / math.sqrt(PRINTED)
    print(
        f"{name:48} mean {100 * fmean(values):+.3f} pp  sd {100 * stdev(values):.3f}  range "
        f"{100 * min(values):+.3f} to {100 * max(values):+.3f}  printed {100 * fmean(values[:PRINTED]):+.3f} +- "
        f"{100 * t_half_width(error**2, PRINTED):.3f} (se {100 * error:.3f})  covers {share_covered(values):.0%}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--critics", type=int, default=2 * PRINTED)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    recipe = Recipe.load(given.run / "recipe.toml")
    run = RunFolder(given.run)
    arms = [arm for arm in run.trained() if arm.seed == given.seed]
    by_arm = {arm.name: critics_of(arm, recipe, given.critics) for arm in arms}
    for name, scores in by_arm.items():
        for score in SCORES:
            show(f"{name} {score}", scores[score])
            if name != BASELINE and BASELINE in by_arm:
                pairs = zip(scores[score], by_arm[BASELINE][score], strict=True)
                show(f"{name} - {BASELINE} {score}", [one - other for one, other in pairs])


if __name__ == "__main__":
    main()
