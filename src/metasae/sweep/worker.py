"""A worker: trains and measures what nobody else holds, settles cells, and draws those of a search. Any number may work
on one folder.

What is handed out is the single SAE, by a lock in its folder that ends with the process; so no SAE is trained twice at
once, a killed worker's SAE is taken up from its checkpoint by whoever is free, and a worker without a cell of its own
helps with the others'.
"""

import os
import platform
import time
import traceback
from dataclasses import replace

import torch

from metasae import files
from metasae.arms.folder import Arm, read_object
from metasae.arms.source import Source
from metasae.arms.train_measure import measure_arm, train_arm
from metasae.compare.catalogue import value_of
from metasae.data.cache.cache import ActivationCache, is_held
from metasae.data.planted.planted_cache import PlantedCache
from metasae.device import keep_freed_memory
from metasae.errors import Interrupted, UserError
from metasae.progress.progress import SILENT, Progress
from metasae.progress.stop import StopRequest
from metasae.recipe.registry import ARMS, BASELINE
from metasae.sweep import halving, search
from metasae.sweep.assemble import assemble, times
from metasae.sweep.cells import Member
from metasae.sweep.folder import DONE, FAILED, OPEN, STOPPED, Cell, SweepFolder, locked
from metasae.sweep.plan import QUANTITIES, Plan, read_plan

POLL_SECONDS = 0.3


