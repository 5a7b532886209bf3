"""Optuna in a sweep: it draws the cells of a search, and one of its storages can receive a copy of all cells.

The cells on disk are the record. For every draw, Optuna is given all cells in the order of their trials, and a sampler
(TPE) that is seeded by the trial's number draws one more. So a search that was stopped and started again draws the same
cells.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from metasae.errors import UserError, install_hint
from metasae.sweep.cells import Setting
from metasae.sweep.folder import FAILED, OPEN, Cell, SweepFolder
from metasae.sweep.grid import Axis, Range
from metasae.sweep.plan import Plan

try:
    import optuna
except ImportError:
    why = "--search and --storage need Optuna, which is not installed"
    raise UserError(f"{why}: {install_hint('search')}") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)

# This many trials are drawn at random before the results of earlier trials are used.
STARTUP_TRIALS = 10


def draw(folder: SweepFolder, plan: Plan) -> bool:
    """Draws the next cell of a search and writes it, or adds the trial to the cell that has the same recipe.

    The caller holds the folder's lock. False if all trials are drawn.
    """
    cells = folder.cells()
    number = sum(len(cell.trials) for cell in cells)
    if number >= plan.search.trials:
        return False
    study = study_of(plan, cells)
    study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP_TRIALS)
    trial = study.ask(_distributions(plan))
    setting = Setting({key: _own(trial.params[key], axis) for key, axis in plan.search.space.items()})
    try:
        cell = Cell(plan.name_of(setting), setting, [number])
    except UserError as error:
        # a search may draw values that the recipe refuses, such as k above n
        cell = Cell(f"refused-{number}", setting, [number], FAILED, str(error))
    same = next((other for other in cells if other.name == cell.name), None)
    folder.write_cell(replace(same, trials=[*same.trials, number]) if same else cell)
    return True


def study_of(plan: Plan, cells: Sequence[Cell], storage=None):
    """An Optuna study with a trial for each time that a cell was drawn or asked for.

    A cell without objectives counts as running while it is open, and as failed after that. storage: an Optuna storage;
    None keeps the study in memory.
    """
    states, distributions = optuna.trial.TrialState, _distributions(plan)
    directions = ["minimize" if sign > 0 else "maximize" for sign in plan.signs]
    study = optuna.create_study(study_name=plan.study, directions=directions, storage=storage)
    trials = {number: cell for cell in cells for number in cell.trials}
    for cell in (trials[number] for number in sorted(trials)):
        params = {key: _plain(value) for key, value in cell.setting.values.items()}
        unfinished = states.RUNNING if cell.state == OPEN else states.FAIL
        trial = optuna.trial.create_trial(
            state=states.COMPLETE if cell.objectives else unfinished,
            values=cell.objectives,
            params=params,
            distributions={key: distributions[key] for key in params},
            user_attrs={"cell": cell.name},
        )
        study.add_trial(trial)
    return study


def open_storage(address: str):
    """The Optuna storage at an address. Raises UserError if it cannot be opened."""
    with _reported():
        return optuna.storages.get_storage(address)


def copy_to(storage, plan: Plan, cells: Sequence[Cell]) -> None:
    """Writes the cells as a study into a storage, in place of an earlier copy.

    Raises UserError if the storage refuses it.
    """
    with _reported():
        if plan.study in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=plan.study, storage=storage)
        study_of(plan, cells, storage=storage)


@contextmanager
def _reported() -> Iterator[None]:
    """Raises every error of a storage as a UserError of one line."""
    try:
        yield
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the storage cannot be used: {first}; correct this, then run the same command again") from None


def _distributions(plan: Plan) -> dict[str, Any]:
    """{key: the distribution of its values}; for a grid, all its values."""
    kinds, distributions = optuna.distributions, {}
    for key, axis in (plan.search.space if plan.search else _values_of(plan)).items():
        if isinstance(axis, Range):
            whole = isinstance(axis.low, int) and isinstance(axis.high, int)
            kind = kinds.IntDistribution if whole else kinds.FloatDistribution
            distributions[key] = kind(axis.low, axis.high, log=axis.log)
        else:
            distributions[key] = kinds.CategoricalDistribution(list(dict.fromkeys(map(_plain, axis))))
    return distributions


def _values_of(plan: Plan) -> dict[str, list]:
    """{key: its values in the settings of a grid}."""
    keys = dict.fromkeys(key for setting in plan.settings for key in setting.values)
    return {key: [setting.values[key] for setting in plan.settings if key in setting.values] for key in keys}


def _plain(value: Any) -> Any:
    """A value for a categorical distribution: tables and lists become JSON text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value, sort_keys=True)


def _own(value: Any, axis: Axis) -> Any:
    """The axis's value that `_plain` was applied to."""
    return value if isinstance(axis, Range) else next(choice for choice in axis if _plain(choice) == value)
