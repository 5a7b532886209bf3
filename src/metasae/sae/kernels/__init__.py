"""Exact BatchTopK and the sparse products of a training step.

`reference.py` is the specification, in plain dense torch. `fast.py` has the same functions with the same signatures,
and so has `triton`, for CUDA devices, which is imported only when it is used.
"""

import importlib
from types import ModuleType

import torch

from metasae.errors import UserError
from metasae.sae.kernels import fast, presence, reference

NAMES = ("auto", "fast", "triton", "reference")


def kernels(name: str, device: torch.device | None = None) -> ModuleType:
    """The kernel module of that name. 'auto': 'triton' where `device` is a CUDA device and Triton is installed, else
    'fast'.

    Raises UserError for 'triton' where it cannot run.
    """
    if name == "auto":
        name = (
            "triton" if device is not None and device.type == "cuda" and presence.why_not_triton() is None else "fast"
        )
    if name == "triton":
        if why := presence.why_not_triton():
            raise UserError(why)
        return importlib.import_module("metasae.sae.kernels.triton")
    return {"fast": fast, "reference": reference}[name]
