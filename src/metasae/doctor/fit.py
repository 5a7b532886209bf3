"""Whether a recipe fits a machine, and the nearest one that would: arithmetic only."""

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

# Values tried one after the other when a number of the recipe is lowered.
_SHRINK = 0.95
# A run with fewer steps, smaller batches or a smaller share of the latents says nothing about the recipe that was asked
# for.
_LEAST_STEPS, _LEAST_BATCH, _LEAST_LATENTS, _LEAST_MEASURED = 100, 256, 1 / 16, 10_000
# Batches in a window of activations: within it they are shuffled.
_LEAST_WINDOW = 1000

Change = tuple[str, Any]


@dataclass(frozen=True)
class Room:
    """Bytes that a run may take. memory: None where the system does not say. gpu: None without one.

    cache, run: free on the disks of the cache and of the run folder, with what these folders hold already. shared: they
    are one disk.
    """

    memory: int | None
    gpu: int | None
    cache: int
    run: int
    shared: bool


@dataclass(frozen=True)
class Shortage:
    """needed, there: bytes. resource: `disk of the cache`, `disk of the run folder`, `disk`, `memory`, `GPU memory`."""

    resource: str
    needed: int
    there: int

    def __str__(self) -> str:
        return f"{self.resource}: {size(self.needed)} needed, {size(self.there)} there"


def disk_room(run: Path, cache: Path, memory: int | None = None, gpu: int | None = None) -> Room:
    """The room on the disks of a run folder and a cache folder, which need not exist yet. What they hold is used again
    or replaced.

    cache: one cache, or the folder that caches lie in, where the run's own may be any of them.
    """
    shared, cached, kept = same_disk(run, cache), _bytes_of(cache.rglob(SHARDS)), _bytes_of(run.rglob("*"))
    return Room(memory or None, gpu, free_disk(cache) + cached + kept * shared, free_disk(run) + kept, shared)


def shortages(wanted: Needs, room: Room) -> list[Shortage]:
    """What there is too little of."""
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
    """The settings, as few as can be found, with which the recipe fits; none where it does already, None where nothing
    helps. Each was tried: with all of them `shortages` returns none.
    """
    settings: list[Change] = []
    # each round leaves less to lower, so there is a last one
    while short := shortages(needs_of(recipe), room):
        steps = _relieve(recipe, short[0].resource, needs_of, room)
        if steps is None:
            return None
        settings += steps
        recipe = _with(recipe, steps)
    return settings


def refuse_what_cannot_fit(recipe: Recipe, d: int, out: Path, device: str = "cpu") -> None:
    """Raises UserError when the activation cache cannot fit on its disk, or weights, moments and gradients not in
    memory.

    A look before a run, at no cost: only what is certain is refused, `metasae doctor` estimates the rest. d: width of
    the hooked tensor. out: the run folder; what it and the cache's folder hold already counts as free.
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
    raise UserError(f"{what}; {cure} ('metasae doctor' says more)")


def size(count: float) -> str:
    """Bytes in words: 1.2 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def setting(change: Change) -> str:
    """KEY=VALUE, as `--set` takes it."""
    key, value = change
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _bytes_of(places: Iterable[Path]) -> int:
    """Bytes of the files among them."""
    return sum(place.stat().st_size for place in places if place.is_file())


def _relieve(recipe: Recipe, resource: str, needs_of: Callable[[Recipe], Needs], room: Room) -> list[Change] | None:
    """The settings that end one shortage: one where one is enough, else the strongest of each until it ends."""

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
    """Key -> the values it may be set to, gentlest first; the key that changes least about the run comes first."""
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
    """Windows of activations, the widest first; none where they are in use or do not go with the recipe."""
    harvest = recipe.harvest
    if harvest.window_tokens or harvest.tokens or recipe.hook.also or is_planted(recipe):
        return []
    return _down(recipe.train.tokens, _LEAST_WINDOW * recipe.train.batch)


def _halves(high: int, low: int) -> list[int]:
    return [high >> i for i in range(1, 32) if high >> i >= low]


def _down(high: int, low: int, grain: int = 0) -> list[int]:
    """Values below `high` and not below `low`, 5% apart, in multiples of `grain` or with two significant digits."""
    lower = (int(high * _SHRINK**power) for power in itertools.count(1))
    values = itertools.takewhile(lambda value: value >= max(low, 1), lower)
    rounded = [value - value % (grain or 10 ** max(len(str(value)) - 2, 0)) for value in values]
    return [value for value in dict.fromkeys(rounded) if low <= value < high]


def _with(recipe: Recipe, settings: list[Change]) -> Recipe:
    return Recipe.load(recipe.model_dump(mode="json"), dict(settings))
