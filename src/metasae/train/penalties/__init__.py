"""Penalties on the primary's decoder rows, each with its equation, source and closed-form gradient. `PENALTIES` is the registry.

A penalty is a function of a `Scene` that returns (value, gradient [n, d] of the value). The trainer multiplies both by the
penalty's coefficient. To add one: a file with such a function and a line in the registry; docs/extending.md walks through it.
"""

from metasae.train.penalties.c2r import firing_weighted_cosine
from metasae.train.penalties.cofiring import cofiring_weighted_cosine
from metasae.train.penalties.ortsae import largest_cosines
from metasae.train.penalties.scene import Penalty, Scene, charge

__all__ = ["PENALTIES", "Scene", "charge"]

PENALTIES: dict[str, Penalty] = {
    "ortsae": largest_cosines,
    "c2r": firing_weighted_cosine,
    "cofiring": cofiring_weighted_cosine,
}
