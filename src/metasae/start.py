"""A run before any model is loaded: the recipe resolved, the device looked at, the run folder claimed.

Imports no torch unless the device is a GPU, so a mistake is answered at once.
"""

import ctypes
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from metasae.errors import UserError
from metasae.recipe import Recipe


def resolve(recipe: str | Path | dict | Recipe, out: str | Path | None, overrides: dict[str, Any] | None, device: str) -> tuple[Recipe, Path]:
    """(the recipe with every value, the run folder). Writes nothing.

    Raises UserError for an unknown recipe, key or value, a recipe without a model, sense-tagged sentences and a device that are not there.
    """
    name = Path(recipe).stem if isinstance(recipe, (str, Path)) else "run"
    source = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    resolved = Recipe.load(source, overrides)
    if not resolved.model.source and resolved.text.source != "planted":
        raise UserError("the recipe names no model; add --set model.path=FOLDER (written by save_pretrained) or --set model.name=NAME (on the hub)")
    check_senses(resolved)
    check_device(device)
    return resolved, Path(out) if out is not None else Path("runs") / name


def one_per_point(recipe: Recipe, folder: Path, points: list[str]) -> list[tuple[Recipe, Path]]:
    """A run for each hook point, in a folder of its own under `folder`; the first one's harvest serves all. No points: the run itself."""
    if not points:
        return [(recipe, folder)]
    if len(set(points)) < len(points) or recipe.harvest.cache:
        raise UserError("--points takes each point once, and no harvest.cache, as every point has a cache of its own")

    def at(point: str, also: tuple[str, ...]) -> Recipe:
        return recipe.model_copy(update={"hook": recipe.hook.model_copy(update={"point": point, "also": also})})

    also = tuple(points[1:])
    return [(at(point, also if point == points[0] else ()), folder / re.sub(r"[^\w.-]+", "_", point)) for point in points]


def claim(recipe: Recipe, folder: Path) -> None:
    """Writes the recipe into the run folder. A folder with another recipe is refused; arms and seeds may be added to it, and what is
    measured may change, as trained weights do not depend on it (`metasae.remeasure`).

    A folder in which no stage was finished and no arm begun holds nothing that another recipe could spoil, so a typo put right goes on in it.
    Of several processes of one job (torchrun) the first claims it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    path = folder / "recipe.toml"
    try:
        if path.exists() and ((folder / "run.json").exists() or any((folder / "arms").glob("*/checkpoints"))):
            held = Recipe.load(path)
            _refuse_another(recipe, held, folder)
            union = {name: tuple(dict.fromkeys([*getattr(held, name), *getattr(recipe, name)])) for name in ("arms", "seeds")}
            recipe = recipe.model_copy(update=union)
        else:
            check_sources(recipe)
            folder.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None


def plan(recipe: Recipe, folder: Path, show: bool) -> dict:
    """What a run would do: its folder, arms, steps and tokens. show: the recipe as TOML and a summary on stdout."""
    steps = -(-recipe.train.tokens // recipe.train.batch)
    plan = {
        "out": str(folder),
        "recipe": recipe.model_dump(mode="json"),
        "arms": [f"{arm}-s{seed}" for seed in recipe.seeds for arm in recipe.arms],
        "primary_steps_per_arm": steps,
        "tokens_harvested": sum(recipe.split_tokens.values()),
    }
    if show:
        print(recipe.dump())
        print(f"# would write {folder}: {len(plan['arms'])} arms of {steps:,} primary steps, {plan['tokens_harvested']:,} tokens harvested")
    return plan


def check_senses(recipe: Recipe) -> None:
    """Sense-tagged sentences are read after all arms are trained, so that they are there is checked before. Raises UserError."""
    path = Path(recipe.measure.senses)
    if recipe.measure.senses and not (path.is_file() or path.is_dir()):
        raise UserError(f"measure.senses: no file or folder '{path}'; give JSONL with word, sense, before, target and after")
    if recipe.measure.senses and not os.access(path, os.R_OK):
        raise UserError(f"measure.senses: '{path}' cannot be read; check its permissions")


def check_sources(recipe: Recipe) -> None:
    """Of a run that has not begun: that its model's folder and its files of text are there. A name on the hub is looked up later.

    Raises UserError where they are not.
    """
    if recipe.text.source == "planted":
        return
    from metasae.data import text
    from metasae.data.files_of_text import files_in, is_saved_dataset
    from metasae.data.model_folder import local_folder

    local_folder(recipe.model)
    place = text.local_path(recipe.text.source)
    if recipe.text.source != "docs" and text.is_local(recipe.text.source) and not is_saved_dataset(place):
        files_in(place)


def check_device(device: str) -> None:
    """Raises UserError for a device that is none, or is not here. Asks torch only where it may have a GPU."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device '{device}' is not one of cpu, cuda, cuda:N")
    if device == "cpu":
        return
    torch = _torch_with_gpus()
    if torch is None or not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA device is available here; use --device cpu")
    number, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device {device}: there are only {count} CUDA devices here, counted from 0")


def _torch_with_gpus():
    """torch, where it may have a GPU. None, without the seconds that importing it takes, where it was built for processors or has no driver."""
    place = importlib.util.find_spec("torch")
    if "torch" not in sys.modules and place is not None and place.origin is not None:
        version = runpy.run_path(str(Path(place.origin).with_name("version.py")))
        if version.get("hip") is None and (version.get("cuda") is None or not _has_driver()):
            return None
    import torch

    return torch


def _has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded, which CUDA needs."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _refuse_another(recipe: Recipe, held: Recipe, folder: Path) -> None:
    ours, theirs = _flat(recipe), _flat(held)
    # planted keys may be left out, on either side
    key = next((key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)), None)
    if key is not None:
        raise UserError(f"{folder} holds a run with {key} = {theirs.get(key)!r}, not {ours.get(key)!r}; choose another --out or delete the folder")


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, without what may differ between two calls on one run folder."""
    out = {}
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            out |= {f"{name}.{key}": inner for key, inner in value.items() if name != "measure" and (name, key) != ("hook", "also")}
    return out