class Worker:
    """One process's part in a sweep. `work` returns when every cell is settled."""

    def __init__(self, folder: SweepFolder, device: str, progress: Progress = SILENT):
        self.folder, self.device, self.progress = folder, device, progress
        self.plan: Plan
        self._stamp: int | None = None
        self._members: dict[str, list[Member]] = {}
        self._read_plan()
        self.source = Source(self.plan.base, folder.path, device, progress)
        self.name = f"{platform.node()}-{os.getpid()}"
        self._caches: dict[int, ActivationCache | PlantedCache] = {}
        self._reference = None
        keep_freed_memory()

    def work(self, stop: StopRequest) -> None:
        """Raises Interrupted once the state is saved. A cell that fails is noted, and the work goes on."""
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
        """Fills the activation cache where that is not done."""
        self._cache(self.plan.most_tokens)

    def _read_plan(self) -> None:
        """A later call may have added seeds, settings or trials."""
        stamp = self.folder.plan.stat().st_mtime_ns
        if stamp != self._stamp:
            self._stamp, self.plan = stamp, read_plan(self.folder)
            self._members.clear()

    def _open_cells(self) -> list[Cell]:
        return [cell for cell in self.folder.cells() if cell.state == OPEN]

    def _wanted(self, cell: Cell) -> list[Member]:
        """The SAEs that a cell asks for now: of one that may yet be stopped, those of the first seed."""
        if cell.name not in self._members:
            self._members[cell.name] = self.plan.members(cell.setting)
        members = self._members[cell.name]
        if self.plan.halves and cell.name not in (halving.kept(self.folder) or ()):
            return [member for member in members if member.seed == self.plan.base.seeds[0]]
        return members

    def _advance(self, cells: list[Cell], stop: StopRequest) -> bool:
        """Trains or measures the first SAE that needs it and that nobody holds; False where there is none."""
        for cell in cells:
            members = self._wanted(cell)
            if any(map(self.folder.failure, members)):
                continue
            for member in members:
                twin = self._twin(member, members)
                if self._is_due(member, twin):
                    with locked(self.folder.sae(member).folder / "lock", wait=False) as free:
                        # another may have ended it since
                        if free and self._is_due(member, twin):
                            self._work_on(member, twin, stop)
                            return True
        return False

    def _is_due(self, member: Member, twin: Member | None) -> bool:
        """Whether there is something to do on an SAE now: to train it, or to measure it where what it waits for is
        there.
        """
        sae = self.folder.sae(member)
        if self.folder.failure(member) or sae.is_measured:
            return False
        waits = twin is not None and not self.folder.sae(twin).is_measured and not self.folder.failure(twin)
        return not (waits and sae.is_trained)

    def _twin(self, member: Member, members: list[Member]) -> Member | None:
        """The baseline's SAE whose weights an SAE shares to the bit; its measures are taken over, so it is measured
        first.
        """
        if not ARMS[member.trained_as].keeps_primary:
            return None
        same_seed = (other for other in members if other.seed == member.seed)
        return next((other for other in same_seed if other.trained_as == BASELINE), None)

    def _work_on(self, member: Member, twin: Member | None, stop: StopRequest) -> None:
        try:
            sae, cache = self.folder.sae(member), self._cache(member.recipe.split_tokens["train"])
            facts = times(sae.folder)
            if self.name not in facts["workers"][-1:]:
                facts["workers"].append(self.name)
                files.write_json(sae.folder / "sae.json", facts)
            if not sae.is_trained:
                self._train(member, sae, cache, facts, stop)
            if self._is_due(member, twin) and not stop.asked:
                self._measure(member, sae, twin and self.folder.sae(twin), cache, facts, stop)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once ({stop.doing}); what is done is kept") from None
        except Exception as error:
            self._fail(member, error)

    def _train(self, member: Member, sae: Arm, cache, facts: dict, stop: StopRequest) -> None:
        start, title = time.perf_counter(), f"train {member.name}"
        stop.doing = f"training {member.name}"
        facts["steps"] = train_arm(member.recipe, self.source, cache, sae, self.progress, title, stop)
        facts["train"] = time.perf_counter() - start
        files.write_json(sae.folder / "sae.json", facts)

    def _measure(self, member: Member, sae: Arm, twin: Arm | None, cache, facts: dict, stop: StopRequest) -> None:
        start, twins = time.perf_counter(), [twin] if twin else []
        stop.doing = f"measuring {member.name}"
        with stop.at_once():
            self._reference = measure_arm(member.recipe, self.source, cache, sae, twins, self._reference)
        facts["measure"] = time.perf_counter() - start
        files.write_json(sae.folder / "sae.json", facts)

    def _fail(self, member: Member, error: Exception) -> None:
        """Notes beside an SAE why it failed. Raises UserError where the disk does not take that."""
        foreseen = isinstance(error, UserError)
        why = str(error) if foreseen else f"{type(error).__name__}: {error}"
        self.progress.say(f"{member.name} failed: {why}")
        note = {"why": why, "worker": self.name, "traceback": None if foreseen else traceback.format_exc()}
        files.write_json(self.folder.sae(member).folder / "failed.json", note)

    def _settle(self, cells: list[Cell]) -> bool:
        """Ends the first cell that is ready: its run folder and its state."""
        for cell in cells:
            if self._verdict(cell):
                with self.folder.locked():
                    # another may have ended it, or opened it again for more seeds
                    self._read_plan()
                    cell = self.folder.read_cell(cell.name)
                    verdict = self._verdict(cell) if cell.state == OPEN else None
                    if verdict:
                        self._end(cell, *verdict)
                return True
        return False

    def _verdict(self, cell: Cell) -> tuple[str, str] | None:
        """(state, why) of a cell that has come to its end, or None."""
        members = self._wanted(cell)
        for member in members:
            if why := self.folder.failure(member):
                return FAILED, f"{member.label}: {why}"
        if not self._is_measured(cell):
            return None
        if self.plan.halves:
            kept = halving.kept(self.folder)
            if kept is None:
                return None
            if cell.name not in kept:
                return STOPPED, halving.why_stopped(self.folder, cell.name)
        return DONE, ""

    def _is_measured(self, cell: Cell) -> bool:
        return all(self.folder.sae(member).is_measured for member in self._wanted(cell))

    def _end(self, cell: Cell, state: str, why: str) -> None:
        members, objectives = self._wanted(cell), None
        if state != FAILED:
            try:
                comparison = assemble(self.folder, self.plan, cell, members)
                objectives = self.plan.objective_values(comparison["arms"][self.plan.subject]["means"])
                why = why if objectives else "an objective has no number"
            except UserError as error:
                state, why = FAILED, str(error)
        seeds = tuple(dict.fromkeys(member.seed for member in members))
        self.folder.write_cell(replace(cell, state=state, why=why, seeds=seeds, objectives=objectives))

    def _draw(self) -> bool:
        """Draws a cell of a search.

        False where none is left, and in a grid, whose cells are all there from the start.
        """
        if not self.plan.search:
            return False
        with self.folder.locked():
            return search.draw(self.folder, self.plan)

    def _halve(self) -> bool:
        """With early stopping: once every cell has its first seed, says which go on."""
        if not self.plan.halves:
            return False
        with self.folder.locked():
            cells = self._open_cells()
            if not cells or halving.kept(self.folder) is not None or not all(map(self._is_measured, cells)):
                return False
            halving.decide(self.folder, {cell.name: self._first_costs(cell) for cell in cells})
        return True

    def _first_costs(self, cell: Cell) -> list[float] | None:
        subject = next(member for member in self._wanted(cell) if member.arm == self.plan.subject)
        measures = self.folder.sae(subject).measures()
        values = self.plan.objective_values({key: value_of(measures, QUANTITIES[key]) for key in self.plan.objectives})
        return values and (values * self.plan.signs).tolist()

    def _cache(self, train_tokens: int) -> ActivationCache | PlantedCache:
        """The activations, with so many training tokens: a cell of fewer tokens sees what a run of its own would."""
        if train_tokens not in self._caches:
            tokens = self.plan.base.split_tokens | {"train": train_tokens}
            self._caches[train_tokens] = self.source.open(tokens) if self.source.planted else self._harvested(tokens)
        return self._caches[train_tokens]

    def _harvested(self, tokens: dict[str, int]) -> ActivationCache:
        path = self.folder.path / "harvest.json"
        with locked(self.folder.path / "harvest.lock"):
            note = read_object(path)
            if not (note and is_held(note["cache"], note["fingerprint"], tokens)):
                start = time.perf_counter()
                cache = self.source.open(tokens | {"train": max(tokens["train"], self.plan.most_tokens)})
                seconds = time.perf_counter() - start + note.get("seconds", 0.0)
                note = {"cache": str(cache.folder.resolve()), "fingerprint": cache.fingerprint, "seconds": seconds}
                files.write_json(path, note)
        # known to fit, so the text need not be gathered nor the model loaded
        return ActivationCache(note["cache"], tokens)

    def _note(self, seconds: float) -> None:
        """What this worker took so far, its imports and the harvest before it left out."""
        facts = {
            "device": self.device,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "peak_memory_gib": peak_memory(),
            "peak_gpu_gib": torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device != "cpu" else None,
        }
        try:
            files.write_json(self.folder.path / "workers" / f"{self.name}.json", facts)
        except UserError as error:
            # a disk that is full is no reason to stop here
            self.progress.say(str(error))


def peak_memory() -> float | None:
    """Of this process so far, in GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)
