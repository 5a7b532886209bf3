"""The stages of a run in plain words, and which of them a run folder still lacks."""

from collections.abc import Sequence

from metasae.arms.folder import Arm
from metasae.jobs.remeasure import is_measured
from metasae.progress.stages import Stage
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS, BASELINE, ArmRules

HARVEST = Stage("harvest", "reading text and harvesting activations", whole=True)
PLANTED = Stage("planted", "making the planted world")
WINDOWS = Stage("windows", "harvesting and training window by window")
ACROSS = Stage("across", "comparing SAEs with each other", whole=True)
EXPLORER = Stage("explorer", "preparing the explorer", whole=True)
REPORT = Stage("report", "writing the report")


def training(arms: Sequence[Arm]) -> Stage:
    """One SAE, or several side by side."""
    what = f"{arms[0].name}, seed {arms[0].seed}" if len(arms) == 1 else f"{len(arms)} SAEs"
    return Stage("train", f"training {what}", whole=True)


def measuring(arm: str, seed: int, arms: Sequence[str] = ()) -> Stage:
    """arms: all of the run. One with the baseline's primary SAE takes over the measures of that."""
    takes_over = BASELINE in arms and ARMS.get(arm, ArmRules()).keeps_primary
    return Stage("take over" if takes_over else "measure", f"measuring {arm}, seed {seed}", quick=takes_over)


def left(recipe: Recipe, arms: Sequence[Arm], harvested: bool, in_lanes: bool = False) -> list[Stage]:
    """What a run of the recipe with these arms has still to do.

    harvested: whether the activations are there. in_lanes: whether all arms are trained in one stage.
    """
    spec, stages = recipe.measure, []
    unmeasured = [arm for arm in arms if not is_measured(arm, spec)]
    untrained = [arm for arm in arms if not arm.is_trained]
    if unmeasured and recipe.text.source == "planted":
        stages.append(PLANTED)
    elif not harvested:
        stages.append(HARVEST)
    if unmeasured and untrained:
        together = [untrained] if in_lanes else [[arm] for arm in untrained]
        stages += [WINDOWS] if recipe.harvest.window_tokens else map(training, together)
    stages += [measuring(arm.name, arm.seed, recipe.arms) for arm in unmeasured]
    if spec.across and spec.keep_firings:
        stages.append(ACROSS)
    if spec.explorer and spec.keep_firings:
        stages.append(EXPLORER)
    return [*stages, REPORT]
