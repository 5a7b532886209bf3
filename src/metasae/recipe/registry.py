"""The names a recipe may use, and where each is made. Imports no torch, so that a wrong name is answered at once.

A new penalty or architecture is one file and one line here. Everything else asks this page: the recipe which names
there are, training what is behind a name, doctor and several ranks what the class or function says of itself.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metasae.errors import UserError, nearest

if TYPE_CHECKING:
    from pydantic import ValidationInfo

# name -> the module and the class in it; of a user's own (`metasae.architecture`) the class
ARCHITECTURES: dict[str, Any] = {
    "batchtopk": "metasae.sae.architectures.batchtopk:BatchTopK",
    "topk": "metasae.sae.architectures.topk:TopK",
    "jumprelu": "metasae.sae.architectures.jumprelu:JumpReLU",
    "relu": "metasae.sae.architectures.relu:ReLU",
    "matryoshka": "metasae.sae.architectures.matryoshka:Matryoshka",
}
# name -> the module and the function in it; of a user's own (`metasae.penalty`) the function
PENALTIES: dict[str, Any] = {
    "ortsae": "metasae.train.penalties.ortsae:largest_cosines",
    "c2r": "metasae.train.penalties.c2r:nearest_cosines_by_firing",
    "firing_cosine": "metasae.train.penalties.firing_cosine:firing_weighted_cosine",
    "cofiring": "metasae.train.penalties.cofiring:cofiring_weighted_cosine",
}
# A penalty whose name stood for another one before: name -> (up to which coefficient a recipe may be of that time, what
# it is told).
RENAMED = {
    "c2r": (
        1.0,
        "c2r is the published C2R (arXiv 2606.30609; coefficient 5). Before 0.1.0 the name stood for a far weaker "
        "penalty, which is now firing_cosine",
    )
}


@dataclass(frozen=True)
class ArmRules:
    """What an arm is. meta: it trains a meta SAE, after the primary where `after`; penalty: the primary is charged for
    its rows; atomic: it is trained with `train.nest` and `train.births`.
    """

    meta: bool = False
    penalty: bool = False
    after: bool = False
    atomic: bool = False

    @property
    def keeps_primary(self) -> bool:
        """Whether its primary SAE has the baseline's weights to the bit, as its meta SAE does not act on it."""
        return self.meta and not self.penalty


# In the order in which arms are listed.
ARMS = {
    "solo": ArmRules(),
    "control": ArmRules(meta=True),
    "joint": ArmRules(meta=True, penalty=True),
    "sequential": ArmRules(meta=True, after=True),
    "atomic": ArmRules(atomic=True),
    "atomic-joint": ArmRules(meta=True, penalty=True, atomic=True),
}
# The arm that others are compared with, where a run has it, and the one that the comparison is about.
BASELINE, SUBJECT = "solo", "joint"
# What the SAE of `train.init` is measured as, beside the arms that start from it; its folder is init-s0.
INIT = "init"


@dataclass(frozen=True)
class Known:
    """A validator for recipes: the name must be one of `table` when the recipe is read.

    what: what the names are of, for the message. own: whether users may add names, so that a stored recipe may have
    others (`is_stored`).
    """

    what: str
    table: dict[str, Any]
    own: bool = False

    def __call__(self, name: str, info: "ValidationInfo") -> str:
        if name not in self.table and not (self.own and is_stored(info)):
            raise ValueError(f"no {self.what} '{name}'{nearest(name, self.table)}")
        return name


def is_stored(info: "ValidationInfo") -> bool:
    """Whether the recipe is one that a run left (`Recipe.stored`); it may name what a user defined in that process."""
    return bool(info.context and info.context.get("stored"))


def named(table: dict[str, Any], name: str) -> Any:
    """The class or function behind a name of ARCHITECTURES or PENALTIES.

    Raises UserError for a name that is not there, which a stored recipe may have.
    """
    if name not in table:
        raise UserError(
            f"'{name}' was defined in Python and is not known to this process; import the module that defines it"
        )
    if not isinstance(table[name], str):
        return table[name]
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def place_of(arm: str) -> tuple[int, str]:
    """What arms are sorted by: those of the table first, then others by name."""
    names = list(ARMS)
    return (names.index(arm) if arm in ARMS else len(names), arm)
