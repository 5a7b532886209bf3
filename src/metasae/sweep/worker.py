"""A worker: trains and measures SAEs that no other worker holds, ends cells, and draws the cells of a search. Any
number of workers may share a folder.

Work is divided by single SAEs, with a lock in each SAE's folder that is released when the process ends. So no SAE is
trained twice at the same time, another worker continues a killed worker's SAE from its checkpoint, and a worker without
a cell of its own helps with other cells.
"""

import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from metasae import files
from metasae.arms.folder import Arm, read_object
from metasae.arms.measure import measure_arm
from metasae.arms.source import Source
from metasae.arms.train import train_arm
from metasae.compare.catalogue import value_of
from metasae.compare.compare import compare
from metasae.data.cache.cache import ActivationCache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.device import keep_freed_memory
from metasae.doctor.machine import peak_resident
from metasae.errors import Interrupted, UserError
from metasae.progress.progress import SILENT, Progress
from metasae.progress.stop import StopRequest
from metasae.sae.layout import CONFIG
from metasae.sweep import pareto
from metasae.sweep.cells import NO_MATTER, Member, twin_of
from metasae.sweep.folder import DONE, FAILED, OPEN, STOPPED, Cell, SweepFolder, link, locked, times
from metasae.sweep.plan import QUANTITIES, read_plan

POLL_SECONDS = 0.3


