"""What a cell of a sweep is, which values decide each of its arms, and the names that follow from them.

An SAE is named after what decides it, so that cells which differ only in what an arm does not look at share that arm's
SAE: solo does not look at the penalty nor at the meta SAE; control, whose meta SAE sees the primary but never touches
it, does not look at the penalty. tests/sweep/test_deciding.py trains every arm under changed values and holds this
table against the weights.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS

# Of the table `train`: what only the decomposability penalty looks at, what only further penalties do, what any of the
# two does.
DECOMPOSABILITY = ("lambda2", "sigma_sq", "adaptive_sigma", "balanced", "meta_gradient")
FURTHER = ("penalties", "penalty_every")
ANY_PENALTY = ("penalty_start",)
# What only the arms `atomic` and `atomic-joint` do.
ATOMIC = ("nest", "margin", "births")
# What only a meta SAE looks at, beside the table `meta`.
META = ("n_primary_steps", "n_meta_steps", "meta_lr", "meta_dead_after")
# When the state is saved changes no result.
NO_MATTER = ("checkpoint_every",)
# Tables that decide the activations and what an SAE is judged on.
DATA = ("model", "hook", "text", "planted", "measure")


@dataclass(frozen=True)
class Setting:
    """The values a cell changes in the sweep's recipe.

    kind: the curve it belongs to where curves are compared at equal FVU, else "".
    """

    values: dict[str, Any] = field(default_factory=dict)
    kind: str = ""

    def recipe(self, base: Recipe) -> Recipe:
        """Raises UserError for a value that the recipe does not take."""
        return Recipe.load(base.model_dump(mode="json"), self.values)


@dataclass(frozen=True)
class Member:
    """One SAE of a cell: `arm` and `seed` name it in the cell; it is trained as `trained_as` by `recipe` and lies in
    saes/`name`.
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
    """The arm whose training this is: one that is charged nothing by any penalty, and has neither nesting, margin nor
    births, is trained as the baseline.
    """
    rules, train = ARMS[arm], recipe.train
    if rules.penalty and not (recipe.has_meta(arm) or recipe.charged(arm)):
        rules = replace(rules, meta=False, penalty=False)
    if not (train.nest.weight or train.margin.start or train.margin.end or train.births.share):
        rules = replace(rules, atomic=False)
    return next(name for name, others in ARMS.items() if others == rules)


def idle_keys(recipe: Recipe, arm: str) -> set[str]:
    """The keys of `train` that do not decide an arm's SAEs.

    The table `meta` does not either where the arm has no meta SAE.
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
    """The recipe an arm is trained by: values that do not decide it are the sweep's own, so that cells which share it
    ask for the same.
    """
    idle, arm = idle_keys(recipe, arm), trained_as(recipe, arm)
    if ARMS[arm].penalty:
        # that one penalty is off is why its other values are idle, so it must stay off
        idle -= {"lambda2", "penalties"}
    update = {"train": recipe.train.model_copy(update={key: getattr(base.train, key) for key in idle})}
    if not recipe.has_meta(arm):
        update["meta"] = base.meta
    return recipe.model_copy(update=update)


def sae_hash(recipe: Recipe, arm: str, seed: int) -> str:
    """Of everything that decides an SAE and its measures, apart from the machine."""
    values, idle, arm = _values(recipe), idle_keys(recipe, arm), trained_as(recipe, arm)
    values["train"] = {key: value for key, value in values["train"].items() if key not in idle}
    if "penalties" in values["train"]:
        values["train"]["penalties"] = recipe.charged(arm)
    if not recipe.has_meta(arm):
        del values["meta"]
    return _digest({"arm": arm, "seed": seed, **values})


def cell_hash(recipe: Recipe) -> str:
    """Of a recipe without description, arms, seeds, places on disk and when its state is saved."""
    values = _values(recipe)
    for key in NO_MATTER:
        del values["train"][key]
    return _digest(values)


def members(setting: Setting, base: Recipe, shared_baseline: bool = False) -> list[Member]:
    """The SAEs of a cell, seed by seed, in the order of the arms.

    shared_baseline: all arms that no penalty charges are those of the sweep's own recipe.
    """
    own, saes = setting.recipe(base), []
    for seed in base.seeds:
        for arm in base.arms:
            recipe = base if shared_baseline and not ARMS[arm].penalty else own
            kind = trained_as(recipe, arm)
            name = f"{kind}-s{seed}-{sae_hash(recipe, arm, seed)}"
            saes.append(Member(arm, seed, kind, canonical(recipe, arm, base), name))
    return saes


def _values(recipe: Recipe) -> dict:
    values = recipe.model_dump(mode="json", include={*DATA, "sae", "meta", "train"})
    # which further points are harvested in passing changes nothing here
    values["hook"].pop("also")
    # a sweep refuses it (`plan.asked_plan`), and hashes of earlier sweeps have no such key
    values["train"].pop("init")
    values["dtype"] = recipe.harvest.dtype
    if recipe.split_tokens["train"] < recipe.train.tokens:
        values["cached"] = recipe.split_tokens["train"]
    return values


def _digest(values: dict) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()
