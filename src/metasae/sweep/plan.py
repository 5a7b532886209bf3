"""What a sweep is to do, as plan.json: written once, extended by later calls, read by every worker."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter

from metasae import files
from metasae.compare.catalogue import CATALOGUE, ROBUST
from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE, SUBJECT
from metasae.recipe.resolve import first_difference
from metasae.sweep.cells import Member, Setting, cell_hash, members
from metasae.sweep.folder import SweepFolder
from metasae.sweep.grid import Axis, Range

OBJECTIVES = ("fidelity.fvu", *ROBUST)
# What may differ between two calls on one folder; a cache may be at another place on another machine.
FREE = ("description", "seeds", "harvest.cache")
QUANTITIES = {quantity.key: quantity for quantity in CATALOGUE}


@dataclass(frozen=True)
class Search:
    """space: what cells are drawn from. trials: how many cells are asked for in all."""

    space: dict[str, Axis]
    trials: int


@dataclass(frozen=True)
class Plan:
    """base: the recipe of the cells but for their settings, with arms and seeds. settings: of a grid; empty in a
    search.

    study: the sweep's name in an Optuna storage. objectives: keys of the catalogue. shared_baseline: every cell is
    compared with solo of `base`. early_stop: see `metasae.sweep.halving`. equal_fvu: see `metasae.sweep.named`.
    title: what was asked for, in words.
    full_measure: what a run of the recipe measures and the sweep does not, keys of `measure`.
    """

    study: str
    title: str
    base: Recipe
    settings: tuple[Setting, ...] = ()
    search: Search | None = None
    objectives: tuple[str, ...] = OBJECTIVES
    shared_baseline: bool = False
    equal_fvu: dict | None = None
    early_stop: bool = False
    full_measure: dict = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The arm whose numbers a cell stands for."""
        arms = self.base.arms
        return SUBJECT if SUBJECT in arms else next((arm for arm in arms if arm != BASELINE), arms[0])

    @property
    def halves(self) -> bool:
        """Whether cells may be stopped after their first seed."""
        return self.early_stop and len(self.base.seeds) > 1

    @property
    def total(self) -> int:
        """How many cells are asked for, at most."""
        return self.search.trials if self.search else len(self.settings)

    @property
    def signs(self) -> np.ndarray:
        """[objectives] 1 where lower is better, -1 where higher is: values times signs are costs."""
        return np.array([1.0 if QUANTITIES[key].better == "lower" else -1.0 for key in self.objectives])

    def objective_values(self, means: dict[str, float | None]) -> list[float] | None:
        """The objectives among a cell's means, or None where one has no number."""
        values = [means.get(key) for key in self.objectives]
        return None if None in values else values

    def members(self, setting: Setting) -> list[Member]:
        return members(setting, self.base, self.shared_baseline)

    def name_of(self, setting: Setting) -> str:
        return cell_hash(setting.recipe(self.base))

    @property
    def most_tokens(self) -> int:
        """Training tokens that the harvest takes: those of the longest cell, unless the recipe caches fewer and reads
        them again.
        """
        key = "train.tokens"
        asked = [setting.values.get(key, self.base.train.tokens) for setting in self.settings]
        if self.search and key in self.search.space:
            axis = self.search.space[key]
            asked += [int(axis.high)] if isinstance(axis, Range) else list(axis)
        longest = max([self.base.train.tokens, *asked])
        return min(self.base.harvest.tokens or longest, longest)


_AS_JSON = TypeAdapter(Plan)


def read_plan(folder: SweepFolder) -> Plan:
    """Raises UserError where there is none."""
    if not folder.plan.is_file():
        raise UserError(
            f"{folder.path} is not a sweep folder: it has no plan.json; give the --out folder of `metasae sweep`"
        )
    return _AS_JSON.validate_python(files.read_json(folder.plan))


def check_objectives(keys: Sequence[str]) -> tuple[str, ...]:
    """Raises UserError for a key that the catalogue does not have, or that has no better direction."""
    for key in keys:
        if key not in QUANTITIES:
            raise UserError(f"no measure '{key}'{nearest(key, QUANTITIES)}")
        if QUANTITIES[key].better is None:
            raise UserError(
                f"'{key}' ({QUANTITIES[key].label}) is a plain description and has no better direction; choose another "
                "objective"
            )
    if len(set(keys)) != len(keys) or not keys:
        raise UserError("name each objective once, and at least one")
    return tuple(keys)


def claim(folder: SweepFolder, plan: Plan) -> Plan:
    """Writes the plan, or extends the one that is there by further settings, seeds and trials; returns what holds from
    now on.

    The caller holds the folder's lock. Raises UserError where the folder holds a sweep of another recipe or another
    kind.
    """
    if folder.plan.is_file():
        plan = _extended(read_plan(folder), plan, folder)
    for setting in plan.settings:
        # every cell's recipe is looked at before anything is trained
        setting.recipe(plan.base)
    files.write_json(folder.plan, _AS_JSON.dump_python(plan, mode="json"))
    return plan


def _extended(before: Plan, asked: Plan, folder: SweepFolder) -> Plan:
    key = _difference(before, asked)
    if key:
        raise UserError(f"{folder.path} holds a sweep with another {key}; choose another --out or delete the folder")
    settings = {
        json.dumps([setting.values, setting.kind], sort_keys=True): setting
        for setting in (*before.settings, *asked.settings)
    }
    seeds = tuple(dict.fromkeys((*before.base.seeds, *asked.base.seeds)))
    search = asked.search and replace(asked.search, trials=max(before.search.trials, asked.search.trials))
    base = before.base.model_copy(update={"seeds": seeds})
    return replace(before, settings=tuple(settings.values()), base=base, search=search)


def _difference(before: Plan, asked: Plan) -> str | None:
    """What two calls on one folder must have in common and do not."""
    for name in ("objectives", "shared_baseline", "equal_fvu", "early_stop"):
        if getattr(before, name) != getattr(asked, name):
            return name
    spaces = [plan.search and plan.search.space for plan in (before, asked)]
    if spaces[0] != spaces[1]:
        return "search"
    difference = first_difference(asked.base, before.base, FREE)
    return difference and difference[0]
