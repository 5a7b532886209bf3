"""The main job: harvest once, train every arm and seed on the same stream, calibrate, measure, compare, report.

Each stage leaves whole files behind and is skipped when they are there, so running the same command again goes on where
it stopped.
"""

import platform
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import metasae
from metasae import files
from metasae.arms.source import Source
from metasae.arms.train_measure import is_trained, measure_arm, train_arm, trains_on_one_core
from metasae.data.cache.cache import ActivationCache, is_held, open_cache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.device import keep_freed_memory
from metasae.doctor.fit import refuse_what_cannot_fit
from metasae.errors import Interrupted
from metasae.jobs import run_stages, start
from metasae.jobs.conclude import conclude, print_conclusion, print_next_steps
from metasae.jobs.remeasure import bring_up_to_date, forget_what_rests_on, is_measured, measured_otherwise, said_of
from metasae.locks import first_alone_on
from metasae.progress.progress import Progress, SharedTask
from metasae.progress.stages import Stage
from metasae.progress.stop import StopRequest
from metasae.ranks.lanes import side_by_side
from metasae.ranks.ranks import ALONE, Ranks, joined
from metasae.recipe.recipe import Recipe
from metasae.recipe.resolve import resolve
from metasae.tracking.follow import following


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
    resolved, folder = resolve(recipe, out, overrides, device)
    if dry_run:
        return start.plan(resolved, folder, show)
    progress = Progress(show)
    with (
        joined(device) as ranks,
        first_alone_on(folder, progress),
        following(folder, track if ranks.first else None, progress.say),
    ):
        result = _run(resolved, folder, device, ranks, show and ranks.first)
    if show and result:
        print_conclusion(result)
        print_next_steps(folder)
    return result


def _run(recipe: Recipe, folder: Path, device: str, ranks: Ranks, show: bool) -> dict:
    """The run of this process among `ranks`; what takes two SAEs and the report are the first one's alone, which gives the result."""
    if ranks.first:
        start.claim(recipe, folder)
    ranks.wait()
    keep_freed_memory()
    progress = Progress(show)
    stop = StopRequest(progress.answer if ranks.first else None)
    try:
        with stop.listening():
            job = _Job(recipe, folder, ranks.device(device), progress, stop, ranks)
            with progress.run(job.stages()):
                return job.go()
    except Interrupted as error:
        raise Interrupted(f"{error}. Go on with: {_command(folder, device, ranks)}") from None
    except KeyboardInterrupt:
        # all but training stops so, and training at a second Ctrl-C
        kept = f"stopped at once ({stop.doing}); what is finished is kept"
        raise Interrupted(f"{kept}. Go on with: {_command(folder, device, ranks)}") from None


