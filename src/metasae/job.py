"""The main job: harvest once, train every arm and seed on the same stream, calibrate, measure, compare, report.

Each stage leaves whole files behind and is skipped when they are there, so running the same command again goes on where
it stopped.
"""

import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import metasae
from metasae import files, start
from metasae.arm import is_trained, measure_arm, train_arm
from metasae.conclusion import conclude
from metasae.data.cache import ActivationCache, is_held, open_cache
from metasae.data.planted_cache import PlantedCache
from metasae.doctor.fit import refuse_what_cannot_fit
from metasae.errors import Interrupted
from metasae.memory import keep_freed_memory
from metasae.parallel.ranks import ALONE, Ranks, joined
from metasae.progress import Progress
from metasae.recipe import Recipe
from metasae.run_lock import first_alone_on
from metasae.source import Source
from metasae.tracking.follow import following
from metasae.train.loop import StopRequest


def run(
    recipe: str | Path | dict | Recipe,
    out: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    show: bool = True,
    track: str | None = None,
) -> dict:
    """Runs a recipe to its report; the returned dictionary is compare.json with the run folder's path.

    recipe: a shipped name, a TOML file, a dictionary or a Recipe. out: the run folder (runs/NAME when None).
    overrides: dotted keys, e.g. {"train.lambda2": 0.1}. show: progress on stderr, tables on stdout. track: 'tensorboard' or 'wandb', where
    curves and measures are sent as they are written.
    Raises UserError for anything the user can put right, Interrupted after a signal once the state is saved.
    """
    resolved, folder = start.resolve(recipe, out, overrides, device)
    if dry_run:
        return start.plan(resolved, folder, show)
    progress = Progress(show)
    with joined(device) as ranks, first_alone_on(folder, progress), following(folder, track if ranks.first else None, progress.say):
        return _run(resolved, folder, device, ranks, show and ranks.first)


def _run(recipe: Recipe, folder: Path, device: str, ranks: Ranks, show: bool) -> dict:
    """The run of this process among `ranks`; what takes two SAEs and the report are the first one's alone, which gives the result."""
    if ranks.first:
        start.claim(recipe, folder)
    ranks.wait()
    keep_freed_memory()
    job = _Job(recipe, folder, ranks.device(device), Progress(show), ranks)
    try:
        # the harvest stops at once and goes on from its last note; training and measuring end their step first
        job.harvest()
        with StopRequest().listening() as stop:
            job.go(stop)
    except Interrupted as error:
        raise Interrupted(f"{error}. Go on with: {_command(folder, device, ranks)}") from None
    except KeyboardInterrupt:
        # in the harvest, or a second Ctrl-C in a stage that did not look at the first
        raise Interrupted(f"stopped at once; finished stages are kept. Go on with: {_command(folder, device, ranks)}") from None
    return conclude(folder, show) if ranks.first else {}


