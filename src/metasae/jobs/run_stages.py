"""The stages of a run in plain words, and which of them a run folder still lacks."""

from collections.abc import Sequence
from pathlib import Path

from metasae.jobs.remeasure import is_measured
from metasae.progress.stages import Stage
from metasae.recipe.recipe import Recipe

HARVEST = Stage("harvest", "reading text and harvesting activations", whole=True)
PLANTED = Stage("planted", "making the planted world")
WINDOWS = Stage("windows", "harvesting and training window by window")
ACROSS = Stage("across", "comparing SAEs with each other", whole=True)
EXPLORER = Stage("explorer", "preparing the explorer", whole=True)
REPORT = Stage("report", "writing the report")
# Their weights are solo's, whose measures they take over.
_TWINS = ("control", "sequential")


def training(arms: Sequence[tuple[str, int]]) -> Stage:
    """One SAE, or several side by side."""
    if len(arms) == 1:
        ((arm, seed),) = arms
        return Stage("train", f"training {arm}, seed {seed}", whole=True)
    return Stage("train", f"training {len(arms)} SAEs", whole=True)


def measuring(arm: str, seed: int, arms: tuple[str, ...]) -> Stage:
    """arms: all of the run."""
    takes_over = arm in _TWINS and "solo" in arms
    return Stage("take over" if takes_over else "measure", f"measuring {arm}, seed {seed}", quick=takes_over)


def left(recipe: Recipe, folder: Path, harvested: bool, in_lanes: bool = False) -> list[Stage]:
    """What a run of the recipe into the folder has still to do.

    harvested: whether the activations are there. in_lanes: whether all arms are trained in one stage.
    """
    spec, stages = recipe.measure, []
    places = {(arm, seed): folder / "arms" / f"{arm}-s{seed}" for seed in recipe.seeds for arm in recipe.arms}
    unmeasured = [(arm, seed) for (arm, seed), place in places.items() if not is_measured(place, spec)]
    untrained = [(arm, seed) for (arm, seed), place in places.items() if not (place / "primary" / "cfg.json").exists()]
    if unmeasured and recipe.text.source == "planted":
        stages.append(PLANTED)
    elif not harvested:
        stages.append(HARVEST)
    if unmeasured and untrained:
        together = [untrained] if in_lanes else [[each] for each in untrained]
        stages += [WINDOWS] if recipe.harvest.window_tokens else [training(arms) for arms in together]
    stages += [measuring(arm, seed, recipe.arms) for arm, seed in unmeasured]
    if spec.across and spec.keep_firings:
        stages.append(ACROSS)
    if spec.explorer and spec.keep_firings:
        stages.append(EXPLORER)
    return [*stages, REPORT]
