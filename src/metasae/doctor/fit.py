"""Whether a recipe fits a machine, and the smallest changes with which it would. Calculated from sizes only."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metasae.data.cache.cache import SHARDS
from metasae.doctor.estimate import Needs, is_planted, needs
from metasae.doctor.machine import free_disk, memory_of, same_disk
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe

# The ratio of successive values when a number of the recipe is lowered.
_SHRINK = 0.95
# Lower limits. A run with fewer steps, smaller batches or a smaller share of the latents is too different from the
# recipe.
_LEAST_STEPS, _LEAST_BATCH, _LEAST_LATENTS, _LEAST_MEASURED = 100, 256, 1 / 16, 10_000
# Least batches in a window of activations, within which batches are shuffled.
_LEAST_WINDOW = 1000

Change = tuple[str, Any]


@dataclass(frozen=True)
class Room:
    """The bytes that a run may use. memory: None if the system does not say. gpu: None without a GPU.

    cache, run: free bytes on the disks of the cache and of the run folder, plus what these folders contain already.
    shared: whether both are on one disk.
    """

    memory: int | None
    gpu: int | None
    cache: int
    run: int
    shared: bool


@dataclass(frozen=True)
class Shortage:
    """A resource that is too small. needed, there: bytes. resource: `disk of the cache`, `disk of the run folder`,
    `disk`, `memory` or `GPU memory`.
    """

    resource: str
    needed: int
    there: int

    def __str__(self) -> str:
        return f"{self.resource}: {size(self.needed)} needed, {size(self.there)} available"


def disk_room(run: Path, cache: Path, memory: int | None = None, gpu: int | None = None) -> Room:
    """The room on the disks of a run folder and a cache folder, which need not exist yet. Their present content counts
    as free, as it is used again or replaced.

    cache: one cache, or the folder of all caches if it is not known which one is the run's.
    """
    shared, cached, kept = same_disk(run, cache), _bytes_of(cache.rglob(SHARDS)), _bytes_of(run.rglob("*"))
    return Room(memory or None, gpu, free_disk(cache) + cached + kept * shared, free_disk(run) + kept, shared)


def shortages(wanted: Needs, room: Room) -> list[Shortage]:
    """The resources that are too small."""
    if room.shared:
        disks = [("disk", wanted.cache + wanted.run_folder, room.cache)]
    else:
        disks = [
            ("disk of the cache", wanted.cache, room.cache),
            ("disk of the run folder", wanted.run_folder, room.run),
        ]
    rest = [("memory", wanted.memory, room.memory), ("GPU memory", wanted.gpu, room.gpu)]
    return [Shortage(*entry) for entry in disks + rest if entry[2] is not None and entry[1] > entry[2]]


def changes(recipe: Recipe, needs_of: Callable[[Recipe], Needs], room: Room) -> list[Change] | None:
    """The fewest settings found with which the recipe fits; [] if it fits already, None if nothing helps. They were
    tried: with all of them `shortages` returns [].
    """
    settings: list[Change] = []
    # each round leaves less to lower, so the loop ends
    while short := shortages(needs_of(recipe), room):
        steps = _relieve(recipe, short[0].resource, needs_of, room)
        if steps is None:
            return None
        settings += steps
        recipe = _with(recipe, steps)
    return settings


def refuse_what_cannot_fit(recipe: Recipe, d: int, out: Path, device: str = "cpu") -> None:
    """Raises UserError if the activation cache cannot fit on its disk, or weights, moments and gradients cannot fit in
    memory.

    A quick check before a run: it refuses only what certainly fails; `metasae doctor` estimates the rest. d: width of
    the hooked tensor. out: the run folder; the present content of it and of the cache counts as free.
    """
    cache = Path(recipe.harvest.cache or out.parent / "activations")

    def certain(some: Recipe) -> Needs:
        needed = needs(some, d, model=0, on_gpu=device != "cpu")
        return replace(needed, process=0, harvest=0, forward=0, measure=0, train=needed.weights)

    gpu = None if device == "cpu" else torch.cuda.mem_get_info(torch.device(device))[0]
    room = disk_room(out, cache, memory_of()[1], gpu)
    short = shortages(certain(recipe), room)
    if not short:
        return
    settings = changes(recipe, certain, room)
    what = f"this run cannot fit; {'; '.join(map(str, short))}"
    cure = f"set {' '.join(map(setting, settings))}" if settings else "use a larger machine or disk"
    raise UserError(f"{what}; {cure} ('metasae doctor' gives details)")


def size(count: float) -> str:
    """A number of bytes in words: 1.2 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def setting(change: Change) -> str:
    """A change as KEY=VALUE, in the form of `--set`."""
    key, value = change
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _bytes_of(places: Iterable[Path]) -> int:
    """The bytes of all files among these paths."""
    return sum(place.stat().st_size for place in places if place.is_file())


