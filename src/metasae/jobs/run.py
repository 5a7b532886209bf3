"""The main job: harvest once, train every arm and seed on the same stream, calibrate, measure, compare, report.

Each stage writes complete files and is skipped if they exist, so the same command continues a run that stopped.
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
from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.arms.measure import measure_arm
from metasae.arms.source import Source
from metasae.arms.train import train_arm, train_by_windows, trains_on_one_core
from metasae.data.cache.cache import ActivationCache, is_held
from metasae.data.cache.given import GivenCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.device import keep_freed_memory
from metasae.doctor.fit import refuse_what_cannot_fit
from metasae.errors import Dropped, Interrupted
from metasae.jobs import pending, start
from metasae.jobs.conclude import across, conclude, print_conclusion, print_next_steps, store
from metasae.jobs.init import is_missing, keep_init, read_init, refuse_other_width
from metasae.jobs.pending import bring_up_to_date, is_measured, measured_otherwise, said_of
from metasae.jobs.results import Run
from metasae.progress.progress import Progress, SharedTask
from metasae.progress.stages import Stage
from metasae.progress.stop import StopRequest
from metasae.ranks.lanes import side_by_side
from metasae.ranks.ranks import ALONE, Ranks, joined
from metasae.recipe.meaning import notes_on
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE
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
) -> Run | dict:
    """Runs a recipe: harvests, trains, measures, compares and writes the report; returns the run.

    recipe: a shipped name, a TOML file, a dictionary or a Recipe. out: the run folder (runs/NAME when None).
    overrides: dotted keys, e.g. {"train.lambda2": 0.1}. show: print progress on stderr and tables on stdout. track:
    'tensorboard' or 'wandb'; training curves and measures are sent there during the run. dry_run: write nothing, and
    return what the run would do as a dictionary.
    Raises UserError for anything the user can correct, Interrupted after a signal, when the state is saved.
    """
    resolved, folder = resolve(recipe, out, overrides, device)
    if dry_run:
        return start.dry_run(resolved, folder, show)
    with start.started(resolved, folder, track, Progress(show)):
        return Run(folder, carry_out(resolved, folder, device, show, track))


def carry_out(
    recipe: Recipe, folder: Path, device: str, show: bool = True, track: str | None = None, tables: bool = True
) -> dict:
    """`run` in a folder that `metasae.jobs.start.started` holds. Returns the content of compare.json with the paths of
    run folder and report; {} on all ranks but the first. tables: with `show`, the tables and next steps are printed
    too.
    """
    with joined(device) as ranks, following(folder, track if ranks.first else None, Progress(show).say):
        result = _run(recipe, folder, device, ranks, show and ranks.first)
    if show and tables and result:
        print_conclusion(result)
        print_next_steps(folder, result)
    return result


def _run(recipe: Recipe, folder: Path, device: str, ranks: Ranks, show: bool) -> dict:
    """The part of this process in the run. Only the first rank compares SAEs, writes the report and returns the
    result.
    """
    keep_freed_memory()
    progress = Progress(show)
    for note in notes_on(recipe):
        progress.say(f"note: {note}")
    stop = StopRequest(progress.answer if ranks.first else None)
    try:
        with stop.listening():
            job = _Job(recipe, folder, ranks.device(device), progress, stop, ranks)
            with progress.run(job.stages()):
                return job.go()
    except Interrupted as error:
        raise Interrupted(f"{error}. Continue with: {_command(folder, device, ranks)}") from None
    except Dropped as error:
        raise Dropped(f"{error}: {_command(folder, device, ranks)}") from None
    except KeyboardInterrupt:
        # every stage but training stops this way; training does at a second Ctrl-C
        kept = f"stopped at once ({stop.doing}); what is finished is kept"
        raise Interrupted(f"{kept}. Continue with: {_command(folder, device, ranks)}") from None


class _Job:
    """One pass over the stages of a run folder."""

    def __init__(
        self, recipe: Recipe, folder: Path, device: str, progress: Progress, stop: StopRequest, ranks: Ranks = ALONE
    ):
        self.recipe, self.run, self.folder = recipe, RunFolder(folder), folder
        self.progress, self.stop, self.ranks = progress, stop, ranks
        self.source = Source(recipe, folder, device, progress, ranks)
        self.arms = [self.run.arm(name, seed) for seed in recipe.seeds for name in recipe.arms]
        # what is measured: the SAE that all arms start from, if any, and the arms
        self.subjects = [self.source.init, *self.arms] if recipe.train.init else self.arms
        self.points = [recipe.hook.point, *recipe.hook.also]
        # arms are trained side by side if a step uses one core
        self.in_lanes = ranks.size == 1 and trains_on_one_core(recipe, device)
        self._cache: ActivationCache | PlantedCache | None = None
        self._reference = None
        # held while run.json is written, as several arms may end at the same time
        self._noting = threading.Lock()
        before = read_object(folder / "run.json")
        seeds = dict.fromkeys([*before.get("seeds", ()), *recipe.seeds])
        facts = {"versions": _versions(), "device": device, "threads": torch.get_num_threads(), "seeds": list(seeds)}
        self.state = before | facts | {"stages": before.get("stages", {})}

    def stages(self) -> list[Stage]:
        """The stages that are left to do."""
        harvested = self._is_harvested() or self._is_measured()
        return pending.left(self.recipe, self.subjects, harvested, self.in_lanes)

    def go(self) -> dict:
        """Does everything that is not done yet; returns what `metasae.jobs.conclude.conclude` returns, {} on other
        ranks.
        """
        self.harvest()
        if self._cache is None:
            self.progress.say("every arm is trained and measured already")
        else:
            keep_init(self.source, self._cache)
            self._train_all(self._cache)
            self._measure_all(self._cache)
        if not self.ranks.first:
            return {}
        # for all arms in the folder; what exists is kept
        self._together()
        with self._stage(pending.REPORT):
            result = conclude(self.folder, show=False)
            if self.recipe.measure.keep_firings and self.recipe.measure.explorer:
                # the store's overview shows the comparison, which is new; building it now spares the explorer from
                # importing torch
                store(self.folder, self.progress)
            return result

    @contextmanager
    def _stage(self, stage: Stage, at_once: bool = True) -> Iterator[None]:
        """Shows a stage. at_once: a signal stops it at once, as only its own unfinished file is lost."""
        self.stop.doing = stage.title
        with self.progress.stage(stage), self.stop.at_once() if at_once else nullcontext():
            yield

    def _done(self, stage: str, seconds: float, **facts: Any) -> None:
        with self._noting:
            self.state["stages"][stage] = {"state": "done", "seconds": round(seconds, 2), **facts}
            if self.ranks.first:
                files.write_json(self.folder / "run.json", self.state)

    def harvest(self) -> None:
        """Opens the activation cache, and fills it first if needed. Does nothing if all arms are measured."""
        if self.ranks.agreed(self._is_measured()):
            return
        if not self.recipe.reads_text:
            with self._stage(pending.opening(self.recipe)):
                self._cache = self._opened()
        elif self.ranks.agreed(self._is_harvested()):
            # this run harvested it before, so it fits: the text is not gathered and the model is not loaded
            self._cache = ActivationCache(self._known()["cache"], self._tokens(), self.recipe.harvest.norm_limit)
        else:
            with self._stage(pending.HARVEST):
                self._cache = self._harvested()

    def _known(self) -> dict:
        """The facts on the harvest in run.json."""
        return self.state["stages"].get("harvest", {})

    def _is_measured(self) -> bool:
        """Whether every arm is measured by the current settings, and no hook point was added since."""
        spec = self.recipe.measure
        measured = not measured_otherwise(self.run, spec) and all(is_measured(arm, spec) for arm in self.subjects)
        return measured and self.points == self._known().get("points", self.points)

    def _is_harvested(self) -> bool:
        """Whether the cache that this run filled still exists with all tokens."""
        known = self._known()
        return self.points == known.get("points") and is_held(known["cache"], known["fingerprint"], self._tokens())

    def _tokens(self) -> dict[str, int]:
        """{split: tokens that the cache must hold}; without the training split if it comes in windows or all arms are
        trained.
        """
        tokens = self.recipe.split_tokens
        in_windows = self.recipe.harvest.window_tokens and self.recipe.reads_text
        trained = self.points == self._known().get("points") and all(arm.is_trained for arm in self.arms)
        if in_windows or trained:
            del tokens["train"]
        return tokens

    def _opened(self) -> PlantedCache | GivenCache:
        """Opens activations that need no model. The number of given ones is noted in run.json."""
        cache = self.source.open(self._tokens())
        if self.source.given:
            different = cache.split("train").n_tokens
            self.state["data_fingerprint"] = cache.fingerprint
            self._done("harvest", 0.0, fingerprint=cache.fingerprint, text=cache.text, training_tokens=different)
        return cache

    def _harvested(self) -> ActivationCache:
        start, tokens = time.perf_counter(), self._tokens()
        if self.ranks.first:
            if is_missing(self.source):
                refuse_other_width(read_init(self.recipe), self.source.host.d, self.recipe)
            refuse_what_cannot_fit(self.recipe, self.source.host.d, self.folder, device=self.source.device)
        cache = self.source.open(tokens)
        # known from an earlier call if the training split is not harvested now
        training = cache.split("train").n_tokens if "train" in tokens else self._known().get("training_tokens")
        self.state["data_fingerprint"] = cache.fingerprint
        if not self.source.planted and cache.left_out:
            self.progress.say(f"left out of training and measuring: {cache.left_out}")
        self._done(
            "harvest",
            time.perf_counter() - start,
            cache=str(cache.folder.resolve()),
            fingerprint=cache.fingerprint,
            points=self.points,
            documents=cache.index["documents_blake2b"],
            text=cache.text,
            **({"left_out": cache.left_out} if not self.source.planted and cache.left_out else {}),
            training_tokens=training,
            **({} if self.source.planted else {"model": self.source.host.in_words}),
        )
        return cache

    def _train_all(self, cache: ActivationCache | PlantedCache) -> None:
        left = [arm for arm in self.arms if not self.ranks.agreed(arm.is_trained)]
        if self.recipe.harvest.window_tokens:
            if left:
                with self._stage(pending.WINDOWS, at_once=False):
                    train_by_windows(self.recipe, self.source, cache, self.arms, self._done, self.stop)
            return
        for arm in self.arms:
            if arm not in left and self.ranks.first:
                # a signal between writing the SAE and the end of its stage leaves checkpoints behind
                shutil.rmtree(arm.folder / "checkpoints", ignore_errors=True)
        if len(left) > 1 and self.in_lanes:
            self._train_side_by_side(cache, left)
        else:
            for arm in left:
                with self._stage(pending.training([arm]), at_once=False):
                    self._train(cache, arm, self.progress)

    def _train_side_by_side(self, cache: ActivationCache | PlantedCache, arms: list[Arm]) -> None:
        """Trains small SAEs side by side, each on one core. Those with a meta SAE take longer and begin first."""
        arms = sorted(arms, key=lambda arm: arm.name == BASELINE)
        total = len(arms) * self.recipe.train.tokens
        stage = self._stage(pending.training(arms), at_once=False)
        with stage, self.progress.task("training", total) as task:
            start, shared = time.perf_counter(), SharedTask(task)
            side_by_side(lambda arm: self._train(cache, arm, shared), arms)
            self._done("side by side", time.perf_counter() - start)

    def _train(self, cache: ActivationCache | PlantedCache, arm: Arm, progress: Progress | SharedTask) -> None:
        start = time.perf_counter()
        train_arm(self.recipe, self.source, cache, arm, progress, "training", self.stop)
        self._done(f"train {arm.label}", time.perf_counter() - start)

    def _measure_all(self, cache: ActivationCache | PlantedCache) -> None:
        """Measures all arms, also those that this call does not name, as all must be measured alike. Raises Interrupted
        after a signal.
        """
        otherwise = measured_otherwise(self.run, self.recipe.measure) if self.ranks.first else None
        otherwise = self.ranks.from_first(otherwise)
        if otherwise and self.ranks.first:
            self.progress.say(said_of(otherwise))
            # these files depend on the measures that are replaced
            for name in ("across.json", "compare.json"):
                (self.folder / name).unlink(missing_ok=True)
        for arm in dict.fromkeys([*self.subjects, *otherwise]):
            self._measure(cache, arm)
            if self.ranks.any(self.stop.asked):
                raise Interrupted("stopped between two stages; what is done is kept")

    def _measure(self, cache: ActivationCache | PlantedCache, arm: Arm) -> None:
        if self.ranks.agreed(is_measured(arm, self.recipe.measure)):
            return
        start = time.perf_counter()
        bring_up_to_date(self.recipe, self.source, cache, arm)
        twins = [self.run.arm(name, arm.seed) for name in self.recipe.arms]
        with self._stage(pending.measuring(arm.name, arm.seed, self.recipe.arms)):
            self._reference = measure_arm(self.recipe, self.source, cache, arm, twins, self._reference)
            self._done(f"measure {arm.label}", time.perf_counter() - start)

    def _together(self) -> None:
        """Updates the measures that take two SAEs, and the explorer's store; notes in run.json what changed."""
        from metasae.compare.across import is_wanted

        spec, work = self.recipe.measure, {}
        if is_wanted(spec, self.progress):
            work[pending.ACROSS] = lambda: across(self.folder, self.progress, self.source.steering)
        if spec.keep_firings and spec.explorer:
            work[pending.EXPLORER] = lambda: store(self.folder, self.progress)
        for stage, update in work.items():
            start = time.perf_counter()
            with self._stage(stage):
                if update():
                    self._done(stage.kind, time.perf_counter() - start)


def _command(folder: Path, device: str, ranks: Ranks) -> str:
    """The shell command that continues a run; for several processes as on one machine."""
    program = ["metasae"] if ranks.size == 1 else ["torchrun", "--nproc-per-node", str(ranks.size), "-m", "metasae"]
    words = [*program, "run", str(folder / "recipe.toml"), "--out", str(folder)]
    return shlex.join(words if device == "cpu" else [*words, "--device", device])


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "safetensors", "numpy", "scipy")
    return {"metasae": metasae.__version__, "python": platform.python_version(), "system": sys.platform} | {
        package: metadata.version(package) for package in packages
    }
