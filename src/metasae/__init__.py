"""metasae: train, measure and compare sparse autoencoders whose latents are meant to be atomic.

A public name imports its module when it is first used, so `import metasae` is quick.
"""

import importlib
import sys
from types import ModuleType

__version__ = "0.1.0"

_HOME = {
    "Recipe": "metasae.recipe.recipe",
    "SAE": "metasae.sae.sae",
    "load": "metasae.interop.formats",
    "Codes": "metasae.sae.sae",
    "run": "metasae.jobs.run",
    "train": "metasae.jobs.given",
    "evaluate": "metasae.jobs.evaluate",
    "latents": "metasae.jobs.latents",
    "penalty": "metasae.train.penalties.own",
    "architecture": "metasae.sae.architectures.own",
    "Architecture": "metasae.sae.architectures.base",
    "Run": "metasae.jobs.results",
    "measure": "metasae.jobs.measure",
    "steer": "metasae.steering.steering",
    "compare": "metasae.compare.compare",
    "Spikes": "metasae.measures.truth.spikes",
    "UserError": "metasae.errors",
}
__all__ = sorted(_HOME)


class _Package(ModuleType):
    """The package as a module in which a public function keeps its name although a room has the same one:
    `metasae.compare` is the function.

    Importing a room sets it as an attribute of the package, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'metasae' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