def _relieve(recipe: Recipe, resource: str, needs_of: Callable[[Recipe], Needs], room: Room) -> list[Change] | None:
    """The settings that end one shortage: a single one if that is enough, else the strongest value of each key in turn
    until it ends; None if nothing helps.
    """

    def ended(steps: list[Change]) -> bool:
        return resource not in [short.resource for short in shortages(needs_of(_with(recipe, steps)), room)]

    options = {key: values for key, values in _options(recipe, resource, needs_of(recipe)) if values}
    single = next(((key, value) for key, values in options.items() for value in values if ended([(key, value)])), None)
    if single:
        return [single]
    steps: list[Change] = []
    for key, values in options.items():
        steps.append((key, next((value for value in values if ended([*steps, (key, value)])), values[-1])))
        if ended(steps):
            return steps
    return None


def _options(recipe: Recipe, resource: str, wanted: Needs) -> list[tuple[str, list]]:
    """[(key, values it may be set to)]: the value nearest to the recipe's first, and the key that changes the run least
    first.
    """
    cached, harvest, batch, n = recipe.split_tokens["train"], recipe.harvest, recipe.train.batch, recipe.sae.n
    fewer_measured = ("measure.tokens", _down(recipe.measure.tokens, _LEAST_MEASURED))
    if resource.startswith("disk"):
        fewer_cached = _down(cached, _LEAST_STEPS * batch)
        on_cache = [
            ("harvest.dtype", ["bf16"] if harvest.dtype == "fp32" else []),
            ("harvest.window_tokens", _windows(recipe)),
            ("harvest.tokens" if harvest.tokens else "train.tokens", fewer_cached),
            fewer_measured,
        ]
        on_run = [("measure.keep_firings", [False] if recipe.measure.keep_firings else [])]
        return on_run + on_cache if wanted.run_folder > wanted.cache else on_cache + on_run
    least_latents = max(recipe.sae.k, recipe.sae.k_start, round(_LEAST_LATENTS * n))
    fewer_latents = ("sae.n", _down(n, least_latents, grain=64))
    by_stage = {
        "harvest": [("harvest.batch_tokens", _halves(harvest.batch_tokens, recipe.text.context))],
        "train": [("train.batch", _halves(batch, _LEAST_BATCH)), fewer_latents],
        "measure": [fewer_latents, fewer_measured],
    }
    taken = {"harvest": wanted.harvest + wanted.forward, "train": wanted.train, "measure": wanted.measure}
    stages = sorted(taken, key=taken.get, reverse=True)
    smaller_model = ("model.dtype", ["bf16"] if recipe.model.dtype == "fp32" else [])
    return [*(option for stage in stages for option in by_stage[stage]), smaller_model]


def _windows(recipe: Recipe) -> list[int]:
    """Values of harvest.window_tokens, the largest first; [] if it is set already or does not work with the recipe."""
    harvest = recipe.harvest
    if harvest.window_tokens or harvest.tokens or recipe.hook.also or is_planted(recipe):
        return []
    return _down(recipe.train.tokens, _LEAST_WINDOW * recipe.train.batch)


def _halves(high: int, low: int) -> list[int]:
    return [high >> i for i in range(1, 32) if high >> i >= low]


def _down(high: int, low: int, grain: int = 0) -> list[int]:
    """Values from just below `high` down to `low`, 5% apart, rounded to multiples of `grain` or to two significant
    digits.
    """
    lower = (int(high * _SHRINK**power) for power in itertools.count(1))
    values = itertools.takewhile(lambda value: value >= max(low, 1), lower)
    rounded = [value - value % (grain or 10 ** max(len(str(value)) - 2, 0)) for value in values]
    return [value for value in dict.fromkeys(rounded) if low <= value < high]


def _with(recipe: Recipe, settings: list[Change]) -> Recipe:
    return Recipe.load(recipe.model_dump(mode="json"), dict(settings))
