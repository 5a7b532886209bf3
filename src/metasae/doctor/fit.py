"""Whether a recipe fits a machine, and the nearest one that would: arithmetic only."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from math import floor, log10
from pathlib import Path
from typing import Any

from metasae.data.cache.cache import SHARDS
from metasae.doctor.estimate import Needs, is_planted, needs
from metasae.doctor.machine import free_disk, memory_of, same_disk
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe

# Values tried one after the other when a number of the recipe is lowered.
_SHRINK = 0.95
# A run with fewer steps, smaller batches or a smaller share of the latents says nothing about the recipe that was asked for.
_LEAST_STEPS, _LEAST_BATCH, _LEAST_LATENTS = 100, 256, 1 / 16
# Batches in a window of activations: within it they are shuffled.
_LEAST_WINDOW = 1000

Change = tuple[str, Any]


@dataclass(frozen=True)
class Room:
    """Bytes that a run may take. memory: None where the system does not say. gpu: None without one.

    cache, run: free on the disks of the cache and of the run folder, with what these folders hold already; shared: they are one disk.
    """

    memory: int | None
    gpu: int | None
    cache: int
    run: int
    shared: bool


@dataclass(frozen=True)
class Shortage:
    """resource: `disk of the cache`, `disk of the run folder`, `disk`, `memory` or `GPU memory`. needed, there: bytes."""

    resource: str
    needed: int
    there: int

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.resource}: {size(self.needed)} needed, {size(self.there)} there"


def disk_room(run: Path, cache: Path, memory: int | None = None, gpu: int | None = None) -> Room:
    """The room on the disks of a run folder and a cache folder, which need not exist yet; what they hold is used again or replaced.

    cache: one cache, or the folder that caches lie in, where the run's own may be any of them.
    """
    shared, held, kept = same_disk(run, cache), _held(cache.rglob(SHARDS)), _held(run.rglob("*"))
    return Room(memory or None, gpu, free_disk(cache) + held + kept * shared, free_disk(run) + kept, shared)


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
    """The settings, as few as can be found, with which the recipe fits; none where it does already, None where nothing helps.

    Each was tried: with all of them `shortages` finds nothing.
    """
    made: list[Change] = []
    for _ in range(4):  # as many as there are resources
        short = shortages(needs_of(recipe), room)
        if not short:
            return made
        steps = _relieve(recipe, short[0].resource, needs_of, room)
        if steps is None:
            return None
        made += steps
        recipe = _with(recipe, steps)
    return None if shortages(needs_of(recipe), room) else made


def refuse_what_cannot_fit(recipe: Recipe, d: int, out: Path, cache: Path | None = None, device: str = "cpu") -> None:
    """Raises UserError when the activation cache cannot fit on its disk, or weights, moments and gradients not in memory.

    A look before a run, at no cost: only what is certain is refused, `metasae doctor` estimates the rest. d: width of the hooked
    tensor. out: the run folder. cache: the cache's folder; what both hold already counts as free.
    """
    cache = cache or Path(recipe.harvest.cache or out.parent / "activations")

    def certain(some: Recipe) -> Needs:
        found = needs(some, d, model=0, on_gpu=device != "cpu")
        return replace(found, process=0, harvest=0, forward=0, measure=0, train=found.weights)

    room = disk_room(out, cache, memory_of()[1], _free_gpu(device))
    short = shortages(certain(recipe), room)
    if not short:
        return
    found = changes(recipe, certain, room)
    what = f"this run cannot fit; {'; '.join(map(str, short))}"
    cure = (
        f"set {' '.join(f'{key}={shown(value)}' for key, value in found)}" if found else "use a larger machine or disk"
    )
    raise UserError(f"{what}; {cure} ('metasae doctor' says more)")


def size(count: float) -> str:
    """Bytes in words: 1.2 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def shown(value: Any) -> str:
    """A value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _held(places: Iterable[Path]) -> int:
    """Bytes of the files among them."""
    return sum(place.stat().st_size for place in places if place.is_file())


def _relieve(recipe: Recipe, resource: str, needs_of: Callable[[Recipe], Needs], room: Room) -> list[Change] | None:
    """The settings that end one shortage: a single one where one is enough, else the strongest of each until it ends."""

    def ended(some: Recipe) -> bool:
        return resource not in [short.resource for short in shortages(needs_of(some), room)]

    options = _options(recipe, resource, needs_of(recipe))
    for key, values in options:
        for value in values:
            if ended(_with(recipe, [(key, value)])):
                return [(key, value)]
    steps: list[Change] = []
    for key, values in options:
        if values:
            last = next((value for value in values if ended(_with(recipe, [*steps, (key, value)]))), values[-1])
            steps.append((key, last))
            if ended(_with(recipe, steps)):
                return steps
    return None


def _options(recipe: Recipe, resource: str, wanted: Needs) -> list[tuple[str, list]]:
    """Key -> the values it may be set to, gentlest first; the key that changes least about the run comes first."""
    cached, harvest, batch, n = recipe.split_tokens["train"], recipe.harvest, recipe.train.batch, recipe.sae.n
    if resource.startswith("disk"):
        on_cache = [
            ("harvest.dtype", ["bf16"] if harvest.dtype == "fp32" else []),
            ("harvest.window_tokens", list(_windows(recipe))),
            (
                "harvest.tokens" if harvest.tokens else "train.tokens",
                list(_down(cached, _LEAST_STEPS * batch, significant=True)),
            ),
            ("measure.tokens", list(_down(recipe.measure.tokens, 10_000, significant=True))),
        ]
        on_run = [("measure.keep_firings", [False] if recipe.measure.keep_firings else [])]
        return on_run + on_cache if wanted.run_folder > wanted.cache else on_cache + on_run
    smaller_model = ("model.dtype", ["bf16"] if recipe.model.dtype == "fp32" else [])
    smaller_batch = ("train.batch", [batch >> i for i in range(1, 32) if batch >> i >= _LEAST_BATCH])
    fewer_latents = (
        "sae.n",
        list(_down(n, max(recipe.sae.k, recipe.sae.k_start, round(_LEAST_LATENTS * n)), grain=64)),
    )
    fewer_at_once = (
        "harvest.batch_tokens",
        [harvest.batch_tokens >> i for i in range(1, 32) if harvest.batch_tokens >> i >= recipe.text.context],
    )
    fewer_measured = ("measure.tokens", list(_down(recipe.measure.tokens, 10_000, significant=True)))
    by_stage = {
        "harvest": [fewer_at_once],
        "train": [smaller_batch, fewer_latents],
        "measure": [fewer_latents, fewer_measured],
    }
    stages = sorted(wanted.stages, key=wanted.stages.get, reverse=True)
    return list(dict([option for stage in stages for option in by_stage[stage]] + [smaller_model]).items())


def _windows(recipe: Recipe) -> Iterator[int]:
    """Windows of activations, the widest first; none where they are in use or do not go with the recipe."""
    harvest = recipe.harvest
    if not (harvest.window_tokens or harvest.tokens or recipe.hook.also or is_planted(recipe)):
        yield from _down(recipe.train.tokens, _LEAST_WINDOW * recipe.train.batch, significant=True)


def _down(high: int, low: int, grain: int = 1, significant: bool = False) -> Iterator[int]:
    """Values below `high` and not below `low`, 5% apart, in multiples of `grain` or with two significant digits."""
    value, last = high * _SHRINK, high
    while value >= max(low, 1):
        step = 10 ** max(floor(log10(value)) - 1, 0) if significant else grain
        rounded = int(value) // step * step
        if low <= rounded < last:
            yield rounded
            last = rounded
        value *= _SHRINK


def _with(recipe: Recipe, settings: list[Change]) -> Recipe:
    return Recipe.load(recipe.model_dump(mode="json"), dict(settings))


def _free_gpu(device: str) -> int | None:
    if device == "cpu":
        return None
    import torch

    return torch.cuda.mem_get_info(torch.device(device))[0]
