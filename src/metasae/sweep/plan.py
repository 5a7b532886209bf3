"""The plan of a sweep, made from its arguments, and plan.json, which later calls extend and every worker reads.

A plan is a recipe that measures less than a run, with the settings of a grid or an ablation, or the space of a search.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from metasae import files
from metasae.compare.catalogue import CATALOGUE, TRUTH
from metasae.errors import UserError, nearest
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import BASELINE, SUBJECT
from metasae.recipe.resolve import first_difference, resolve
from metasae.sweep.cells import Member, Setting, cell_hash, members
from metasae.sweep.folder import SweepFolder
from metasae.sweep.grid import Axis, Range, expand, parse_grid
from metasae.sweep.named import named

# Spike-ins as a share of n, in a sweep over kinds whose recipe has none.
SPIKED_SHARE = 0.08
# Values that may differ between two calls on one folder; on another machine the cache may have another path.
FREE = ("description", "seeds", "harvest.cache")
QUANTITIES = {quantity.key: quantity for quantity in CATALOGUE}
# The space of a search without a grid: around the paper's values. sigma^2 below .3 has no effect, as e is .7 to .95.
SPACE = {"train.lambda2": Range(0.03, 1.0, log=True), "train.sigma_sq": Range(0.3, 3.0, log=True)}
# Training tokens per evaluation token and per output token: a sweep compares many SAEs roughly, and the chosen cell is
# measured in full when it is confirmed.
TOKENS_JUDGED = 20
OUTPUT_TOKENS_JUDGED = 200


@dataclass(frozen=True)
class Search:
    """A search. space: {key: values or range} that cells are drawn from. trials: number of cells in all."""

    space: dict[str, Axis]
    trials: int


@dataclass(frozen=True)
class Plan:
    """base: the recipe of the cells without their settings, with arms and seeds. settings: of a grid; empty in a
    search.

    study: the sweep's name in an Optuna storage. objectives: keys of the catalogue. shared_baseline: every cell is
    compared with solo of `base`. early_stop: see `metasae.sweep.pareto`. equal_fvu: see `metasae.sweep.named`. title:
    what is swept, in words. full_measure: keys of `measure` with the values of a run, where the sweep measures less.
    """

    study: str
    title: str
    base: Recipe
    settings: tuple[Setting, ...] = ()
    search: Search | None = None
    objectives: tuple[str, ...] = ("fidelity.fvu",)
    shared_baseline: bool = False
    equal_fvu: dict | None = None
    early_stop: bool = False
    full_measure: dict = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The arm whose numbers represent a cell."""
        arms = self.base.arms
        return SUBJECT if SUBJECT in arms else next((arm for arm in arms if arm != BASELINE), arms[0])

    @property
    def told(self) -> list[str]:
        """Keys of the measures that are reported for every cell, in the catalogue's order."""
        return [key for key, quantity in QUANTITIES.items() if quantity.main or key in self.objectives]

    @property
    def halves(self) -> bool:
        """Whether cells may be stopped after their first seed."""
        return self.early_stop and len(self.base.seeds) > 1

    @property
    def signs(self) -> np.ndarray:
        """For each objective 1 if lower is better, -1 if higher is better: values times signs are costs."""
        return np.array([1.0 if QUANTITIES[key].better == "lower" else -1.0 for key in self.objectives])

    def objective_values(self, means: dict[str, float | None]) -> list[float] | None:
        """The objectives' values among a cell's means; None if one has no number."""
        values = [means.get(key) for key in self.objectives]
        return None if None in values else values

    def members(self, setting: Setting) -> list[Member]:
        return members(setting, self.base, self.shared_baseline)

    def name_of(self, setting: Setting) -> str:
        return cell_hash(setting.recipe(self.base))

    @property
    def most_tokens(self) -> int:
        """Training tokens to harvest: those of the longest cell, unless the recipe caches fewer and reads them
        again.
        """
        key = "train.tokens"
        asked = [setting.values.get(key, self.base.train.tokens) for setting in self.settings]
        if self.search and key in self.search.space:
            axis = self.search.space[key]
            asked += [int(axis.high)] if isinstance(axis, Range) else list(axis)
        longest = max([self.base.train.tokens, *asked])
        return min(self.base.harvest.tokens or longest, longest)


_AS_JSON = TypeAdapter(Plan)