class _Job:
    """One pass over the stages of a run folder."""

    def __init__(
        self, recipe: Recipe, folder: Path, device: str, progress: Progress, stop: StopRequest, ranks: Ranks = ALONE
    ):
        self.recipe, self.folder, self.device = recipe, folder, device
        self.progress, self.stop, self.ranks = progress, stop, ranks
        self.source = Source(recipe, folder, device, progress, ranks)
        self._cache: ActivationCache | PlantedCache | None = None
        self._reference = None
        # arms that are trained side by side end side by side
        self._noting = threading.Lock()
        self._read_state()

    def _read_state(self) -> None:
        path = self.folder / "run.json"
        self.state = files.read_json(path) if path.exists() else {}
        seeds = list(dict.fromkeys([*self.state.get("seeds", ()), *self.recipe.seeds]))
        self.state |= {
            "versions": _versions(),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "seeds": seeds,
        }
        self.state.setdefault("stages", {})

    def stages(self) -> list[Stage]:
        """Those that are left to do."""
        harvested = self._is_harvested() or self._is_measured()
        return run_stages.left(self.recipe, self.folder, harvested, self._in_lanes)

    def go(self) -> dict:
        """Does what is not done yet; returns what `metasae.jobs.conclude.conclude` does, on the first rank."""
        self.harvest()
        arms, cache = self._arms(), self._cache
        if cache is None:
            self.progress.say("every arm is trained and measured already")
        else:
            self._train_all(cache, arms)
            otherwise = self._otherwise()
            if otherwise and self.ranks.first:
                self.progress.say(said_of(otherwise))
                forget_what_rests_on(self.folder)
            for arm, seed in dict.fromkeys([*arms, *otherwise]):
                self._measure(cache, arm, seed)
                if self.ranks.any(self.stop.asked):
                    raise Interrupted("stopped between two stages; what is done is kept")
        if not self.ranks.first:
            return {}
        # of all arms in the folder; what is there already is kept
        self._across()
        self._explorer()
        with self._stage(run_stages.REPORT):
            result = conclude(self.folder, show=False)
            # its overview shows the comparison, which is new; left for later, opening the explorer would have to load torch first
            self._store()
            return result

    @contextmanager
    def _stage(self, stage: Stage, at_once: bool = True) -> Iterator[None]:
        """Shows a stage. at_once: a signal stops it right away, as only its own unfinished file is lost by that."""
        self.stop.doing = stage.title
        with self.progress.stage(stage), self.stop.at_once() if at_once else nullcontext():
            yield

    def _otherwise(self) -> dict[tuple[str, int], list[str]]:
        """The arms in the folder that were measured by other settings, whether this call names them or not: a run's arms are judged alike."""
        return self.ranks.from_first(measured_otherwise(self.folder, self.recipe.measure) if self.ranks.first else None)

    def _arms(self) -> list[tuple[str, int]]:
        return [(arm, seed) for seed in self.recipe.seeds for arm in self.recipe.arms]

    def harvest(self) -> None:
        """Opens the activation cache, filling it first where that is not done; nothing where every arm is measured and no point was added."""
        if self.ranks.agreed(self._is_measured()):
            return
        if self.source.planted:
            with self._stage(run_stages.PLANTED):
                self._cache = self.source.open(self._tokens())
        elif self.ranks.agreed(self._is_harvested()):
            # harvested before by this very run: the text need not be gathered nor the model loaded to know it fits
            known = self._known()
            self._cache = open_cache(known["cache"], fingerprint=known["fingerprint"], tokens=self._tokens())
        else:
            with self._stage(run_stages.HARVEST):
                self._cache = self._harvested()

    def _known(self) -> dict:
        """What run.json says of the harvest."""
        return self.state["stages"].get("harvest", {})

    def _is_measured(self) -> bool:
        """Whether every arm is, as the recipe asks now, and no hook point was added since."""
        spec = self.recipe.measure
        measured = not measured_otherwise(self.folder, spec) and all(
            is_measured(self._arm(*each), spec) for each in self._arms()
        )
        return measured and self._points() == self._known().get("points", self._points())

    def _is_harvested(self) -> bool:
        """Whether the cache that this run filled is there with all tokens."""
        known = self._known()
        return self._points() == known.get("points") and is_held(known["cache"], known["fingerprint"], self._tokens())

    def _tokens(self) -> dict[str, int]:
        """Of each split in the cache; none for training where they come in windows, and where all arms are trained."""
        tokens = self.recipe.split_tokens
        in_windows = self.recipe.harvest.window_tokens and not self.source.planted
        if in_windows or (
            self._points() == self._known().get("points") and all(is_trained(self._arm(*each)) for each in self._arms())
        ):
            del tokens["train"]
        return tokens

    def _points(self) -> list[str]:
        return [self.recipe.hook.point, *self.recipe.hook.also]

    def _harvested(self) -> ActivationCache:
        start, tokens = time.perf_counter(), self._tokens()
        if self.ranks.first:
            refuse_what_cannot_fit(self.recipe, self.source.host.d, self.folder, device=self.device)
        cache = self.source.open(tokens)
        # known from before where there are none to harvest
        training = cache.split("train").n_tokens if "train" in tokens else self._known().get("training_tokens")
        self._done(
            "harvest",
            time.perf_counter() - start,
            cache=str(cache.folder.resolve()),
            fingerprint=cache.fingerprint,
            points=self._points(),
            documents=cache.index["documents_blake2b"],
            training_tokens=training,
        )
        return cache

    def _train_all(self, cache: ActivationCache | PlantedCache, arms: list[tuple[str, int]]) -> None:
        if not self.recipe.harvest.window_tokens:
            left = [each for each in arms if not self.ranks.agreed(is_trained(self._arm(*each)))]
            for arm, seed in arms:
                if (arm, seed) not in left and self.ranks.first:
                    # a signal that came between the SAE and the end of its stage leaves them
                    shutil.rmtree(self._arm(arm, seed) / "checkpoints", ignore_errors=True)
            if len(left) > 1 and self._in_lanes:
                self._train_side_by_side(cache, left)
            else:
                for arm, seed in left:
                    with self._stage(run_stages.training([(arm, seed)]), at_once=False):
                        self._train(cache, arm, seed, self.progress)
        elif not self.ranks.agreed(all(is_trained(self._arm(*each)) for each in arms)):
            from metasae.arms.by_windows import train_by_windows

            with self._stage(run_stages.WINDOWS, at_once=False):
                train_by_windows(
                    self.recipe, self.source, cache, arms, self._arm, self._done,
                    self.device, self.progress, self.stop, self.ranks,
                )  # fmt: skip

    @property
    def _in_lanes(self) -> bool:
        """Whether arms are trained side by side."""
        return self.ranks.size == 1 and trains_on_one_core(self.recipe, self.device)

    def _train_side_by_side(self, cache: ActivationCache | PlantedCache, arms: list[tuple[str, int]]) -> None:
        """Small SAEs, each on a core of its own; those with a meta SAE, which take longer, begin first."""
        arms = sorted(arms, key=lambda each: each[0] == "solo")
        total = len(arms) * self.recipe.train.tokens
        with (
            self._stage(run_stages.training(arms), at_once=False),
            self.progress.task("training", total) as task,
        ):
            start, shared = time.perf_counter(), SharedTask(task)
            side_by_side(lambda each: self._train(cache, *each, shared), arms)
            self._done("side by side", time.perf_counter() - start)

    def _train(
        self, cache: ActivationCache | PlantedCache, arm: str, seed: int, progress: Progress | SharedTask
    ) -> None:
        start = time.perf_counter()
        train_arm(
            self.recipe,
            self.source,
            cache,
            arm,
            seed,
            self._arm(arm, seed),
            self.device,
            progress,
            "training",
            self.stop,
            self.ranks,
        )
        self._done(f"train {arm}-s{seed}", time.perf_counter() - start)

    def _measure(self, cache: ActivationCache, arm: str, seed: int) -> None:
        folder = self._arm(arm, seed)
        if self.ranks.agreed(is_measured(folder, self.recipe.measure)):
            return
        start = time.perf_counter()
        bring_up_to_date(self.recipe, cache, folder, self.progress, self.ranks)
        twins = {f"{other}-s{seed}": self._arm(other, seed) for other in self.recipe.arms}
        with self._stage(run_stages.measuring(arm, seed, self.recipe.arms)):
            self._reference = measure_arm(
                self.recipe, self.source, cache, seed, folder, twins, self._reference, self.progress, self.ranks
            )
            self._done(f"measure {arm}-s{seed}", time.perf_counter() - start)

    def _across(self) -> None:
        """What takes two SAEs; parts that were worked out before with the same SAEs are kept."""
        from metasae.compare.across import is_wanted, measure_across, measured_arms

        if not is_wanted(self.recipe.measure, self.progress):
            return
        start, path = time.perf_counter(), self.folder / "across.json"
        with self._stage(run_stages.ACROSS):
            held = files.read_json(path) if path.exists() else None
            found = measure_across(measured_arms(self.folder), held, self.progress, self.source.steering)
            if found != held:
                files.write_json(path, found)
                self._done("across", time.perf_counter() - start)

    def _explorer(self) -> None:
        """The store that the explorer and the report's windows are read from."""
        if self._has_store:
            start = time.perf_counter()
            with self._stage(run_stages.EXPLORER):
                if self._store():
                    self._done("explorer", time.perf_counter() - start)

    @property
    def _has_store(self) -> bool:
        return self.recipe.measure.keep_firings and self.recipe.measure.explorer

    def _store(self) -> bool:
        """Brings the explorer's store up to date, where the recipe has one; whether there was anything to write."""
        if not self._has_store:
            return False
        from metasae.explore.store.build import build
        from metasae.explore.store.schema import STORE

        store = self.folder / STORE
        before = store.stat().st_mtime_ns if store.is_file() else None
        build(self.folder, self.progress)
        return store.stat().st_mtime_ns != before

    def _arm(self, arm: str, seed: int) -> Path:
        return self.folder / "arms" / f"{arm}-s{seed}"

    def _done(self, stage: str, seconds: float, **facts: Any) -> None:
        with self._noting:
            self.state["stages"][stage] = {"state": "done", "seconds": round(seconds, 2), **facts}
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
