"""The stages that a run still has to do, and the arms that were measured by other settings than the recipe has now:
they are brought up to date and measured again.

The weights of such arms stay. The settings an arm was measured by are in its measures.json (`settings`), so a run that
is killed in between knows which arms are left. The settings of its thresholds are in the recipe within its SAE's
metadata, which is updated too.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict

from metasae import files
from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.arms.source import Source
from metasae.data.cache.cache import ActivationCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.measures.firing.calibrate import calibrate
from metasae.progress.stages import Stage
from metasae.recipe.recipe import GIVEN as IS_GIVEN
from metasae.recipe.recipe import Measure, Recipe
from metasae.recipe.registry import ARMS, BASELINE, INIT, ArmRules
from metasae.sae.layout import CONFIG
from metasae.sae.sae import SAE

HARVEST = Stage("harvest", "reading text and harvesting activations", whole=True)
PLANTED = Stage("planted", "making the planted world")
GIVEN = Stage("given", "opening the given activations")
WINDOWS = Stage("windows", "harvesting and training window by window")
ACROSS = Stage("across", "comparing SAEs with each other", whole=True)
EXPLORER = Stage("explorer", "preparing the explorer", whole=True)
REPORT = Stage("report", "writing the report")
CALIBRATES = ("threshold", "calibration_tokens")
# The keys that decide the firings that an arm keeps.
FIRES = (*CALIBRATES, "tokens", "keep_firings")
# {key: what releases without this key did}, where that differs from the key's default.
FORMERLY = {"critics": 1}


def is_measured(arm: Arm, spec: Measure) -> bool:
    """Whether an arm has a measures.json that was made by these settings."""
    return arm.is_measured and not changed_for(arm, spec)


def changed_for(arm: Arm, spec: Measure) -> list[str]:
    """The keys of `measure` whose value differs from the one an arm was measured by; [] if it is not measured."""
    # files of earlier releases have no settings; their arms were measured by the recipe they were trained by
    return _differing(arm.measures().get("settings") or _settings_within(arm), spec) if arm.is_measured else []


def measured_otherwise(run: RunFolder, spec: Measure) -> dict[Arm, list[str]]:
    """{arm: the keys that changed} for every arm in the run folder that was measured by other settings, also arms that
    this call does not name.
    """
    arms = run.arms() if (run.folder / "arms").is_dir() else []
    changed = {arm: changed_for(arm, spec) for arm in sorted(arms, key=lambda arm: arm.label)}
    return {arm: keys for arm, keys in changed.items() if keys}


def said_of(otherwise: dict[Arm, list[str]]) -> str:
    """One line on which arms are measured again and why."""
    keys = list(dict.fromkeys(key for changed in otherwise.values() for key in changed))
    names = ", ".join(arm.label for arm in otherwise)
    first = "thresholds are set again and " if set(keys) & set(CALIBRATES) else ""
    changes = ", ".join(f"measure.{key}" for key in keys)
    return f"{changes} changed: {first}{names} are measured again; all weights stay"


def bring_up_to_date(recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache, arm: Arm) -> None:
    """Before a trained arm is measured: sets its thresholds by the recipe, and updates the recipe within its SAEs. Does
    nothing if both are up to date.

    All ranks call this. If a process is killed here, the next call brings the arm up to date.
    """
    ranks = source.ranks
    before = ranks.from_first(_settings_within(arm) if ranks.first else None)
    changed = _differing(before, recipe.measure)
    if ranks.first and set(changed_for(arm, recipe.measure)) & set(FIRES):
        shutil.rmtree(arm.folder / "firings", ignore_errors=True)
    if not changed:
        return
    if ranks.first and arm.is_measured:
        # measures of an earlier release lack their settings, which are only in the SAE's recipe, and that changes below
        files.write_json(arm.folder / "measures.json", {"settings": before} | arm.measures())
    sae = _calibrated(arm.sae(), recipe, source, cache) if set(changed) & set(CALIBRATES) else None
    if ranks.first:
        _rewrite(arm, recipe, sae)
    ranks.wait()


def _calibrated(sae: SAE, recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache) -> SAE:
    """The SAE with thresholds by the recipe's rule. Thresholds that it learned stay; their firings are counted
    again.
    """
    if sae.config.metadata["calibration"]["rule"] != "own":
        sae.threshold = None
    split, rule = cache.split("calibration"), recipe.measure.threshold
    calibration = calibrate(sae, split, recipe.train.batch, source.progress, rule, source.ranks)
    sae.config.metadata["calibration"] = asdict(calibration)
    return sae


def _rewrite(arm: Arm, recipe: Recipe, sae: SAE | None) -> None:
    """Writes the recipe's table `measure` into the arm's SAEs; the primary last, as it is the record of how thresholds
    were set.

    sae: the SAE with new thresholds, None if they did not change.
    """
    if sae is not None:
        sae.save(arm.folder / "primary")
    for place in ("meta", "primary") if arm.has_meta else ("primary",):
        path = arm.folder / place / CONFIG
        config = files.read_json(path)
        config["metadata"]["metasae"]["recipe"]["measure"] = recipe.measure.model_dump(mode="json")
        files.write_json(path, config)


def _settings_within(arm: Arm) -> dict | None:
    """The table `measure` of the recipe that an arm was trained by; None if its SAE does not contain it."""
    config = read_object(arm.folder / "primary" / CONFIG)
    return config.get("metadata", {}).get("metasae", {}).get("recipe", {}).get("measure")


def _differing(before: dict | None, spec: Measure) -> list[str]:
    """The keys of the settings whose value differs in `before`. A key that an earlier release lacked counts as what
    that release did.
    """
    if before is None:
        return []
    defaults = Measure().settings
    return [key for key, value in spec.settings.items() if before.get(key, (defaults | FORMERLY)[key]) != value]


def training(arms: Sequence[Arm]) -> Stage:
    """The stage that trains one SAE, or several side by side."""
    what = f"{arms[0].name}, seed {arms[0].seed}" if len(arms) == 1 else f"{len(arms)} SAEs"
    return Stage("train", f"training {what}", whole=True)


def measuring(arm: str, seed: int, arms: Sequence[str] = ()) -> Stage:
    """The stage that measures an arm. arms: all arms of the run; one that has the baseline's primary SAE takes over the
    baseline's measures.
    """
    takes_over = BASELINE in arms and ARMS.get(arm, ArmRules()).keeps_primary
    return Stage("take over" if takes_over else "measure", f"measuring {arm}, seed {seed}", quick=takes_over)


def opening(recipe: Recipe) -> Stage:
    """The stage that makes or opens activations without a model."""
    return GIVEN if recipe.text.source == IS_GIVEN else PLANTED


def left(recipe: Recipe, arms: Sequence[Arm], harvested: bool, in_lanes: bool = False) -> list[Stage]:
    """The stages that a run of the recipe with these arms still has to do.

    harvested: whether the activations exist. in_lanes: whether all arms are trained in one stage.
    """
    spec, stages = recipe.measure, []
    unmeasured = [arm for arm in arms if not is_measured(arm, spec)]
    untrained = [arm for arm in arms if not arm.is_trained and arm.name != INIT]
    if unmeasured and not recipe.reads_text:
        stages.append(opening(recipe))
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
