"""The Optuna study that hands out trials: a journal file in the sweep folder, or any storage URL.

A trial is a cell. A grid's cells are enqueued; a search's are drawn by a sampler that is seeded anew for each trial by the search's
seed and the trial's number, so that a search which is stopped and started again draws what it would have drawn.
All calls that hand out or end trials are made under the sweep folder's lock `study.lock`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metasae.compare.catalogue import CATALOGUE
from metasae.errors import UserError
from metasae.sweep.cells import Setting
from metasae.sweep.folder import Cell, SweepFolder, locked
from metasae.sweep.grid import Range
from metasae.sweep.plan import Plan, is_number

# Where workers that a sweep starts find the storage, so that a password in it stands in no list of processes and in no file.
STORAGE = "METASAE_SWEEP_STORAGE"
STARTUP_TRIALS = 10
SAMPLERS = ("tpe", "nsga2")


class Trials:
    """The study of one plan. Raises UserError where Optuna is not installed or the storage cannot be had."""

    def __init__(self, folder: SweepFolder, plan: Plan, storage: str | None = None):
        """storage: an Optuna storage URL; None for the journal in the folder."""
        if plan.storage != bool(storage):
            raise UserError(
                f"{folder.path} keeps its trials {'in a storage; name it again' if plan.storage else 'in its journal; name no storage'}"
            )
        self.plan, self.folder = plan, folder
        self.own_journal = storage is None
        self.optuna = _optuna()
        better = {quantity.key: quantity.better for quantity in CATALOGUE}
        directions = ["minimize" if better[key] == "lower" else "maximize" for key in plan.objectives]
        with locked(folder.path / "study.lock"), self._reported():
            held = storage or _journal(self.optuna, folder)
            self.study = self.optuna.create_study(
                storage=held, study_name=plan.study, directions=directions, load_if_exists=True
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """What a storage raises, as a UserError. The journal is made whole first; held by `study.lock`, which everybody who writes holds."""
        if self.own_journal:
            _mend(self.folder.journal)
        try:
            yield
        except (OSError, ImportError, json.JSONDecodeError, *_storage_errors()) as error:
            what = (
                f"{self.folder.journal} cannot be used: {error}; free some space"
                if self.own_journal
                else f"the storage cannot be used: {error}"
            )
            raise UserError(f"{what.splitlines()[0]}, then run the same command again") from None

    def enqueue(self) -> None:
        """Puts those cells of a grid that are not in the study into it."""
        with self._reported():
            self._enqueue()

    def _enqueue(self) -> None:
        held = {
            trial.user_attrs["cell"] for trial in self.study.get_trials(deepcopy=False) if "cell" in trial.user_attrs
        }
        for setting in self.plan.settings:
            name = self.plan.name_of(setting)
            if name not in held:
                held.add(name)
                params = {key: _plain(value) for key, value in setting.values.items()}
                self.study.enqueue_trial(params, user_attrs={"cell": name, "setting": setting.as_dict()})

    def next(self, taken: set[int]) -> tuple[int, Setting] | None:
        """(number, setting) of a trial that nobody works on yet; None when there is none left. taken: trials that have a cell."""
        with self._reported():
            return self._next(taken)

    def _next(self, taken: set[int]) -> tuple[int, Setting] | None:
        state = self.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == state.RUNNING and trial.number not in taken:
                # whoever was handed it ended before the cell was written
                if self._is_whole(trial):
                    return trial.number, self._setting_of(trial)
                self.study.tell(trial.number, state=state.FAIL)
        if not self.plan.search:
            return self._waiting() if any(trial.state == state.WAITING for trial in trials) else None
        drawn = [trial for trial in trials if "again" not in trial.user_attrs and self._is_whole(trial)]
        if len(drawn) >= self.plan.search.trials:
            return None
        self.study.sampler = self._sampler(len(trials))
        number = self.study.ask(self._space()).number
        return number, self._setting_of(self.study.get_trials(deepcopy=False)[number])

    def _waiting(self) -> tuple[int, Setting]:
        """The first trial of a grid that waits."""
        trial = self.study.ask()
        setting = Setting.from_dict(trial.user_attrs["setting"])
        for key in setting.values:
            values = [each.values[key] for each in self.plan.settings if key in each.values]
            if all(is_number(value) for value in values):
                trial.suggest_float(key, min(values), max(values))
            else:
                trial.suggest_categorical(key, list(dict.fromkeys(map(_plain, values))))
        return trial.number, setting

    def tell(self, cell: Cell, values: list[float] | None) -> None:
        """Ends the trials of a cell. values: of the objectives; None for a cell that failed. A cell that was ended before gets a trial more."""
        with self._reported():
            self._tell(cell, values)

    def _tell(self, cell: Cell, values: list[float] | None) -> None:
        state = self.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        own = [trials[number] for number in cell.trials if number < len(trials)]
        running = [trial for trial in own if not trial.state.is_finished()]
        for trial in running:
            self.study.tell(trial.number, values, state=None if values is not None else state.FAIL)
        last = own[-1] if own and not running else None
        if last is not None and values is not None and last.values != values:
            self.study.add_trial(
                self.optuna.trial.create_trial(
                    params=last.params,
                    distributions=last.distributions,
                    values=values,
                    user_attrs={**last.user_attrs, "again": True},
                )
            )

    def _is_whole(self, trial) -> bool:
        """Whether a trial has its setting: one whose worker ended while it was drawn may lack some values."""
        return "setting" in trial.user_attrs or (
            bool(self.plan.search) and trial.params.keys() == self.plan.search.space.keys()
        )

    def _setting_of(self, trial) -> Setting:
        if "setting" in trial.user_attrs:
            return Setting.from_dict(trial.user_attrs["setting"])
        return Setting({key: _rich(value, self.plan.search.space[key]) for key, value in trial.params.items()})

    def _space(self) -> dict[str, Any]:
        found, kinds = {}, self.optuna.distributions
        for key, axis in self.plan.search.space.items():
            if not isinstance(axis, Range):
                found[key] = kinds.CategoricalDistribution([_plain(value) for value in axis])
            elif isinstance(axis.low, int) and isinstance(axis.high, int):
                found[key] = kinds.IntDistribution(axis.low, axis.high, log=axis.log)
            else:
                found[key] = kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
        return found

    def _sampler(self, number: int):
        seed = self.plan.search.seed * 1_000_003 + number
        if self.plan.search.sampler == "tpe":
            return self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return self.optuna.samplers.NSGAIISampler(
            seed=seed, population_size=min(50, max(4, self.plan.search.trials // 4))
        )


def objective_values(means: dict[str, float | None], plan: Plan) -> list[float] | None:
    """The objectives of a cell, or None where one has no number."""
    values = [means.get(key) for key in plan.objectives]
    return None if None in values else values


def _optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("sweeps keep their trials with Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _journal(optuna, folder: SweepFolder):
    folder.path.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.journal)))


def _mend(journal: Path) -> None:
    """Cuts off a line that is not whole: on a full disk, or in a process that was killed, its end was not written."""
    if not journal.exists() or not (size := journal.stat().st_size):
        return
    with open(journal, "r+b") as file:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _storage_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def _plain(value: Any) -> Any:
    """What a categorical distribution takes: tables and lists as JSON."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value, sort_keys=True)


def _rich(value: Any, axis) -> Any:
    """The axis's own value again."""
    return value if isinstance(axis, Range) else next(each for each in axis if _plain(each) == value)
