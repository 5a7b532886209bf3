"""SAEs that are to be measured: found, named and held against the recipe that judges them; the folder for what is found, claimed.

SAEs of ours are known by their configs, so a mistake is answered without torch; those of other libraries tell by their weights alone.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metasae.device import check_device
from metasae.errors import UserError
from metasae.interop.detection import notes_at, sae_at
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import check_senses

_NAME = re.compile(r"(?P<arm>[A-Za-z0-9_]+)(-s(?P<seed>\d+))?")


@dataclass(frozen=True)
class Target:
    """An SAE on disk, the arm and seed it is measured as, its run's meta SAE and the recipe it was trained by, where it has them."""

    folder: Path
    arm: str
    seed: int
    meta: Path | None
    recipe: dict | None


def chosen(
    folders: list[str | Path],
    recipe: str | Path | dict | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
) -> tuple[list[Target], Recipe]:
    """(the SAEs to measure, the recipe that judges them); arguments as of `metasae.jobs.measure.measure`, which raises the same errors."""
    targets = [target for folder in folders for target in named_targets(str(folder))]
    if not targets:
        raise UserError("no SAE to measure; give run folders or SAE folders")
    _refuse_same_names(targets)
    resolved = Recipe.load(
        recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe or recipe_of(targets[0]), overrides
    )
    check_senses(resolved)
    check_device(device)
    for target in targets:
        refuse_seen(target, resolved)
        if recipe is None and not any(key.split(".")[0] in ("model", "hook") for key in overrides or {}):
            refuse_elsewhere(target, resolved)
    return targets, resolved


def named_targets(text: str) -> list[Target]:
    """The SAEs of `PATH` or `NAME=PATH`. Raises UserError for a name that no arm can have, and as `find_targets`."""
    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return find_targets(Path(text))
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"'{name}' is no name for an SAE; give letters, digits and _, and -s3 after it for seed 3")
    targets = find_targets(Path(path))
    if not (Path(path) / "arms").is_dir():
        return [replace(targets[0], arm=found["arm"], seed=int(found["seed"] or targets[0].seed))]
    if found["seed"]:
        raise UserError(
            f"{path} is a run of several SAEs, which have seeds of their own; give a name without -s{found['seed']}"
        )
    return [replace(target, arm=f"{name}_{target.arm}") for target in targets]


def find_targets(folder: Path) -> list[Target]:
    """The SAEs in a run folder's arms, or the one that `metasae.interop.load` finds at a path. Raises UserError where there is none."""
    if (folder / "arms").is_dir():
        found = [each.parent for each in sorted(folder.glob("arms/*-s*/primary/cfg.json"))]
        if not found:
            raise UserError(f"no arm of {folder} is trained yet; run `metasae run` on it first")
        return [target for each in found for target in find_targets(each)]
    format, folder = sae_at(folder)
    notes = notes_at(format, folder)
    if notes is None:
        from metasae.interop import load

        notes = load(folder).config.metadata.get("metasae", {})
    name = re.sub(r"\W+", "_", folder.resolve().name) or "sae"
    meta = folder.parent / "meta"
    own_meta = meta if notes and (meta / "cfg.json").is_file() else None
    return [Target(folder, notes.get("arm", name), notes.get("seed", 0), own_meta, notes.get("recipe"))]


def recipe_of(target: Target) -> dict:
    """The recipe an SAE of ours was trained by, without leave to run a model's code. Raises UserError where the SAE does not say."""
    if target.recipe is None:
        raise UserError(
            f"{target.folder} does not say which model and text it belongs to; give --recipe with model, hook and text"
        )
    # whoever wrote the SAE does not decide whether a model's code is run here; --set model.trust_remote_code=true does
    return {**target.recipe, "model": {**target.recipe.get("model", {}), "trust_remote_code": False}}


def refuse_seen(target: Target, recipe: Recipe) -> None:
    """Raises UserError for an SAE of ours that was trained on documents that this recipe judges on.

    Which split a document belongs to follows from its words: the first shares are calibration and evaluation, the rest is training.
    """
    held = (target.recipe or {}).get("text", {})
    ours = recipe.text.model_dump(mode="json")
    same = all(held.get(key) == ours[key] for key in ("source", "name", "split", "column"))
    if not held or not same or recipe.text.source == "planted":
        return
    seen, judged = (text["calibration_share"] + text["evaluation_share"] for text in (held, ours))
    if judged > seen + 1e-9:
        raise UserError(
            f"{target.folder} was trained on documents that would be judged here: all beyond the first {seen:g} of the text, of which "
            f"text.calibration_share + text.evaluation_share take {judged:g}; --set them so that they take no more than {seen:g}"
        )


def refuse_elsewhere(target: Target, recipe: Recipe) -> None:
    """Raises UserError for an SAE of ours that was trained on another model or hook point than the recipe's."""
    if target.recipe is None:
        return
    theirs = Recipe.load({key: value for key, value in target.recipe.items() if key != "harvest"})
    for what, one, other in (
        ("hook.point", theirs.hook.point, recipe.hook.point),
        ("model", theirs.model.source, recipe.model.source),
    ):
        if one != other and recipe.text.source != "planted":
            raise UserError(
                f"{target.folder} was trained with {what} = {one}, the first SAE with {other}; measure them apart, or --set {what} where both belong"
            )


def _refuse_same_names(targets: list[Target]) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for target in targets:
        first = seen.setdefault((target.arm, target.seed), target.folder)
        if first is not target.folder:
            raise UserError(
                f"{first} and {target.folder} are both {target.arm}-s{target.seed}; give one a name: NAME={target.folder}"
            )


def claim(recipe: Recipe, out: Path) -> None:
    """Writes the recipe into the folder for what is found. Raises UserError where that holds measures made otherwise, or cannot be written.

    A folder in which nothing is measured yet holds nothing that another recipe could spoil.
    """
    path = out / "recipe.toml"
    try:
        if path.exists() and any(out.glob("arms/*/measures.json")) and Recipe.load(path) != recipe:
            raise UserError(f"{out} holds measures made otherwise; choose another --out or delete the folder")
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another --out") from None
