"""The checks before a model is loaded. For a run: its folder is claimed, or a dry run says what it would do. For
measuring: the SAEs, their names, whether the recipe can measure them, and the folder for the results.

This needs no torch, so a mistake is refused at once. SAEs of ours are recognised by their configs, those of other
libraries by their weights alone.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metasae.arms.folder import RunFolder
from metasae.device import check_device
from metasae.doctor.sources import check_sources
from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.detection import metadata_at, sae_at
from metasae.jobs.conditions import Conditions, adopted
from metasae.jobs.init import read_init, recipe_within
from metasae.locks import alone_on
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.meaning import refuse_unmeasurable
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import check_tagged_files, first_difference
from metasae.sae.layout import CONFIG

_NAME = re.compile(r"(?P<name>[A-Za-z0-9_]+)(-s(?P<seed>\d+))?")
# Values that may differ between two calls on one run folder: arms and seeds may be added, and arms may be measured
# again.
FREE = ("description", "arms", "seeds", "measure", "hook.also")


@contextmanager
def started(recipe: Recipe, folder: Path, track: str | None = None, progress: Progress = SILENT) -> Iterator[None]:
    """Holds a run's folder during the block and writes the recipe into it. track: as in `metasae.jobs.run.run`.

    Raises UserError if another process holds the folder, if it contains a run of another recipe, if it cannot be
    written, and for a text, a model or a tracking package that does not exist.
    """
    if track is not None:
        from metasae.tracking.sinks import check_sink

        check_sink(track)
    # in a job of several processes (torchrun) the first claims the folder, and the others work under its lock
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with alone_on(folder, progress):
        claim(recipe, folder)
        yield


def claim(recipe: Recipe, folder: Path) -> None:
    """Writes the recipe into the run folder. A folder with another recipe is refused. Arms and seeds may be added, and
    the table `measure` may change, as trained weights do not depend on it (`metasae.jobs.pending`).

    If no stage was finished and no arm begun, any recipe is accepted, so a mistake can be corrected without a new
    folder.
    """
    path = folder / "recipe.toml"
    if path.exists() and ((folder / "run.json").exists() or any((folder / "arms").glob("*/checkpoints"))):
        before = Recipe.stored(path)
        difference = first_difference(recipe, before, FREE)
        if difference:
            key, ours, theirs = difference
            raise UserError(
                f"{folder} holds a run with {key} = {theirs!r}, not {ours!r}; choose another --out or delete the folder"
            )
        union = {
            name: tuple(dict.fromkeys([*getattr(before, name), *getattr(recipe, name)])) for name in ("arms", "seeds")
        }
        recipe = recipe.model_copy(update=union)
    else:
        check_sources(recipe)
        if recipe.train.init:
            _refuse_seen(recipe.train.init, recipe_within(read_init(recipe)), recipe)
    write_recipe(recipe, folder)


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes recipe.toml into the folder. Raises UserError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save(folder / "recipe.toml")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None


def dry_run(recipe: Recipe, folder: Path, show: bool) -> dict:
    """What a run would do: its folder, arms, steps and tokens. show: print the recipe as TOML and a summary on
    stdout.
    """
    steps, tokens = -(-recipe.train.tokens // recipe.train.batch), sum(recipe.split_tokens.values())
    arms = [f"{arm}-s{seed}" for seed in recipe.seeds for arm in recipe.arms]
    if show:
        print(recipe.dump())
        print(f"# would write {folder}: {len(arms)} arms of {steps:,} primary steps, {tokens:,} tokens harvested")
    return {
        "out": str(folder),
        "recipe": recipe.model_dump(mode="json"),
        "arms": arms,
        "primary_steps_per_arm": steps,
        "tokens_harvested": tokens,
    }


@dataclass(frozen=True)
class Target:
    """An SAE to measure, in any format. folder: its path. name, seed: the arm and seed it is measured as. meta, recipe:
    its run's meta SAE and the recipe it was trained by; None if there is none. stated: the conditions of its training,
    by its metadata.
    """

    folder: Path
    name: str
    seed: int
    meta: Path | None
    recipe: dict | None
    stated: Conditions


@contextmanager
def claimed(
    folders: Sequence[str | Path],
    out: Path,
    recipe: str | Path | dict | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Iterator[tuple[list[Target], Recipe]]:
    """Yields (the SAEs to measure, the recipe to measure them by), and holds the folder for the results during the
    block.

    Arguments and errors as of `metasae.jobs.measure.measure`. Raises UserError too if another process holds the folder,
    if it contains measures by another recipe, or if it cannot be written.
    """
    targets = [target for folder in folders for target in named_targets(str(folder))]
    if not targets:
        raise UserError("no SAE to measure; give run folders or SAE folders")
    _refuse_same_names(targets)
    source = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe or recipe_of(targets[0])
    # a stored recipe, as penalties that this process does not know do not matter after training
    resolved, lines = adopted(
        [target.stated for target in targets], Recipe.stored(source, overrides), [*(overrides or {})]
    )
    refuse_unmeasurable(resolved)
    check_tagged_files(resolved)
    check_device(device)
    for line in lines:
        progress.say(line)
    elsewhere = any(key.split(".")[0] in ("model", "hook") and key != "model.bos" for key in overrides or {})
    for target in targets:
        _refuse_seen(target.folder, target.recipe, resolved)
        if recipe is None and not elsewhere:
            _refuse_elsewhere(target, resolved)
    with alone_on(out, progress):
        path = out / "recipe.toml"
        # another recipe is accepted as long as nothing is measured
        if path.exists() and any(out.glob("arms/*/measures.json")) and Recipe.stored(path) != resolved:
            raise UserError(f"{out} holds measures by another recipe; choose another --out or delete the folder")
        write_recipe(resolved, out)
        yield targets, resolved


def named_targets(text: str) -> list[Target]:
    """The SAEs of `PATH` or `NAME=PATH`. Raises UserError for a name that an arm cannot have, and as `find_targets`."""
    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return find_targets(Path(text))
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'{name}' cannot name an SAE; use letters, digits and _, and -s3 at the end for seed 3")
    targets = find_targets(Path(path))
    if not (Path(path) / "arms").is_dir():
        return [replace(targets[0], name=match["name"], seed=int(match["seed"] or targets[0].seed))]
    if match["seed"]:
        raise UserError(
            f"{path} is a run of several SAEs with seeds of their own; give a name without -s{match['seed']}"
        )
    return [replace(target, name=f"{name}_{target.name}") for target in targets]


def find_targets(folder: Path) -> list[Target]:
    """The SAEs in a run folder's arms, or the one SAE that `metasae.interop.load` finds at a path.

    Raises UserError if there is none.
    """
    if (folder / "arms").is_dir():
        return [target for arm in RunFolder(folder).trained() for target in find_targets(arm.folder / "primary")]
    format, folder = sae_at(folder)
    metadata = metadata_at(format, folder)
    if metadata is None:
        from metasae.interop import load

        metadata = load(folder).config.metadata
    notes = checked.table(metadata, "metasae", str(folder))
    name = re.sub(r"\W+", "_", folder.resolve().name) or "sae"
    meta = folder.parent / "meta"
    own_meta = meta if notes and (meta / CONFIG).is_file() else None
    recipe = notes.get("recipe")
    stated = Conditions.of(metadata, recipe)
    return [Target(folder, notes.get("arm", name), notes.get("seed", 0), own_meta, recipe, stated)]


def recipe_of(target: Target) -> dict:
    """The recipe an SAE of ours was trained by, with model.trust_remote_code = false.

    Raises UserError if the SAE does not contain it.
    """
    if target.recipe is None:
        raise UserError(
            f"{target.folder} does not say which model and text it belongs to; give --recipe with model, hook and text"
        )
    # the author of an SAE must not decide whether a model's code is run here; --set model.trust_remote_code=true does
    return {**target.recipe, "model": {**target.recipe.get("model", {}), "trust_remote_code": False}}


def _refuse_seen(place: str | Path, trained_by: dict | None, recipe: Recipe) -> None:
    """Raises UserError for an SAE of ours that was trained on documents that this recipe measures on.

    place: where the SAE is. trained_by: the recipe that it was trained with; None for an SAE of another library. A
    document's split follows from a hash of its content: the first shares are calibration and evaluation, the rest is
    training.
    """
    theirs, ours = (trained_by or {}).get("text", {}), recipe.text.model_dump(mode="json")
    same = all(theirs.get(key) == ours[key] for key in ("source", "name", "split", "column"))
    if not theirs or not same or not recipe.reads_text:
        return
    untrained, judged = (text["calibration_share"] + text["evaluation_share"] for text in (theirs, ours))
    if judged > untrained + 1e-9:
        raise UserError(
            f"{place} was trained on documents that would be used for measuring: it was trained on all but the "
            f"first {untrained:g} of the text, and text.calibration_share + text.evaluation_share take {judged:g}; "
            f"--set them so that they take no more than {untrained:g}"
        )


def _refuse_elsewhere(target: Target, recipe: Recipe) -> None:
    """Raises UserError for an SAE of ours that was trained on another model or hook point than the recipe's."""
    if target.recipe is None or not recipe.reads_text:
        return
    theirs = Recipe.stored({key: value for key, value in target.recipe.items() if key != "harvest"})
    places = {"hook.point": (theirs.hook.point, recipe.hook.point), "model": (theirs.model.source, recipe.model.source)}
    for what, (one, other) in places.items():
        if one != other:
            raise UserError(
                f"{target.folder} was trained with {what} = {one}, the first SAE with {other}; measure them in "
                f"separate calls, or choose {what} with --set"
            )


def _refuse_same_names(targets: list[Target]) -> None:
    first: dict[tuple[str, int], Path] = {}
    for target in targets:
        other = first.setdefault((target.name, target.seed), target.folder)
        if other is not target.folder:
            raise UserError(
                f"{other} and {target.folder} are both {target.name}-s{target.seed}; give one a name: "
                f"NAME={target.folder}"
            )
