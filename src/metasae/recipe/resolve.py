"""A recipe as a run uses it: every value, checked as far as is possible without torch or a model, and the run "
"folder."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from metasae.device import check_device
from metasae.errors import UserError
from metasae.recipe.meaning import refuse_what_cannot_be_meant
from metasae.recipe.recipe import Recipe


def resolve(
    recipe: str | Path | dict | Recipe, out: str | Path | None, overrides: dict[str, Any] | None, device: str
) -> tuple[Recipe, Path]:
    """Resolves a recipe; returns (the recipe with every value, the run folder). Writes nothing.

    Raises UserError for an unknown recipe, key or value, values that contradict each other, a recipe without a model,
    tagged sentences that do not exist, and a device that is not available.
    """
    name = Path(recipe).stem if isinstance(recipe, (str, Path)) else "run"
    source = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    resolved = Recipe.load(source, overrides)
    if not resolved.model.source and resolved.reads_text:
        raise UserError(
            "the recipe names no model; add --set model.path=FOLDER (written by save_pretrained) or --set "
            "model.name=NAME (on the hub)"
        )
    refuse_what_cannot_be_meant(resolved)
    check_tagged_files(resolved)
    check_device(device)
    return resolved, Path(out) if out is not None else Path("runs") / name


def one_per_point(recipe: Recipe, folder: Path, points: list[str]) -> list[tuple[Recipe, Path]]:
    """(recipe, folder) of a run for each hook point, each in a folder under `folder`. The first run harvests for all.
    Without points: the run itself.
    """
    if not points:
        return [(recipe, folder)]
    if len(set(points)) < len(points) or recipe.harvest.cache:
        raise UserError(
            "--points takes each point once, and not together with harvest.cache, as every point has a cache of its own"
        )

    def at(point: str, also: tuple[str, ...]) -> Recipe:
        return recipe.model_copy(update={"hook": recipe.hook.model_copy(update={"point": point, "also": also})})

    also = tuple(points[1:])
    return [
        (at(point, also if point == points[0] else ()), folder / re.sub(r"[^\w.-]+", "_", point)) for point in points
    ]


def check_tagged_files(recipe: Recipe) -> None:
    """Checks before training that the files of tagged sentences exist, as they are read only after all arms are
    trained.

    Raises UserError.
    """
    for key, value, tag in (
        ("senses", recipe.measure.senses, "word, sense"),
        ("labels", recipe.measure.labels, "concept"),
    ):
        path = Path(value)
        if value and not (path.is_file() or path.is_dir()):
            raise UserError(
                f"measure.{key}: no file or folder '{path}'; give JSONL with {tag}, before, target and after"
            )
        if value and not os.access(path, os.R_OK):
            raise UserError(f"measure.{key}: '{path}' cannot be read; check its permissions")


def first_difference(recipe: Recipe, other: Recipe, free: Collection[str]) -> tuple[str, Any, Any] | None:
    """(dotted key, the recipe's value, the other's value) of the first value that differs; None if all are equal.

    free: tables and dotted keys that may differ. A key that one of the recipes lacks counts as None.
    """
    ours, theirs = _flat(recipe), _flat(other)
    for key in {**ours, **theirs}:
        if key in free or key.partition(".")[0] in free:
            continue
        if ours.get(key) != theirs.get(key):
            return key, ours.get(key), theirs.get(key)
    return None


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value."""
    flat = {}
    for name, value in recipe.model_dump(mode="json").items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat
