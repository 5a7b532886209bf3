"""The cells of a sweep, the values that decide each of their arms, and the names that follow from these values.

An SAE is named after the values that decide it, so cells that differ only in values that an arm ignores share that
arm's SAE. Solo ignores the penalty and the meta SAE. Control ignores the penalty, as its meta SAE does not change the
primary. tests/sweep/test_deciding.py trains every arm with changed values and checks this table against the weights.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS, BASELINE

# Keys of the table `train` that only the decomposability penalty uses, that only further penalties use, and that both
# use.
DECOMPOSABILITY = ("lambda2", "sigma_sq", "adaptive_sigma", "balanced", "meta_gradient")
FURTHER = ("penalties", "penalty_every")
ANY_PENALTY = ("penalty_start",)
# Keys that only the arms `atomic` and `atomic-joint` use.
ATOMIC = ("nest", "margin")
# Keys that only a meta SAE uses, besides the table `meta`.
META = ("n_primary_steps", "n_meta_steps", "meta_lr", "meta_dead_after")
# Keys that change no result: they only say when the state is saved.
NO_MATTER = ("checkpoint_every",)
# Tables that decide the activations and how an SAE is measured.
DATA = ("model", "hook", "text", "planted", "measure")


@dataclass(frozen=True)
class Setting:
    """The values a cell changes in the sweep's recipe.

    kind: the curve that the cell belongs to if curves are compared at equal FVU, else "".
    """

    values: dict[str, Any] = field(default_factory=dict)
    kind: str = ""

    def recipe(self, base: Recipe) -> Recipe:
        """The sweep's recipe with these values. Raises UserError for a value that a recipe does not accept."""
        return Recipe.load(base.model_dump(mode="json"), self.values)


@dataclass(frozen=True)
class Member:
    """One SAE of a cell: `arm` and `seed` name it in the cell; it is trained as the arm `trained_as` by `recipe`, and
    its folder is saes/`name`.
    """

    arm: str
    seed: int
    trained_as: str
    recipe: Recipe
    name: str

    @property
    def label(self) -> str:
        return f"{self.arm}-s{self.seed}"


def trained_as(recipe: Recipe, arm: str) -> str:
    """The arm whose training is the same: an arm without any penalty, nesting and margin is trained as the
    baseline, for example.
    """
    rules, train = ARMS[arm], recipe.train
    if rules.penalty and not (recipe.has_meta(arm) or recipe.charged(arm)):
        rules = replace(rules, meta=False, penalty=False)
    if not (train.nest.weight or train.margin):
        rules = replace(rules, atomic=False)
    return next(name for name, others in ARMS.items() if others == rules)


def idle_keys(recipe: Recipe, arm: str) -> set[str]:
    """The keys of `train` that do not decide an arm's SAEs.

    If the arm has no meta SAE, the table `meta` does not decide them either.
    """
    arm = trained_as(recipe, arm)
    penalised = ARMS[arm].penalty
    rules = {
        NO_MATTER: True,
        META: not recipe.has_meta(arm),
        DECOMPOSABILITY: not (penalised and recipe.train.lambda2),
        FURTHER: not recipe.charged(arm),
        ANY_PENALTY: not penalised,
        ATOMIC: not ARMS[arm].atomic,
    }
    return {key for keys, is_idle in rules.items() if is_idle for key in keys}


def canonical(recipe: Recipe, arm: str, base: Recipe) -> Recipe:
    """The recipe an arm is trained by. Values that do not decide it are the sweep's own, so that cells that share an
    SAE have the same recipe for it.
    """
    idle, arm = idle_keys(recipe, arm), trained_as(recipe, arm)
    if ARMS[arm].penalty:
        # these two keys say that a penalty is off, which is why its other keys do not matter, so they must be kept
        idle -= {"lambda2", "penalties"}
    update = {"train": recipe.train.model_copy(update={key: getattr(base.train, key) for key in idle})}
    if not recipe.has_meta(arm):
        update["meta"] = base.meta
    return recipe.model_copy(update=update)


def sae_hash(recipe: Recipe, arm: str, seed: int) -> str:
    """A hash of everything that decides an SAE and its measures, apart from the machine."""
    values, idle, arm = _values(recipe), idle_keys(recipe, arm), trained_as(recipe, arm)
    values["train"] = {key: value for key, value in values["train"].items() if key not in idle}
    if "penalties" in values["train"]:
        values["train"]["penalties"] = recipe.charged(arm)
    if not recipe.has_meta(arm):
        del values["meta"]
    return _digest({"arm": arm, "seed": seed, **values})


def cell_hash(recipe: Recipe) -> str:
    """A hash of a recipe without its description, arms, seeds, paths on disk and NO_MATTER."""
    values = _values(recipe)
    for key in NO_MATTER:
        del values["train"][key]
    return _digest(values)


def members(setting: Setting, base: Recipe, shared_baseline: bool = False) -> list[Member]:
    """The SAEs of a cell, seed by seed, in the order of the arms.

    shared_baseline: all arms without a penalty are those of the sweep's own recipe.
    """
    own, saes = setting.recipe(base), []
    for seed in base.seeds:
        for arm in base.arms:
            recipe = base if shared_baseline and not ARMS[arm].penalty else own
            kind = trained_as(recipe, arm)
            name = f"{kind}-s{seed}-{sae_hash(recipe, arm, seed)}"
            saes.append(Member(arm, seed, kind, canonical(recipe, arm, base), name))
    return saes


def twin_of(member: Member, members: Sequence[Member]) -> Member | None:
    """The baseline's SAE among a cell's with exactly the same weights as this SAE, whose measures are taken over; None
    if there is none.
    """
    if not ARMS[member.trained_as].keeps_primary:
        return None
    baselines = (other for other in members if other.trained_as == BASELINE)
    return next((other for other in baselines if other.seed == member.seed), None)


def _values(recipe: Recipe) -> dict:
    values = recipe.model_dump(mode="json", include={*DATA, "sae", "meta", "train"})
    # further points that are harvested in the same pass change nothing here
    values["hook"].pop("also")
    # a sweep refuses it (`plan.asked_plan`), and hashes of earlier sweeps have no such key
    values["train"].pop("init")
    values["dtype"] = recipe.harvest.dtype
    if recipe.split_tokens["train"] < recipe.train.tokens:
        values["cached"] = recipe.split_tokens["train"]
    return values


def _digest(values: dict) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()
