"""Architectures: which entries of pre [B, n] fire, and the sparsity loss. Each has a file; `metasae.recipe.registry`
has their names.
"""

from metasae.recipe.registry import ARCHITECTURES, named
from metasae.sae.architectures.base import Architecture, Options
from metasae.sae.spread import WHOLE, Whole


def architecture(name: str, options: Options, spread: Whole = WHOLE) -> Architecture:
    """The architecture of that name. Raises UserError for a name that is not registered."""
    return named(ARCHITECTURES, name)(options, spread)
