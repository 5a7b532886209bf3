"""A worker: takes trials, trains and measures what nobody else holds, and settles cells. Any number may work on one folder.

What is handed out is the single SAE, by a lock in its folder that ends with the process; so no SAE is trained twice at once, a killed
worker's SAE is taken up from its checkpoint by whoever is free, and a worker without a cell of its own helps with the others'.
"""

import os
import platform
import time
import traceback

import torch

from metasae import files
from metasae.arms.source import Source
from metasae.arms.train_measure import is_trained, measure_arm, train_arm
from metasae.compare.catalogue import CATALOGUE, value_of
from metasae.data.cache.cache import ActivationCache, is_held, open_cache
from metasae.data.planted.planted_cache import PlantedCache
from metasae.device import keep_freed_memory
from metasae.errors import Interrupted, UserError
from metasae.progress.progress import SILENT, Progress
from metasae.progress.stop import StopRequest
from metasae.sweep import halving
from metasae.sweep.assemble import assemble, times
from metasae.sweep.cells import Member
from metasae.sweep.folder import DONE, FAILED, OPEN, STOPPED, Cell, SweepFolder, locked
from metasae.sweep.plan import Plan, read_plan
from metasae.sweep.study import Trials, objective_values

POLL_SECONDS = 0.3


class Worker:
    """One process's part in a sweep. `work` returns when every cell is settled."""

    def __init__(self, folder: SweepFolder, device: str, progress: Progress = SILENT, storage: str | None = None):
        self.folder, self.device, self.progress = folder, device, progress
        self._plan_seen = folder.plan.stat().st_mtime_ns
        self.plan: Plan = read_plan(folder)
        self.trials = Trials(folder, self.plan, storage)
        self.source = Source(self.plan.base, folder.path, device, progress)
        self.name = f"{platform.node()}-{os.getpid()}"
        self.failed: dict[str, str] = {}
        self._caches: dict[int, ActivationCache | PlantedCache] = {}
        self._members: dict[str, list[Member]] = {}
        self._reference = None
        keep_freed_memory()

    def work(self, stop: StopRequest) -> None:
        """Raises Interrupted once the state is saved. A cell that fails is noted, and the work goes on."""
        start = time.perf_counter()
        while True:
            self._look_at_plan()
            cells = self._open_cells()
            if not (self._advance(cells, stop) or self._settle(cells) or self._take() or self._halve()):
                if not self._open_cells():
                    return
                time.sleep(POLL_SECONDS)
            self._note(time.perf_counter() - start)
            if stop.asked:
                raise Interrupted("stopped between two stages; what is done is kept")

    def harvest(self) -> None:
        """Fills the activation cache where that is not done."""
        self._cache(self.plan.most_tokens)

    def _look_at_plan(self) -> None:
        """A later call may have added seeds, settings or trials."""
        seen = self.folder.plan.stat().st_mtime_ns
        if seen != self._plan_seen:
            self._plan_seen, self.plan = seen, read_plan(self.folder)
            self.trials.plan = self.plan
            self._members.clear()

    def _open_cells(self) -> list[Cell]:
        return [cell for cell in self.folder.cells() if cell.state == OPEN]

    def _advance(self, cells: list[Cell], stop: StopRequest) -> bool:
        """Trains or measures the first SAE that needs it and that nobody holds; False where there is none."""
        for cell in cells:
            members = self._wanted(cell)
            if any(self._why(member) for member in members):
                continue
            for member in members:
                if self._due(member, members):
                    with locked(self.folder.sae(member.name) / "lock", wait=False) as free:
                        # another may have ended it since
                        if free and self._due(member, members):
                            self._work_on(member, members, stop)
                            return True
        return False

    def _due(self, member: Member, members: list[Member]) -> bool:
        """Whether there is something to do on an SAE now: to train it, or to measure it where what it waits for is there."""
        if self._why(member) or self.folder.measured(member.name):
            return False
        twin = self._twin(member, members)
        waits = twin is not None and not self.folder.measured(twin.name) and not self._why(twin)
        return not (waits and is_trained(self.folder.sae(member.name)))

    def _twin(self, member: Member, members: list[Member]) -> Member | None:
        """The solo SAE whose weights an SAE shares to the bit; its measures are taken over, so it is measured first."""
        if member.trained_as not in ("control", "sequential"):
            return None
        return next((other for other in members if other.trained_as == "solo" and other.seed == member.seed), None)

    def _work_on(self, member: Member, members: list[Member], stop: StopRequest) -> None:
        place = self.folder.sae(member.name)
        try:
            facts = times(place)
            if self.name not in facts["workers"][-1:]:
                facts["workers"] = [*facts["workers"], self.name]
                files.write_json(place / "sae.json", facts)
            cache = self._cache(member.recipe.split_tokens["train"])
            if not is_trained(place):
                start = time.perf_counter()
                arm, title = member.trained_as, f"train {member.name}"
                stop.doing = f"training {member.name}"
                facts["steps"] = train_arm(
                    member.recipe, self.source, cache, arm, member.seed, place, self.device, self.progress, title, stop
                )
                facts["train"] = time.perf_counter() - start
                files.write_json(place / "sae.json", facts)
            if self._due(member, members) and not stop.asked:
                start, twin = time.perf_counter(), self._twin(member, members)
                twins = {f"solo-s{member.seed}": self.folder.sae(twin.name)} if twin else {}
                stop.doing = f"measuring {member.name}"
                with stop.at_once():
                    self._reference = measure_arm(
                        member.recipe, self.source, cache, member.seed, place, twins, self._reference, self.progress
                    )
                facts["measure"] = time.perf_counter() - start
                files.write_json(place / "sae.json", facts)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once ({stop.doing}); what is done is kept") from None
        except Exception as error:
            self._fail(member, error)

    def _fail(self, member: Member, error: Exception) -> None:
        """Notes why an SAE failed, beside it, or where the disk does not take that, here."""
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.progress.say(f"{member.name} failed: {why}")
        trace = None if isinstance(error, UserError) else traceback.format_exc()
        try:
            files.write_json(
                self.folder.sae(member.name) / "failed.json", {"why": why, "worker": self.name, "traceback": trace}
            )
        except UserError as refused:
            self.failed[member.name] = why
            self.progress.say(str(refused))

    def _why(self, member: Member) -> str | None:
        """Why an SAE failed, or None. It is not tried again until a later call takes the note away."""
        return self.failed.get(member.name) or self.folder.failure(member.name)

    def _settle(self, cells: list[Cell]) -> bool:
        """Ends the first cell that is ready: its run folder, its state, its trial."""
        for cell in cells:
            if self._verdict(cell):
                with locked(self.folder.path / "study.lock"):
                    # another may have ended it, or opened it again for more seeds
                    self._look_at_plan()
                    cell = self.folder.read_cell(cell.name)
                    if cell.state == OPEN and self._verdict(cell):
                        self._end(cell)
                return True
        return False

    def _verdict(self, cell: Cell) -> tuple[str, str] | None:
        """(state, why) of a cell that has come to its end, or None."""
        members = self._wanted(cell)
        whys = [f"{member.label}: {self._why(member)}" for member in members if self._why(member)]
        if whys:
            return FAILED, whys[0]
        if not all(self.folder.measured(member.name) for member in members):
            return None
        if self._halves():
            kept = halving.read(self.folder)
            if kept is None:
                return None
            if cell.name not in kept:
                return STOPPED, halving.why_stopped(self.folder, cell.name)
        return DONE, ""

    def _end(self, cell: Cell) -> None:
        state, why = self._verdict(cell)
        members, values = self._wanted(cell), None
        if state != FAILED:
            try:
                comparison = assemble(self.folder, self.plan, cell, members)
                values = objective_values(comparison["arms"][self.plan.subject]["means"], self.plan)
                why = why if values is not None else "an objective has no number"
            except UserError as error:
                state, why = FAILED, str(error)
        seeds = tuple(dict.fromkeys(member.seed for member in members))
        # the trial first: a cell that is still open is settled again by whoever comes next
        self.trials.tell(cell, values)
        self.folder.write_cell(Cell(cell.name, cell.setting, cell.trials, state, why, seeds))

    def _take(self) -> bool:
        """Takes the next trial and writes its cell, or adds it to the cell that has the same recipe. False when there is none left."""
        with locked(self.folder.path / "study.lock"):
            cells = self.folder.cells()
            found = self.trials.next({number for cell in cells for number in cell.trials})
            if found is None:
                return False
            number, setting = found
            self._write_new(number, setting, {cell.name: cell for cell in cells})
        return True

    def _write_new(self, number: int, setting, held: dict[str, Cell]) -> None:
        try:
            name = self.plan.name_of(setting)
        except UserError as error:
            # a search may draw what the recipe does not take, such as k above n
            self.folder.write_cell(Cell(f"refused-{number}", setting, (number,), FAILED, str(error)))
            self.trials.tell(self.folder.read_cell(f"refused-{number}"), None)
            return
        cell = held.get(name)
        if cell is None:
            self.folder.write_cell(Cell(name, setting, (number,)))
        else:
            # opened again, so that this trial is told what the cell has come to
            self.folder.write_cell(Cell(name, cell.setting, (*cell.trials, number), OPEN, "", cell.seeds))

    def _halve(self) -> bool:
        """With early stopping: once every cell has its first seed, says which go on."""
        if not self._halves() or halving.read(self.folder) is not None:
            return False
        with locked(self.folder.path / "study.lock"):
            cells = self._open_cells()
            if (
                not cells
                or halving.read(self.folder) is not None
                or not all(self._first_seed_done(cell) for cell in cells)
            ):
                return False
            halving.write(self.folder, {cell.name: self._first_costs(cell) for cell in cells})
        return True

    def _halves(self) -> bool:
        return self.plan.early_stop and len(self.plan.base.seeds) > 1

    def _first_seed_done(self, cell: Cell) -> bool:
        return all(self.folder.measured(member.name) for member in self._wanted(cell))

    def _first_costs(self, cell: Cell) -> list[float] | None:
        subject = next(member for member in self._wanted(cell) if member.arm == self.plan.subject)
        measures = files.read_json(self.folder.sae(subject.name) / "measures.json")
        quantities = {quantity.key: quantity for quantity in CATALOGUE}
        values = objective_values({key: value_of(measures, quantities[key]) for key in self.plan.objectives}, self.plan)
        return values and [
            value if quantities[key].better == "lower" else -value
            for key, value in zip(self.plan.objectives, values, strict=True)
        ]

    def _wanted(self, cell: Cell) -> list[Member]:
        """The SAEs that a cell asks for now."""
        if cell.name not in self._members:
            self._members[cell.name] = self.plan.members(cell.setting)
        members = self._members[cell.name]
        if self._halves() and cell.name not in (halving.read(self.folder) or ()):
            first = self.plan.base.seeds[0]
            return [member for member in members if member.seed == first]
        return members

    def _cache(self, train_tokens: int) -> ActivationCache | PlantedCache:
        """The activations, with so many training tokens: a cell of fewer tokens sees what a run of its own would."""
        if train_tokens not in self._caches:
            tokens = self.plan.base.split_tokens | {"train": train_tokens}
            self._caches[train_tokens] = self.source.open(tokens) if self.source.planted else self._harvested(tokens)
        return self._caches[train_tokens]

    def _harvested(self, tokens: dict[str, int]) -> ActivationCache:
        note = self.folder.path / "harvest.json"
        with locked(self.folder.path / "harvest.lock"):
            held = files.read_json(note) if note.exists() else None
            if held and is_held(held["cache"], held["fingerprint"], tokens):
                # harvested before by this very sweep: the text need not be gathered nor the model loaded to know it fits
                return open_cache(held["cache"], fingerprint=held["fingerprint"], tokens=tokens)
            start = time.perf_counter()
            most = max(tokens["train"], self.plan.most_tokens)
            cache = self.source.open(tokens | {"train": most})
            facts = {"cache": str(cache.folder.resolve()), "fingerprint": cache.fingerprint}
            files.write_json(
                note, {**facts, "seconds": time.perf_counter() - start + (held["seconds"] if held else 0.0)}
            )
        return open_cache(cache.folder, fingerprint=cache.fingerprint, tokens=tokens)

    def _note(self, seconds: float) -> None:
        """What this worker took so far, its imports and the harvest before it left out. A disk that is full is no reason to stop here."""
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
            self.progress.say(str(error))


def peak_memory() -> float | None:
    """Of this process so far, in GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)
