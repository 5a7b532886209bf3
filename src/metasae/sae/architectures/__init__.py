"""Architectures: which entries of pre [B, n] fire, and what sparsity costs. One file each; `ARCHITECTURES` is the registry.

To add one: a class with the members of `Architecture` in a file of its own, and a line in the registry.
"""

from metasae.sae.architectures.base import Architecture, Options
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.architectures.jumprelu import JumpReLU
from metasae.sae.architectures.matryoshka import Matryoshka
from metasae.sae.architectures.relu import ReLU
from metasae.sae.architectures.topk import TopK

ARCHITECTURES: dict[str, type[Architecture]] = {
    "batchtopk": BatchTopK,
    "topk": TopK,
    "jumprelu": JumpReLU,
    "relu": ReLU,
    "matryoshka": Matryoshka,
}


def architecture(name: str, options: Options) -> Architecture:
    """The architecture of that name. Raises KeyError for a name that is not registered."""
    return ARCHITECTURES[name](options)
