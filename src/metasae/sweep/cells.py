"""What a cell of a sweep is, which values decide each of its arms, and the names that follow from them.

An SAE is named after what decides it, so that cells which differ only in what an arm does not look at share that arm's SAE: solo
does not look at the penalty nor at the meta SAE; control, whose meta SAE sees the primary but never touches it, does not look at
the penalty. tests/sweep/test_deciding.py trains every arm under changed values and holds this table against the weights.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from metasae.recipe.recipe import Recipe

# Of the table `train`: what only the decomposability penalty looks at, what only further penalties do, what any of the two does.
DECOMPOSABILITY = ("lambda2", "sigma_sq", "adaptive_sigma", "balanced", "meta_gradient")
FURTHER = ("penalties", "penalty_every")
ANY_PENALTY = ("penalty_start",)
# What only a meta SAE looks at, beside the table `meta`.
META = ("n_primary_steps", "n_meta_steps", "meta_lr", "meta_dead_after")
# When the state is saved changes no result.
NO_MATTER = ("checkpoint_every",)
# Tables that decide the activations and what an SAE is judged on.
DATA = ("model", "hook", "text", "planted", "measure")


@dataclass(frozen=True)
class Setting:
    """The values a cell changes in the sweep's recipe. kind: the curve it belongs to where curves are compared at equal FVU, else ""."""

    values: dict[str, Any] = field(default_factory=dict)
    kind: str = ""

    def recipe(self, base: Recipe) -> Recipe:
        """Raises UserError for a value that the recipe does not take."""
        return Recipe.load(base.model_dump(mode="json"), self.values)

    def as_dict(self) -> dict:
        return {"values": self.values, "kind": self.kind}

    @classmethod
    def from_dict(cls, held: dict) -> "Setting":
        return cls(held["values"], held["kind"])


@dataclass(frozen=True)
class Member:
    """One SAE of a cell: `arm` and `seed` name it in the cell; it is trained as `trained_as` by `recipe` and lies in saes/`name`."""

    arm: str
    seed: int
    trained_as: str
    recipe: Recipe
    name: str

    @property
    def label(self) -> str:
        return f"{self.arm}-s{self.seed}"


def trained_as(recipe: Recipe, arm: str) -> str:
    """The arm whose training this is: joint without any penalty is solo."""
    return "solo" if arm == "joint" and not recipe.train.lambda2 and not _charged(recipe) else arm


def idle_keys(recipe: Recipe, arm: str) -> tuple[set[str], bool]:
    """(the keys of `train` that do not decide an arm's SAEs, whether its table `meta` does not either)."""
    arm, train = trained_as(recipe, arm), recipe.train
    with_meta = arm in ("control", "sequential") or (arm == "joint" and train.lambda2 > 0)
    idle = set(NO_MATTER)
    if not with_meta:
        idle |= {*META}
    if arm != "joint":
        idle |= {*DECOMPOSABILITY, *FURTHER, *ANY_PENALTY}
    else:
        idle |= set() if train.lambda2 else set(DECOMPOSABILITY)
        idle |= set() if _charged(recipe) else set(FURTHER)
    return idle, not with_meta


def canonical(recipe: Recipe, arm: str, base: Recipe) -> Recipe:
    """The recipe an arm is trained by: values that do not decide it are the sweep's own, so that cells which share it ask for the same."""
    idle, no_meta = idle_keys(recipe, arm)
    if trained_as(recipe, arm) == "joint":
        # that one penalty is off is why its other values are idle, so it must stay off
        idle -= {"lambda2", "penalties"}
    update = {"train": recipe.train.model_copy(update={key: getattr(base.train, key) for key in idle})}
    if no_meta:
        update["meta"] = base.meta
    return recipe.model_copy(update=update)


def sae_hash(recipe: Recipe, arm: str, seed: int) -> str:
    """Of everything that decides an SAE and its measures, apart from the machine."""
    values = _values(recipe)
    idle, no_meta = idle_keys(recipe, arm)
    values["train"] = {key: value for key, value in values["train"].items() if key not in idle}
    if "penalties" in values["train"]:
        values["train"]["penalties"] = _charged(recipe)
    if no_meta:
        del values["meta"]
    return _digest({"arm": trained_as(recipe, arm), "seed": seed, **values})


def cell_hash(recipe: Recipe) -> str:
    """Of a recipe without description, arms, seeds, places on disk and when its state is saved."""
    values = _values(recipe)
    for key in NO_MATTER:
        del values["train"][key]
    return _digest(values)


def members(setting: Setting, base: Recipe, shared_baseline: bool = False) -> list[Member]:
    """The SAEs of a cell, seed by seed, in the order of the arms. shared_baseline: all arms but joint are those of the sweep's own recipe."""
    own = setting.recipe(base)
    out = []
    for seed in base.seeds:
        for arm in base.arms:
            recipe = base if shared_baseline and arm != "joint" else own
            made = trained_as(recipe, arm)
            out.append(
                Member(arm, seed, made, canonical(recipe, arm, base), f"{made}-s{seed}-{sae_hash(recipe, arm, seed)}")
            )
    return out


def _charged(recipe: Recipe) -> dict[str, float]:
    return {name: coef for name, coef in sorted(recipe.train.penalties.items()) if coef > 0}


def _values(recipe: Recipe) -> dict:
    values = recipe.model_dump(mode="json", include={*DATA, "sae", "meta", "train"})
    # which further points are harvested in passing changes nothing here
    values["hook"].pop("also")
    values["dtype"] = recipe.harvest.dtype
    if recipe.split_tokens["train"] < recipe.train.tokens:
        values["cached"] = recipe.split_tokens["train"]
    return values


def _digest(values: dict) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()
