"""Measuring SAEs that are there already, ours or others': each becomes an arm of a new run folder, and these are compared."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metasae import files
from metasae.conclusion import conclude, print_conclusion
from metasae.errors import Interrupted, UserError
from metasae.interop import load
from metasae.interop.formats import primary_of
from metasae.measures.across import is_wanted, measure_across, members_of
from metasae.measures.firing.calibrate import Calibration
from metasae.measures.firing.store import sae_fingerprint
from metasae.measures.suite import measure_sae, reference_of
from metasae.memory import keep_freed_memory
from metasae.progress import Progress
from metasae.recipe import Recipe
from metasae.run_lock import alone_on
from metasae.run_stages import ACROSS, HARVEST, PLANTED, REPORT
from metasae.sae.sae import SAE
from metasae.source import Source
from metasae.stages import Stage
from metasae.start import check_senses
from metasae.stop import StopRequest

_NAME = re.compile(r"(?P<arm>[A-Za-z0-9_]+)(-s(?P<seed>\d+))?")


@dataclass(frozen=True)
class Target:
    """An SAE on disk, the width it reads, the arm and seed it is measured as, and its run's meta SAE where it has one."""

    folder: Path
    d_in: int
    arm: str
    seed: int
    meta: Path | None


def measure(
    folders: list[str | Path],
    out: str | Path = "runs/measured",
    recipe: str | Path | dict | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> dict:
    """Measures SAEs on the held-out text of a recipe; the returned dictionary is compare.json with the folder's path.

    folders: run folders (every trained arm of them) and SAEs in any format that `metasae.interop` reads; they stay as they are. Each may
    have a name before it, `NAME=PATH`: what an SAE is called here (`NAME-s3`: as seed 3), or what is put before a run's arms (NAME_joint).
    out: a run folder for what is found.
    recipe: says model, hook point, text and measures; None takes the one that the first SAE was trained by. overrides: dotted keys.
    An SAE without thresholds is calibrated by measure.threshold; one with thresholds keeps them.
    Raises UserError for a folder without SAE, an SAE of another width than the hook point's, one that was trained on documents that would be
    judged, one trained on another model or hook point than the first where none is asked for, and two SAEs of one name.
    Interrupted after a signal.
    """
    targets = [target for folder in folders for target in named_targets(str(folder))]
    if not targets:
        raise UserError("no SAE to measure; give run folders or SAE folders")
    _refuse_same_names(targets)
    resolved = Recipe.load(recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe or recipe_of(targets[0].folder), overrides)
    check_senses(resolved)
    for target in targets:
        refuse_seen(target, resolved)
        if recipe is None and not any(key.split(".")[0] in ("model", "hook") for key in overrides or {}):
            refuse_elsewhere(target, resolved)
    out, progress = Path(out), Progress(show)
    stop = StopRequest(progress.answer, "measuring")
    try:
        # what was measured before a signal is kept, so nothing need be waited for
        with alone_on(out, progress), stop.listening(), stop.at_once(), progress.run(_stages(targets, resolved)):
            _claim(resolved, out)
            keep_freed_memory()
            _measure_all(targets, resolved, out, device, progress)
            with progress.stage(REPORT):
                result = conclude(out, show=False)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; what is measured is kept in {out}. Go on with the same command") from None
    if show:
        print_conclusion(result)
    return result


def _stages(targets: list[Target], recipe: Recipe) -> list[Stage]:
    across = [ACROSS] if recipe.measure.across and recipe.measure.keep_firings else []
    return [_source_stage(recipe), *map(_measuring, targets), *across, REPORT]


def _source_stage(recipe: Recipe) -> Stage:
    return PLANTED if recipe.text.source == "planted" else HARVEST


def _measuring(target: Target) -> Stage:
    return Stage("measure", f"measuring {target.arm}, seed {target.seed}")


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
        raise UserError(f"{path} is a run of several SAEs, which have seeds of their own; give a name without -s{found['seed']}")
    return [replace(target, arm=f"{name}_{target.arm}") for target in targets]


def find_targets(folder: Path) -> list[Target]:
    """The SAEs in a run folder's arms, or the one that `metasae.interop.load` finds at a path. Raises UserError where there is none."""
    if (folder / "arms").is_dir():
        found = [each.parent for each in sorted(folder.glob("arms/*-s*/primary/cfg.json"))]
        if not found:
            raise UserError(f"no arm of {folder} is trained yet; run `metasae run` on it first")
        return [target for each in found for target in find_targets(each)]
    folder = primary_of(folder)
    config = load(folder).config
    ours = config.metadata.get("metasae", {})
    meta = folder.parent / "meta"
    name = re.sub(r"\W+", "_", folder.resolve().name) or "sae"
    return [Target(folder, config.d_in, ours.get("arm", name), ours.get("seed", 0), meta if ours and (meta / "cfg.json").is_file() else None)]


def recipe_of(folder: Path) -> dict:
    """The recipe an SAE of ours was trained by, without leave to run a model's code. Raises UserError where the SAE does not say."""
    held = load(folder).config.metadata.get("metasae", {}).get("recipe")
    if held is None:
        raise UserError(f"{folder} does not say which model and text it belongs to; give --recipe with model, hook and text")
    # whoever wrote the SAE does not decide whether a model's code is run here; --set model.trust_remote_code=true does
    return {**held, "model": {**held.get("model", {}), "trust_remote_code": False}}


def refuse_seen(target: Target, recipe: Recipe) -> None:
    """Raises UserError for an SAE of ours that was trained on documents that this recipe judges on.

    Which split a document belongs to follows from its words: the first shares are calibration and evaluation, the rest is training.
    """
    held = load(target.folder).config.metadata.get("metasae", {}).get("recipe", {}).get("text", {})
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
    held = load(target.folder).config.metadata.get("metasae", {}).get("recipe")
    if held is None:
        return
    theirs = Recipe.load({key: value for key, value in held.items() if key != "harvest"})
    for what, one, other in (("hook.point", theirs.hook.point, recipe.hook.point), ("model", theirs.model.source, recipe.model.source)):
        if one != other and recipe.text.source != "planted":
            raise UserError(
                f"{target.folder} was trained with {what} = {one}, the first SAE with {other}; measure them apart, or --set {what} where both belong"
            )


def _refuse_same_names(targets: list[Target]) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for target in targets:
        first = seen.setdefault((target.arm, target.seed), target.folder)
        if first is not target.folder:
            raise UserError(f"{first} and {target.folder} are both {target.arm}-s{target.seed}; give one a name: NAME={target.folder}")


def _claim(recipe: Recipe, out: Path) -> None:
    path = out / "recipe.toml"
    try:
        if path.exists() and Recipe.load(path) != recipe:
            raise UserError(f"{out} holds measures made otherwise; choose another --out or delete the folder")
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another --out") from None


def _measure_all(targets: list[Target], recipe: Recipe, out: Path, device: str, progress: Progress) -> None:
    spec, source = recipe.measure, Source(recipe, out, device, progress)
    with progress.stage(_source_stage(recipe)):
        if not source.planted:
            # before the model reads any text
            for target in targets:
                _refuse_width(target, source.host.d, recipe)
        cache = source.open({"calibration": spec.calibration_tokens, "evaluation": spec.tokens})
    reference = None
    for target in targets:
        with progress.stage(_measuring(target)):
            reference = reference_of(cache, spec, source.judge, progress) if reference is None else reference
            _measure_one(target, out / "arms" / f"{target.arm}-s{target.seed}", recipe, source, cache, reference, progress)
    if is_wanted(spec, progress):
        path = out / "across.json"
        with progress.stage(ACROSS):
            known = files.read_json(path) if path.exists() else None
            files.write_json(path, measure_across(members_of(out), known, progress, source.steering))


def _refuse_width(target: Target, d: int, recipe: Recipe) -> None:
    if target.d_in != d:
        raise UserError(f"{target.folder} reads vectors of width {target.d_in}, '{recipe.hook.point}' gives {d}; choose another hook.point")


def _measure_one(target: Target, folder: Path, recipe: Recipe, source: Source, cache, reference, progress: Progress) -> None:
    """Leaves primary/, firings/ and measures.json in `folder`; nothing is done where this very SAE is measured there on this text already."""
    sae, spec = load(target.folder), recipe.measure
    _refuse_width(target, cache.d, recipe)
    done = files.read_json(folder / "measures.json") if (folder / "measures.json").exists() else {}
    known = done.get("conditions", {})
    if sae.threshold is not None and known.get("sae") == sae_fingerprint(sae) and known.get("data") == cache.fingerprint:
        return
    held = sae.config.metadata.get("calibration")
    result = measure_sae(
        sae,
        SAE.load(target.meta) if target.meta else None,
        cache,
        spec,
        source.judge,
        progress,
        seed=target.seed,
        calibration=Calibration(**held) if held and sae.threshold is not None else None,
        reference=reference,
        folder=folder / "firings" if spec.keep_firings else None,
    )
    sae.save(folder / "primary")
    files.write_json(folder / "measures.json", result)
