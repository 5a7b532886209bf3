"""Architectures that a user defines in Python: `@metasae.architecture("mine")` over a class.

    @metasae.architecture("fixed")
    class Fixed(metasae.Architecture):
        own_threshold = True

        def fires(self, pre, k):
            return pre > self.options.threshold

        def inference_threshold(self, weights):
            return torch.full((len(weights.W_dec_ND),), self.options.threshold)

A recipe can then name it, `sae.architecture = "fixed"`. The name is registered in this process alone: another process
can read such a run's folder, but cannot train by its recipe.
"""

from collections.abc import Callable

from metasae.errors import UserError
from metasae.recipe.registry import ARCHITECTURES
from metasae.sae.architectures.base import Architecture


def architecture(name: str) -> Callable[[type], type]:
    """Registers the class below it as an architecture of that name, for `sae.architecture` and `meta.architecture`.

    The class is a subclass of `metasae.Architecture` with `fires(pre [B, n], k) -> bool [B, n]`, or with `select`, the
    longer form. `own_threshold = True` goes with `inference_threshold`; without it the threshold of inference is
    calibrated after training, so that k latents fire per token. A second definition of the name takes the place of the
    first.

    Raises UserError for the name of an architecture that ships, and for a class that cannot be one.
    """

    def register(kind: type) -> type:
        if isinstance(ARCHITECTURES.get(name), str):
            raise UserError(f"'{name}' is an architecture that ships with metasae; choose another name")
        if not (isinstance(kind, type) and issubclass(kind, Architecture)):
            raise UserError(f"the architecture '{name}' must be a subclass of metasae.Architecture")
        if kind.select is Architecture.select and kind.fires is Architecture.fires:
            raise UserError(f"the architecture '{name}' must say which latents fire: define fires(self, pre, k)")
        if kind.own_threshold and kind.inference_threshold is Architecture.inference_threshold:
            raise UserError(f"the architecture '{name}' has own_threshold, so it must define inference_threshold")
        ARCHITECTURES[name] = kind
        return kind

    return register
