"""Arms that were measured by other settings than are asked for now, and what is done before they are measured again.

Their weights stay. What each arm was measured by stands in its measures.json (`settings`), so a run that is killed in
between knows which arms are left. What its thresholds were set by stands in the recipe within its SAE's metadata, which
follows.
"""

import shutil
from dataclasses import asdict

from metasae import files
from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.arms.source import Source
from metasae.data.cache.cache import ActivationCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.measures.firing.calibrate import calibrate
from metasae.recipe.recipe import Measure, Recipe
from metasae.sae.layout import CONFIG
from metasae.sae.sae import SAE

CALIBRATES = ("threshold", "calibration_tokens")
# What decides the firings that an arm keeps.
FIRES = (*CALIBRATES, "tokens", "keep_firings")


def is_measured(arm: Arm, spec: Measure) -> bool:
    """Whether an arm's measures.json is there and was made by these settings."""
    return arm.is_measured and not changed_for(arm, spec)


def changed_for(arm: Arm, spec: Measure) -> list[str]:
    """The keys of `measure` whose value differs from what an arm was measured by; none where it is not measured."""
    if not arm.is_measured:
        return []
    # files of earlier releases do not say; their arms were measured by what they were trained with
    return _differing(arm.measures().get("settings") or _settings_within(arm), spec)


def measured_otherwise(run: RunFolder, spec: Measure) -> dict[Arm, list[str]]:
    """Arm -> the keys that changed, of every arm of a run that was measured by other settings, whoever asked for it."""
    arms = run.arms() if (run.folder / "arms").is_dir() else []
    changed = {arm: changed_for(arm, spec) for arm in sorted(arms, key=lambda arm: arm.label)}
    return {arm: keys for arm, keys in changed.items() if keys}


def said_of(otherwise: dict[Arm, list[str]]) -> str:
    """What is measured again and why, in one line."""
    keys = list(dict.fromkeys(key for changed in otherwise.values() for key in changed))
    names = ", ".join(arm.label for arm in otherwise)
    first = "thresholds are set again and the " if set(keys) & set(CALIBRATES) else ""
    changes = ", ".join(f"measure.{key}" for key in keys)
    return f"{changes} changed: {first}measures are made again of {names}; all weights stay"


def bring_up_to_date(recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache, arm: Arm) -> None:
    """Before a trained arm is measured: its thresholds set by the recipe, and the recipe within its SAEs. Nothing where
    they are so already.

    All ranks call this. A process that is killed here leaves an arm that the next one brings up to date.
    """
    ranks = source.ranks
    before = ranks.from_first(_settings_within(arm) if ranks.first else None)
    changed = _differing(before, recipe.measure)
    if ranks.first and set(changed_for(arm, recipe.measure)) & set(FIRES):
        shutil.rmtree(arm.folder / "firings", ignore_errors=True)
    if not changed:
        return
    if ranks.first and arm.is_measured:
        # measures of an earlier release lack their settings, and the SAE's own recipe is about to change
        files.write_json(arm.folder / "measures.json", {"settings": before} | arm.measures())
    sae = _calibrated(arm.sae(), recipe, source, cache) if set(changed) & set(CALIBRATES) else None
    if ranks.first:
        _rewrite(arm, recipe, sae)
    ranks.wait()


def _calibrated(sae: SAE, recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache) -> SAE:
    """The SAE with thresholds by the recipe's rule; thresholds that it learned stay, and their firings are counted
    again.
    """
    if sae.config.metadata["calibration"]["rule"] != "own":
        sae.threshold = None
    split, rule = cache.split("calibration"), recipe.measure.threshold
    calibration = calibrate(sae, split, recipe.train.batch, source.progress, rule, source.ranks)
    sae.config.metadata["calibration"] = asdict(calibration)
    return sae


def _rewrite(arm: Arm, recipe: Recipe, sae: SAE | None) -> None:
    """The recipe's measures within the arm's SAEs; the primary last, as it says by what the thresholds were set.

    sae: with new thresholds.
    """
    if sae is not None:
        sae.save(arm.folder / "primary")
    for place in ("meta", "primary") if arm.has_meta else ("primary",):
        path = arm.folder / place / CONFIG
        config = files.read_json(path)
        config["metadata"]["metasae"]["recipe"]["measure"] = recipe.measure.model_dump(mode="json")
        files.write_json(path, config)


def _settings_within(arm: Arm) -> dict | None:
    """The table `measure` of the recipe that an arm was trained by; None where its SAE does not say."""
    config = read_object(arm.folder / "primary" / CONFIG)
    return config.get("metadata", {}).get("metasae", {}).get("recipe", {}).get("measure")


def _differing(before: dict | None, spec: Measure) -> list[str]:
    """Keys of the settings whose value is another in `before`; a key that an earlier release did not have counts as its
    default.
    """
    if before is None:
        return []
    defaults = Measure().settings
    return [key for key, value in spec.settings.items() if before.get(key, defaults[key]) != value]