def asked_plan(
    recipe: str | Path | dict | Recipe,
    out: str | Path | None,
    overrides: dict[str, Any],
    device: str,
    grid: Sequence[str],
    search: int | None,
    name: str | None,
    objectives: Sequence[str] | None,
    early_stop: bool,
) -> tuple[Plan, SweepFolder]:
    """Makes the plan from the arguments; returns (the plan, the sweep's folder). Arguments as of `metasae.sweep.sweep`;
    overrides contain the seeds, and name is its `named`.

    Kinds are compared by known features, so a sweep over kinds has spike-ins unless `overrides` set spikes.n.

    Raises UserError for arguments that contradict each other.
    """
    base, full, folder = _resolved(recipe, out, overrides, device)
    truth = base.spikes.n or "spikes.n" in overrides or base.text.source == "planted"
    if name in ("kinds", "atomic") and not truth:
        spikes = base.spikes.model_copy(update={"n": max(1, round(SPIKED_SHARE * base.sae.n))})
        base = base.model_copy(update={"spikes": spikes})
    objectives = tuple(objectives or default_objectives(base))
    if base.train.init or any(axis.startswith("train.init=") for axis in grid):
        raise UserError("a sweep cannot start from an existing SAE; leave train.init empty, or use `metasae run`")
    if sum(map(bool, (name, grid or search))) != 1:
        raise UserError("give one of --grid KEY=V,V, --named NAME and --search N (which may have --grid as its space)")
    if search is not None and search < 1:
        raise UserError(f"--search {search}: there must be at least one trial")
    if early_stop and (search or name in ("kinds", "k")):
        raise UserError(
            "--early-stop works with a grid only: a search chooses its cells itself, and curves at equal FVU need all "
            "their points"
        )
    axes, study = parse_grid(grid), f"metasae-{uuid.uuid4().hex[:12]}"
    check_objectives(objectives)
    plan = Plan(study, name or "", base, (), None, objectives, early_stop=early_stop, full_measure=full)
    if name:
        settings, equal_fvu = named(name, base)
        if equal_fvu:
            base = base.model_copy(update={"arms": (BASELINE, SUBJECT)})
        shared = equal_fvu is not None
        if name == "atomic":
            base, shared = base.model_copy(update={"arms": (BASELINE, "atomic-joint")}), True
        plan = replace(plan, base=base, settings=tuple(settings), shared_baseline=shared, equal_fvu=equal_fvu)
    elif search:
        space = axes or SPACE
        plan = replace(plan, title=f"search over {', '.join(space)}", search=Search(space, search))
    else:
        plan = replace(plan, title=f"grid over {', '.join(axes)}", settings=tuple(map(Setting, expand(axes))))
    return plan, folder


def _resolved(
    recipe: str | Path | dict | Recipe, out: str | Path | None, overrides: dict[str, Any], device: str
) -> tuple[Recipe, dict, SweepFolder]:
    """(the sweep's recipe, the values of `measure` that a run of the recipe would have, the folder)."""
    whole, place = resolve(recipe, out, overrides, device)
    if overrides.get("measure.across"):
        raise UserError(
            "a sweep has no measures that take two SAEs (measure.across); confirm its best recipe with `metasae run`"
        )
    if whole.harvest.window_tokens:
        raise UserError(
            "a sweep trains its SAEs at different times on one harvest, so that must be kept: set "
            "harvest.window_tokens=0"
        )
    less = {key: value for key, value in light(whole).items() if key not in overrides}
    full = {name: getattr(whole.measure, name) for name in (key.removeprefix("measure.") for key in less)}
    base = Recipe.load(whole.model_dump(mode="json"), less)
    return base, full, SweepFolder(place if out is not None else place.with_name(f"{place.name}-sweep"))


def light(base: Recipe) -> dict[str, Any]:
    """The overrides by which a sweep measures less than a run.

    No firings kept, nothing across SAEs, no shifted text, no pursuit, the excess over fixed marginals with an interval
    over seeds alone, and one evaluation token per 20 training tokens (at least 20,000), an output token per 200 (at
    least 2,000), where the recipe has more.
    """
    spec, tokens = base.measure, base.train.tokens
    return {
        "measure.tokens": min(spec.tokens, max(20_000, tokens // TOKENS_JUDGED)),
        "measure.output_tokens": min(spec.output_tokens, max(2_000, tokens // OUTPUT_TOKENS_JUDGED)),
        "measure.keep_firings": False,
        "measure.across": False,
        "measure.shifts": 0,
        "measure.pursuit_k": 0,
        "measure.excess_blocks": False,
    }


def read_plan(folder: SweepFolder) -> Plan:
    """The plan in a folder. Raises UserError if there is none, or one of another version."""
    try:
        return _AS_JSON.validate_python(files.read_json(folder.plan))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{folder.plan} was written by another version ({key}); choose another --out") from None


def default_objectives(base: Recipe) -> tuple[str, ...]:
    """FVU, and the measures of known features that the recipe has."""
    planted = base.text.source == "planted"
    measured = {"spikes": base.spikes.n, "concepts": base.measure.concepts and not planted, "truth": planted}
    return ("fidelity.fvu", *(key for key in TRUTH if measured[key.split(".")[0]]))


def check_objectives(keys: Sequence[str]) -> None:
    """Raises UserError for a key that is not in the catalogue, has no better direction, or is named twice."""
    for key in keys:
        if key not in QUANTITIES:
            raise UserError(f"no measure '{key}'{nearest(key, QUANTITIES)}")
        if QUANTITIES[key].better is None:
            raise UserError(
                f"'{key}' ({QUANTITIES[key].label}) is a description without a better direction; choose another "
                "objective"
            )
    if len(set(keys)) != len(keys):
        raise UserError("name each objective once")


def claim(folder: SweepFolder, plan: Plan) -> Plan:
    """Writes the plan of `joined` and returns it. The caller holds the folder's lock. Raises as `joined`."""
    plan = joined(folder, plan)
    files.write_json(folder.plan, _AS_JSON.dump_python(plan, mode="json"))
    return plan


def joined(folder: SweepFolder, plan: Plan) -> Plan:
    """The plan, or if the folder has one, that one with this plan's further settings, seeds and trials.

    Raises UserError if the folder holds a sweep of another recipe or another kind, and for values that a cell's recipe
    does not accept.
    """
    if folder.plan.is_file():
        plan = _extended(read_plan(folder), plan, folder)
    for setting in plan.settings:
        # checks every cell's recipe before anything is trained
        setting.recipe(plan.base)
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
    """The name of a value that must be equal in two calls on one folder and is not; None if there is none."""
    for name in ("objectives", "shared_baseline", "equal_fvu", "early_stop"):
        if getattr(before, name) != getattr(asked, name):
            return name
    spaces = [plan.search and plan.search.space for plan in (before, asked)]
    if spaces[0] != spaces[1]:
        return "search"
    difference = first_difference(asked.base, before.base, FREE)
    return difference and difference[0]