class Worker:
    """One process of a sweep. `work` returns when every cell has ended."""

    def __init__(self, folder: SweepFolder, device: str, progress: Progress = SILENT):
        self.folder, self.device, self.progress = folder, device, progress
        self._stamp: int | None = None
        self._read_plan()
        self.source = Source(self.plan.base, folder.path, device, progress)
        self.name = f"{platform.node()}-{os.getpid()}"
        self._caches: dict[int, ActivationCache | PlantedCache] = {}
        self._reference = None
        keep_freed_memory()

    def work(self, stop: StopRequest) -> None:
        """Works until every cell has ended. A cell that fails is recorded, and the work continues. Raises Interrupted
        after a signal, when the state is saved.
        """
        start = time.perf_counter()
        while True:
            self._read_plan()
            cells = self._open_cells()
            if not (self._settle(cells) or self._advance(cells, stop) or self._draw() or self._halve()):
                if not self._open_cells():
                    return
                time.sleep(POLL_SECONDS)
            self._note(time.perf_counter() - start)
            if stop.asked:
                raise Interrupted("stopped between two stages; what is done is kept")

    def harvest(self) -> None:
        """Fills the activation cache if it is not full."""
        self._cache(self.plan.most_tokens)

    def _read_plan(self) -> None:
        """Reads the plan again if it changed, as a later call may have added seeds, settings or trials."""
        stamp = self.folder.plan.stat().st_mtime_ns
        if stamp != self._stamp:
            self._stamp, self.plan = stamp, read_plan(self.folder)
            # by the names of their cells
            self._members: dict[str, list[Member]] = {}

    def _open_cells(self) -> list[Cell]:
        return [cell for cell in self.folder.cells() if cell.state == OPEN]

    def _wanted(self, cell: Cell) -> list[Member]:
        """The SAEs that a cell needs now: only those of the first seed while the cell may still be stopped."""
        if cell.name not in self._members:
            self._members[cell.name] = self.plan.members(cell.setting)
        members = self._members[cell.name]
        if self.plan.halves and cell.name not in (pareto.kept(self.folder) or ()):
            return [member for member in members if member.seed == self.plan.base.seeds[0]]
        return members

    def _advance(self, cells: list[Cell], stop: StopRequest) -> bool:
        """Trains or measures the first SAE that needs it and that no worker holds; False if there is none."""
        for cell in cells:
            members = self._wanted(cell)
            if any(map(self.folder.failure, members)):
                continue
            for member in members:
                twin = twin_of(member, members)
                if self._is_due(member, twin):
                    with locked(self.folder.sae(member).folder / "lock", wait=False) as free:
                        # another worker may have finished it since
                        if free and self._is_due(member, twin):
                            self._work_on(member, twin, stop)
                            return True
        return False

    def _is_due(self, member: Member, twin: Member | None) -> bool:
        """Whether an SAE can be trained or measured now. If its measures are taken over from a twin, it waits for the
        twin.
        """
        sae = self.folder.sae(member)
        if self.folder.failure(member) or sae.is_measured:
            return False
        waits = twin is not None and not self.folder.sae(twin).is_measured and not self.folder.failure(twin)
        return not (waits and sae.is_trained)

    def _work_on(self, member: Member, twin: Member | None, stop: StopRequest) -> None:
        """Trains and measures an SAE. If it fails, the reason is written into its folder. Raises UserError if that
        cannot be written.
        """
        try:
            self._train_and_measure(member, twin, stop)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once ({stop.doing}); what is done is kept") from None
        except Exception as error:
            foreseen = isinstance(error, UserError)
            why = str(error) if foreseen else f"{type(error).__name__}: {error}"
            self.progress.say(f"{member.name} failed: {why}")
            note = {"why": why, "worker": self.name, "traceback": None if foreseen else traceback.format_exc()}
            files.write_json(self.folder.sae(member).folder / "failed.json", note)

    def _train_and_measure(self, member: Member, twin: Member | None, stop: StopRequest) -> None:
        sae, cache = self.folder.sae(member), self._cache(member.recipe.split_tokens["train"])
        facts = times(sae.folder)
        if self.name not in facts["workers"][-1:]:
            facts["workers"].append(self.name)
            files.write_json(sae.folder / "sae.json", facts)
        if not sae.is_trained:
            stop.doing = f"training {member.name}"
            with _timed(sae, facts, "train"):
                title = f"train {member.name}"
                facts["steps"] = train_arm(member.recipe, self.source, cache, sae, self.progress, title, stop)
        if self._is_due(member, twin) and not stop.asked:
            stop.doing = f"measuring {member.name}"
            twins = [self.folder.sae(twin)] if twin else []
            with _timed(sae, facts, "measure"), stop.at_once():
                self._reference = measure_arm(member.recipe, self.source, cache, sae, twins, self._reference)

    def _settle(self, cells: list[Cell]) -> bool:
        """Ends the cells that are ready: writes their run folders and states. False if there is none."""
        if not any(map(self._verdict, cells)):
            return False
        with self.folder.locked():
            # another worker may have ended them, or a later call opened them again for more seeds
            self._read_plan()
            for cell in self._open_cells():
                if verdict := self._verdict(cell):
                    self._end(cell, *verdict)
        return True

    def _verdict(self, cell: Cell) -> tuple[str, str] | None:
        """(state, reason) of a cell that can end now, or None."""
        members = self._wanted(cell)
        for member in members:
            if why := self.folder.failure(member):
                return FAILED, f"{member.label}: {why}"
        kept = pareto.kept(self.folder) if self.plan.halves else [cell.name]
        if kept is None or not self._is_measured(cell):
            return None
        return (DONE, "") if cell.name in kept else (STOPPED, pareto.why_stopped(self.folder, cell.name))

    def _is_measured(self, cell: Cell) -> bool:
        return all(self.folder.sae(member).is_measured for member in self._wanted(cell))

    def _end(self, cell: Cell, state: str, why: str) -> None:
        members, objectives = self._wanted(cell), None
        seeds = list(dict.fromkeys(member.seed for member in members))
        if state != FAILED:
            try:
                comparison = self._assemble(cell, members, seeds)
                objectives = self.plan.objective_values(comparison["arms"][self.plan.subject]["means"])
                why = why if objectives else "an objective has no number"
            except UserError as error:
                state, why = FAILED, str(error)
        self.folder.write_cell(replace(cell, state=state, why=why, seeds=seeds, objectives=objectives))

    def _assemble(self, cell: Cell, members: list[Member], seeds: list[int]) -> dict:
        """Writes a cell's run folder, so that `compare`, `report` and `run` work on it: links to its SAEs in arms/, its
        recipe and the comparison; returns the comparison.

        Raises UserError if the disk is full, or if an SAE was not trained by the cell's values.
        """
        run, stages = self.folder.run(cell.name), {}
        for member in members:
            sae = self.folder.sae(member)
            _refuse_other(sae, member)
            link(sae.folder, run.arm(member.arm, member.seed).folder)
            seconds = times(sae.folder)
            stages[f"train {member.label}"] = {"state": "done", "seconds": seconds["train"], "as": member.name}
            stages[f"measure {member.label}"] = {"state": "done", "seconds": seconds["measure"]}
        recipe = cell.setting.recipe(self.plan.base).model_copy(update={"seeds": tuple(seeds)})
        files.write_text(run.folder / "recipe.toml", recipe.dump())
        baseline = "the sweep's own recipe" if self.plan.shared_baseline else "the cell's own recipe"
        facts = {"sweep": self.plan.title, "baseline": baseline, "seeds": seeds, "stages": stages}
        files.write_json(run.folder / "run.json", facts)
        return compare(run.folder)

    def _draw(self) -> bool:
        """Draws a cell of a search.

        False if no trial is left, and for a grid, whose cells all exist from the start.
        """
        if not self.plan.search:
            return False
        # imports Optuna
        from metasae.sweep.search import draw

        with self.folder.locked():
            return draw(self.folder, self.plan)

    def _halve(self) -> bool:
        """With early stopping: when every cell has its first seed, decides which cells continue. False if there is
        nothing to decide.
        """
        if not self.plan.halves:
            return False
        with self.folder.locked():
            cells = self._open_cells()
            if not cells or pareto.kept(self.folder) is not None or not all(map(self._is_measured, cells)):
                return False
            pareto.decide(self.folder, {cell.name: self._first_costs(cell) for cell in cells})
        return True

    def _first_costs(self, cell: Cell) -> list[float] | None:
        subject = next(member for member in self._wanted(cell) if member.arm == self.plan.subject)
        measures = self.folder.sae(subject).measures()
        values = self.plan.objective_values({key: value_of(measures, QUANTITIES[key]) for key in self.plan.objectives})
        return values and (values * self.plan.signs).tolist()

    def _cache(self, train_tokens: int) -> ActivationCache | PlantedCache:
        """The activations with this many training tokens: a cell of fewer tokens reads the same as a run of its own
        would.
        """
        if train_tokens not in self._caches:
            tokens = self.plan.base.split_tokens | {"train": train_tokens}
            self._caches[train_tokens] = self.source.open(tokens) if self.source.planted else self._harvested(tokens)
        return self._caches[train_tokens]

    def _harvested(self, tokens: dict[str, int]) -> ActivationCache:
        with locked(self.folder.path / "harvest.lock"):
            note = read_object(self.folder.harvest)
            if not self.folder.is_harvested(tokens):
                start = time.perf_counter()
                cache = self.source.open(tokens | {"train": max(tokens["train"], self.plan.most_tokens)})
                seconds = time.perf_counter() - start + note.get("seconds", 0.0)
                note = {"cache": str(cache.folder.resolve()), "fingerprint": cache.fingerprint, "seconds": seconds}
                files.write_json(self.folder.harvest, note)
        # it is known to fit, so the text is not gathered and the model is not loaded
        return ActivationCache(note["cache"], tokens, self.source.recipe.harvest.norm_limit)

    def _note(self, seconds: float) -> None:
        """Records the time and memory of this worker so far, without its imports and the harvest."""
        facts = {
            "device": self.device,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "peak_memory_gib": peak_resident() / 2**30,
            "peak_gpu_gib": torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device != "cpu" else None,
        }
        try:
            files.write_json(self.folder.path / "workers" / f"{self.name}.json", facts)
        except UserError as error:
            # a full disk is no reason to stop here
            self.progress.say(str(error))


def _refuse_other(sae: Arm, member: Member) -> None:
    """Raises UserError if the recipe in an SAE's metadata differs from the recipe that its name, a hash, stands for."""
    trained_by = files.read_json(sae.folder / "primary" / CONFIG)["metadata"]["metasae"]["recipe"]
    asked = member.recipe.model_dump(mode="json")
    for table in ("sae", "meta", "train"):
        for key, value in asked[table].items():
            if key not in NO_MATTER and trained_by[table].get(key) != value:
                raise UserError(
                    f"{sae.folder} was trained with {table}.{key}={trained_by[table].get(key)}, but the sweep needs "
                    f"{value}; delete the folder and run again"
                )


@contextmanager
def _timed(sae: Arm, facts: dict, what: str) -> Iterator[None]:
    """Writes the seconds of the block into an SAE's sae.json, whose content is `facts`; nothing if the block raises."""
    start = time.perf_counter()
    yield
    facts[what] = time.perf_counter() - start
    files.write_json(sae.folder / "sae.json", facts)
