"""The names a recipe may use, and where each is implemented. Imports no torch, so that a wrong name is refused at once.

A new penalty or architecture takes one file and one line here. Recipe, training, doctor and training on several ranks
all look names up in this file.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metasae.errors import UserError, nearest

if TYPE_CHECKING:
    from pydantic import ValidationInfo

# name -> "module:class"; for a user's own architecture (`metasae.architecture`) the class itself
ARCHITECTURES: dict[str, Any] = {
    "batchtopk": "metasae.sae.architectures.batchtopk:BatchTopK",
    "topk": "metasae.sae.architectures.topk:TopK",
    "jumprelu": "metasae.sae.architectures.jumprelu:JumpReLU",
    "relu": "metasae.sae.architectures.relu:ReLU",
    "matryoshka": "metasae.sae.architectures.matryoshka:Matryoshka",
}
# name -> "module:function"; for a user's own penalty (`metasae.penalty`) the function itself
PENALTIES: dict[str, Any] = {
    "ortsae": "metasae.train.penalties.ortsae:largest_cosines",
    "c2r": "metasae.train.penalties.c2r:nearest_cosines_by_firing",
    "firing_cosine": "metasae.train.penalties.firing_cosine:firing_weighted_cosine",
    "cofiring": "metasae.train.penalties.cofiring:cofiring_weighted_cosine",
}
# Penalties whose name meant another penalty before: name -> (the largest coefficient that an old recipe may have, the
# note that is shown).
RENAMED = {
    "c2r": (
        1.0,
        "c2r is the published C2R (arXiv 2606.30609; coefficient 5). Before 0.1.0 this name meant a far weaker "
        "penalty, which is now called firing_cosine",
    )
}


@dataclass(frozen=True)
class ArmRules:
    """How an arm is trained. meta: it trains a meta SAE. after: the meta SAE is trained after the primary, not beside
    it. penalty: the primary pays for decoder rows that the meta SAE can rebuild. atomic: it is trained with
    `train.nest` and `train.margin`.
    """

    meta: bool = False
    penalty: bool = False
    after: bool = False
    atomic: bool = False

    @property
    def keeps_primary(self) -> bool:
        """Whether its primary SAE has exactly the baseline's weights, as its meta SAE does not act on the primary."""
        return self.meta and not self.penalty


# Arms are listed in this order.
ARMS = {
    "solo": ArmRules(),
    "control": ArmRules(meta=True),
    "joint": ArmRules(meta=True, penalty=True),
    "sequential": ArmRules(meta=True, after=True),
    "atomic": ArmRules(atomic=True),
    "atomic-joint": ArmRules(meta=True, penalty=True, atomic=True),
}
# The arm that the others are compared with, if a run has it; and the arm that the comparison is about.
BASELINE, SUBJECT = "solo", "joint"
# What the SAE of `train.init` is measured as, beside the arms that start from it; its folder is init-s0.
INIT = "init"


@dataclass(frozen=True)
class Known:
    """A validator for recipes: a name must be in `table` when the recipe is read.

    what: the kind of thing that is named, for the error message. own: whether users may add names; a stored recipe may
    then hold names that are not in the table (`is_stored`).
    """

    what: str
    table: dict[str, Any]
    own: bool = False

    def __call__(self, name: str, info: "ValidationInfo") -> str:
        if name not in self.table and not (self.own and is_stored(info)):
            raise ValueError(f"no {self.what} '{name}'{nearest(name, self.table)}")
        return name


def is_stored(info: "ValidationInfo") -> bool:
    """Whether the recipe was written by a run (`Recipe.stored`), so that it may name what a user defined in that
    process.
    """
    return bool(info.context and info.context.get("stored"))


def named(table: dict[str, Any], name: str) -> Any:
    """The class or function behind a name of ARCHITECTURES or PENALTIES.

    Raises UserError for an unknown name, which a stored recipe may have.
    """
    if name not in table:
        raise UserError(
            f"'{name}' was defined in Python and this process does not know it; import the module that defines it"
        )
    if not isinstance(table[name], str):
        return table[name]
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def place_of(arm: str) -> tuple[int, str]:
    """The sort key of an arm: arms of the table first, in its order, then others by name."""
    names = list(ARMS)
    return (names.index(arm) if arm in ARMS else len(names), arm)
