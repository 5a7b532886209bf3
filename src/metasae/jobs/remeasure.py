"""Arms that were measured by other settings than are asked for now: which they are, and what is done before they are measured again.

Their weights stay. What each arm was measured by stands in its measures.json (`settings`), so a run that is killed in between knows
which arms are left. What its thresholds were set by stands in the recipe within its SAE's metadata, which follows.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from metasae import files
from metasae.compare.compare import ARM_FOLDER
from metasae.data.cache.cache import ActivationCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.measures.firing.calibrate import calibrate
from metasae.progress.progress import Progress
from metasae.ranks.ranks import Ranks
from metasae.recipe.recipe import Measure, Recipe
from metasae.sae.layout import CONFIG
from metasae.sae.sae import SAE

CALIBRATES = ("threshold", "calibration_tokens")
# What decides the firings that an arm keeps.
FIRES = (*CALIBRATES, "tokens", "keep_firings")


def is_measured(folder: Path, spec: Measure) -> bool:
    """Whether an arm's measures.json is there and was made by these settings."""
    return _measures_at(folder) is not None and not changed_for(folder, spec)


def changed_for(folder: Path, spec: Measure) -> list[str]:
    """The keys of `measure` whose value differs from what an arm was measured by; none where it is not measured."""
    measures = _measures_at(folder)
    if measures is None:
        return []
    # files of earlier releases do not say; their arms were measured by what they were trained with
    return _differing(measures.get("settings") or _recipe_within(folder / "primary").get("measure"), spec)


def measured_otherwise(run_folder: Path, spec: Measure) -> dict[tuple[str, int], list[str]]:
    """(arm, seed) -> the keys that changed, of every arm of a run that was measured by other settings, whoever asked for it."""
    folders = [
        (ARM_FOLDER.fullmatch(path.parent.name), path.parent)
        for path in sorted(run_folder.glob("arms/*/measures.json"))
    ]
    found = {(name["arm"], int(name["seed"])): changed_for(folder, spec) for name, folder in folders if name}
    return {arm: keys for arm, keys in found.items() if keys}


def said_of(otherwise: dict[tuple[str, int], list[str]]) -> str:
    """What is measured again and why, in one line."""
    keys = list(dict.fromkeys(key for changed in otherwise.values() for key in changed))
    names = ", ".join(f"{arm}-s{seed}" for arm, seed in otherwise)
    first = "thresholds are set again and the " if set(keys) & set(CALIBRATES) else ""
    return f"{', '.join(f'measure.{key}' for key in keys)} changed: {first}measures are made again of {names}; all weights stay"


def forget_what_rests_on(run_folder: Path) -> None:
    """Takes away what was worked out from the measures that are replaced: two SAEs held against each other, the comparison."""
    for name in ("across.json", "compare.json"):
        (run_folder / name).unlink(missing_ok=True)


def bring_up_to_date(
    recipe: Recipe, cache: ActivationCache | PlantedCache, folder: Path, progress: Progress, ranks: Ranks
) -> None:
    """Before a trained arm is measured: its thresholds set by the recipe, and the recipe within its SAEs. Nothing where they are so already.

    All ranks call this. A process that is killed here leaves an arm that the next one brings up to date.
    """
    held = ranks.from_first(_recipe_within(folder / "primary").get("measure") if ranks.first else None)
    changed = _differing(held, recipe.measure)
    if ranks.first and set(changed_for(folder, recipe.measure)) & set(FIRES):
        shutil.rmtree(folder / "firings", ignore_errors=True)
    if not changed:
        return
    if ranks.first:
        _note_settings(folder, held)
    sae = None
    if set(changed) & set(CALIBRATES):
        sae = _calibrated(SAE.load(folder / "primary"), recipe, cache, progress, ranks)
    if ranks.first:
        _rewrite(folder, recipe, sae)
    ranks.wait()


def _calibrated(
    sae: SAE, recipe: Recipe, cache: ActivationCache | PlantedCache, progress: Progress, ranks: Ranks
) -> SAE:
    """The SAE with thresholds by the recipe's rule; thresholds that it learned stay, and their firings are counted again."""
    if sae.config.metadata["calibration"]["rule"] != "own":
        sae.threshold = None
    split, rule = cache.split("calibration"), recipe.measure.threshold
    sae.config.metadata["calibration"] = asdict(calibrate(sae, split, recipe.train.batch, progress, rule, ranks))
    return sae


def _rewrite(folder: Path, recipe: Recipe, sae: SAE | None) -> None:
    """The recipe's measures within the arm's SAEs; the primary last, as it says by what the thresholds were set. sae: with new thresholds."""
    spec = recipe.measure.model_dump(mode="json")
    if (folder / "meta" / CONFIG).exists():
        _rewrite_config(folder / "meta", spec)
    if sae is None:
        _rewrite_config(folder / "primary", spec)
        return
    sae.config.metadata["metasae"]["recipe"]["measure"] = spec
    sae.save(folder / "primary")


def _rewrite_config(folder: Path, spec: dict) -> None:
    config = files.read_json(folder / CONFIG)
    config["metadata"]["metasae"]["recipe"]["measure"] = spec
    files.write_json(folder / CONFIG, config)


def _note_settings(folder: Path, held: dict) -> None:
    """Measures that do not say by what they were made are told so, before the SAE's own recipe says otherwise."""
    measures = _measures_at(folder)
    if measures is not None and "settings" not in measures:
        files.write_json(folder / "measures.json", measures | {"settings": held})


def _measures_at(folder: Path) -> dict | None:
    path = folder / "measures.json"
    found = files.read_json(path) if path.exists() else None
    return found if isinstance(found, dict) else None


def _recipe_within(sae_folder: Path) -> dict:
    """The recipe that an SAE of ours was trained by; empty where it does not say."""
    path = sae_folder / CONFIG
    config = files.read_json(path) if path.exists() else {}
    return config.get("metadata", {}).get("metasae", {}).get("recipe", {})


def _differing(held: dict | None, spec: Measure) -> list[str]:
    """Keys of the settings whose value is another in `held`; a key that an earlier release did not have counts as its default."""
    if held is None:
        return []
    defaults = Measure().settings
    return [key for key, value in spec.settings.items() if held.get(key, defaults[key]) != value]
