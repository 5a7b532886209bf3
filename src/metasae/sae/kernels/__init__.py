"""Exact BatchTopK and the sparse products of a training step.

`reference.py` is the specification, in plain dense torch; `fast.py` has the same functions with the same signatures.
"""

from types import ModuleType

from metasae.sae.kernels import fast, reference


def kernels(name: str) -> ModuleType:
    """The kernel module of that name: 'fast' or 'reference'."""
    return {"fast": fast, "reference": reference}[name]