class _Job:
    """One pass over the stages of a run folder."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, progress: Progress, ranks: Ranks = ALONE):
        self.recipe, self.folder, self.device, self.progress, self.ranks = recipe, folder, device, progress, ranks
        self.source = Source(recipe, folder, device, progress, ranks)
        self._cache: ActivationCache | PlantedCache | None = None
        self._reference = None
        self._read_state()

    def _read_state(self) -> None:
        path = self.folder / "run.json"
        self.state = files.read_json(path) if path.exists() else {}
        seeds = list(dict.fromkeys([*self.state.get("seeds", ()), *self.recipe.seeds]))
        self.state |= {"versions": _versions(), "device": self.device, "threads": torch.get_num_threads(), "seeds": seeds}
        self.state.setdefault("stages", {})

    def go(self, stop: StopRequest) -> None:
        """Trains and measures what is not done yet; `harvest` comes first."""
        arms, cache = self._arms(), self._cache
        if cache is None:
            self.progress.say("every arm is trained and measured already")
        else:
            self._train_all(cache, arms, stop)
            for arm, seed in arms:
                self._measure(cache, arm, seed)
                if self.ranks.any(stop.asked, "stop"):
                    raise Interrupted("stopped between two stages; what is done is kept")
        # of all arms in the folder; what is there already is kept
        if self.ranks.first:
            self._across()
            self._explorer()

    def _arms(self) -> list[tuple[str, int]]:
        return [(arm, seed) for seed in self.recipe.seeds for arm in self.recipe.arms]

    def harvest(self) -> None:
        """Opens the activation cache, filling it first where that is not done; nothing where every arm is measured and no point was added."""
        stage = self.state["stages"].get("harvest", {})
        measured = all((self._arm(*each) / "measures.json").exists() for each in self._arms())
        if not self.ranks.agreed(measured and self._points() == stage.get("points", self._points())):
            self._cache = self._open_or_harvest(stage)

    def _points(self) -> list[str]:
        return [self.recipe.hook.point, *self.recipe.hook.also]

    def _open_or_harvest(self, stage: dict) -> ActivationCache | PlantedCache:
        recipe = self.recipe
        tokens = recipe.split_tokens
        if self.source.planted:
            return self.source.open(tokens)
        if recipe.harvest.window_tokens:
            del tokens["train"]  # it comes in windows
        there = self._points() == stage.get("points")
        if self.ranks.agreed(there and is_held(stage["cache"], stage["fingerprint"], tokens)):
            # harvested before by this very run: the text need not be gathered nor the model loaded to know it fits
            return open_cache(stage["cache"], fingerprint=stage["fingerprint"], tokens=tokens)
        start = time.perf_counter()
        if self.ranks.first:
            refuse_what_cannot_fit(recipe, self.source.host.d, self.folder, device=self.device)
        cache = self.source.open(tokens)
        self._done(
            "harvest",
            start,
            cache=str(cache.folder.resolve()),
            fingerprint=cache.fingerprint,
            points=self._points(),
            documents=cache.index["documents_blake2b"],
            **({"training_tokens": cache.split("train").n_tokens} if "train" in tokens else {}),
        )
        return cache

    def _train_all(self, cache: ActivationCache | PlantedCache, arms: list[tuple[str, int]], stop: StopRequest) -> None:
        if self.recipe.harvest.window_tokens:
            from metasae.windows import train_by_windows

            train_by_windows(self.recipe, self.source, cache, arms, self._arm, self._done, self.device, self.progress, stop, self.ranks)
            return
        for number, (arm, seed) in enumerate(arms, 1):
            self._train(cache, arm, seed, f"train {arm}-s{seed} ({number}/{len(arms)})", stop)

    def _train(self, cache: ActivationCache, arm: str, seed: int, title: str, stop: StopRequest) -> None:
        folder = self._arm(arm, seed)
        if self.ranks.agreed(is_trained(folder)):
            return
        start = time.perf_counter()
        train_arm(self.recipe, self.source, cache, arm, seed, folder, self.device, self.progress, title, stop, self.ranks)
        self._done(f"train {arm}-s{seed}", start)

    def _measure(self, cache: ActivationCache, arm: str, seed: int) -> None:
        folder = self._arm(arm, seed)
        if self.ranks.agreed((folder / "measures.json").exists()):
            return
        start = time.perf_counter()
        twins = {f"{other}-s{seed}": self._arm(other, seed) for other in self.recipe.arms}
        self._reference = measure_arm(self.recipe, self.source, cache, seed, folder, twins, self._reference, self.progress, self.ranks)
        self._done(f"measure {arm}-s{seed}", start)

    def _across(self) -> None:
        """What takes two SAEs; parts that were worked out before with the same SAEs are kept."""
        from metasae.measures.across import is_wanted, measure_across, members_of

        if not is_wanted(self.recipe.measure, self.progress):
            return
        start, path = time.perf_counter(), self.folder / "across.json"
        held = files.read_json(path) if path.exists() else None
        found = measure_across(members_of(self.folder), held, self.progress, self.source.steering)
        if found != held:
            files.write_json(path, found)
            self._done("across", start)

    def _explorer(self) -> None:
        """The store that the explorer and the report's windows are read from."""
        if self.recipe.measure.keep_firings and self.recipe.measure.explorer:
            from metasae.explore.build import build
            from metasae.explore.schema import STORE

            start, store = time.perf_counter(), self.folder / STORE
            before = store.stat().st_mtime_ns if store.is_file() else None
            build(self.folder, self.progress)
            if store.stat().st_mtime_ns != before:
                self._done("explorer", start)

    def _arm(self, arm: str, seed: int) -> Path:
        return self.folder / "arms" / f"{arm}-s{seed}"

    def _done(self, stage: str, start: float, **facts: Any) -> None:
        self.state["stages"][stage] = {"state": "done", "seconds": round(time.perf_counter() - start, 2), **facts}
        if "fingerprint" in facts:
            self.state["data_fingerprint"] = facts["fingerprint"]
        if self.ranks.first:
            files.write_json(self.folder / "run.json", self.state)


def _command(folder: Path, device: str, ranks: Ranks) -> str:
    """The shell command that goes on with a run; of several processes, as on one machine."""
    program = ["metasae"] if ranks.size == 1 else ["torchrun", "--nproc-per-node", str(ranks.size), "-m", "metasae"]
    words = [*program, "run", str(folder / "recipe.toml"), "--out", str(folder)]
    return shlex.join(words if device == "cpu" else [*words, "--device", device])


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "safetensors", "numpy", "scipy")
    return {"metasae": metasae.__version__, "python": platform.python_version(), "system": sys.platform} | {
        package: metadata.version(package) for package in packages
    }
