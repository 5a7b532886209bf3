"""What a sweep is to do, as plan.json: written once, extended by later calls, read by every worker."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from metasae import files
from metasae.compare.catalogue import CATALOGUE, ROBUST
from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe
from metasae.sweep.cells import Member, Setting, cell_hash, members
from metasae.sweep.folder import SweepFolder, locked
from metasae.sweep.grid import Axis, Range

OBJECTIVES = ("fidelity.fvu", *ROBUST)
SUBJECT = "joint"


@dataclass(frozen=True)
class Search:
    """trials: how many cells are asked for in all. sampler: `tpe` or `nsga2`, seeded by `seed` and the trial's number."""

    space: dict[str, Any]
    trials: int
    sampler: str = "tpe"
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """base: the recipe of the cells but for their settings, with arms and seeds. settings: of a grid; empty in a search. study: its name.

    objectives: keys of the catalogue. shared_baseline: every cell is compared with solo of `base`. early_stop: see `halving`.
    equal_fvu: see `equal_fvu.Spec`. title: what was asked for, in words. storage: whether a storage was named (its address is not kept).
    """

    study: str
    title: str
    base: Recipe
    settings: tuple[Setting, ...]
    search: Search | None = None
    objectives: tuple[str, ...] = OBJECTIVES
    shared_baseline: bool = False
    equal_fvu: dict | None = None
    early_stop: bool = False
    storage: bool = False
    full_measure: dict = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The arm whose numbers a cell stands for."""
        arms = self.base.arms
        return SUBJECT if SUBJECT in arms else next((arm for arm in arms if arm != "solo"), arms[0])

    def members(self, setting: Setting) -> list[Member]:
        return members(setting, self.base, self.shared_baseline)

    def name_of(self, setting: Setting) -> str:
        return cell_hash(setting.recipe(self.base))

    @property
    def most_tokens(self) -> int:
        """Training tokens that the harvest takes: those of the longest cell, unless the recipe caches fewer and reads them again."""
        key = "train.tokens"
        asked = [setting.values.get(key, self.base.train.tokens) for setting in self.settings]
        if self.search and key in self.search.space:
            axis = self.search.space[key]
            asked += [int(axis.high)] if isinstance(axis, Range) else list(axis)
        longest = max([self.base.train.tokens, *asked])
        return min(self.base.harvest.tokens or longest, longest)

    def as_dict(self) -> dict:
        search = None
        if self.search:
            space = {
                key: axis.as_dict() if isinstance(axis, Range) else list(axis)
                for key, axis in self.search.space.items()
            }
            search = asdict(self.search) | {"space": space}
        return {
            **{
                name: getattr(self, name)
                for name in ("study", "title", "shared_baseline", "equal_fvu", "early_stop", "storage", "full_measure")
            },
            "objectives": list(self.objectives),
            "base": self.base.model_dump(mode="json"),
            "settings": [setting.as_dict() for setting in self.settings],
            "search": search,
        }

    @classmethod
    def from_dict(cls, held: dict) -> "Plan":
        search = held["search"]
        if search:
            space: dict[str, Axis] = {
                key: Range(**axis) if isinstance(axis, dict) else tuple(axis) for key, axis in search["space"].items()
            }
            search = Search(**{**search, "space": space})
        settings = tuple(Setting.from_dict(each) for each in held["settings"])
        changed = {
            "base": Recipe.load(held["base"]),
            "settings": settings,
            "search": search,
            "objectives": tuple(held["objectives"]),
        }
        return cls(**{**held, **changed})


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_plan(folder: SweepFolder) -> Plan:
    """Raises UserError where there is none."""
    if not folder.plan.is_file():
        raise UserError(
            f"{folder.path} is not a sweep folder: it has no plan.json; give the --out folder of `metasae sweep`"
        )
    return Plan.from_dict(files.read_json(folder.plan))


def check_objectives(keys) -> tuple[str, ...]:
    """Raises UserError for a key that the catalogue does not have, or that has no better direction."""
    known = {quantity.key: quantity for quantity in CATALOGUE}
    for key in keys:
        if key not in known:
            raise UserError(f"no measure '{key}'{nearest(key, known)}")
        if known[key].better is None:
            raise UserError(
                f"'{key}' ({known[key].label}) is a plain description and has no better direction; choose another objective"
            )
    if len(set(keys)) != len(tuple(keys)) or not keys:
        raise UserError("name each objective once, and at least one")
    return tuple(keys)


def claim(folder: SweepFolder, plan: Plan) -> Plan:
    """Writes the plan, or extends the one that is there by further settings, seeds and trials; returns what holds from now on.

    Raises UserError where the folder holds a sweep of another recipe or another kind.
    """
    with locked(folder.path / "plan.lock"):
        if folder.plan.is_file():
            plan = _extended(read_plan(folder), plan, folder)
        for setting in plan.settings:
            # every cell's recipe is looked at before anything is trained
            setting.recipe(plan.base)
        files.write_json(folder.plan, plan.as_dict())
    return plan


def _extended(held: Plan, asked: Plan, folder: SweepFolder) -> Plan:
    key = _difference(held, asked)
    if key:
        raise UserError(f"{folder.path} holds a sweep with another {key}; choose another --out or delete the folder")
    settings = {json.dumps(setting.as_dict(), sort_keys=True): setting for setting in (*held.settings, *asked.settings)}
    seeds = tuple(dict.fromkeys((*held.base.seeds, *asked.base.seeds)))
    search = replace(asked.search, trials=max(held.search.trials, asked.search.trials)) if asked.search else None
    return replace(
        held, settings=tuple(settings.values()), base=held.base.model_copy(update={"seeds": seeds}), search=search
    )


def _difference(held: Plan, asked: Plan) -> str | None:
    for name in ("objectives", "shared_baseline", "equal_fvu", "early_stop", "storage"):
        if getattr(held, name) != getattr(asked, name):
            return name
    words = next((key for key in _words(held) if _words(held)[key] != _words(asked).get(key, _words(held)[key])), None)
    if words:
        # a study's categories cannot grow
        return f"choice of {words}"
    if bool(held.search) != bool(asked.search) or (held.search and held.search.space != asked.search.space):
        return "search"
    ours, theirs = _flat(asked.base), _flat(held.base)
    return next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)), None)


def _words(plan: Plan) -> dict[str, list]:
    """The values of every key of a grid that are not all numbers."""
    found: dict[str, list] = {}
    for setting in plan.settings:
        for key, value in setting.values.items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: values for key, values in found.items() if not all(is_number(value) for value in values)}


def _flat(recipe: Recipe) -> Mapping[str, Any]:
    flat = {}
    for name, value in recipe.model_dump(mode="json", exclude={"description", "seeds"}).items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    # a cache may be at another place on another machine
    return {key: value for key, value in flat.items() if key != "harvest.cache"}
