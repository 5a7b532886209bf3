"""Whether the Triton kernels can run here."""

import importlib.util
import os

import torch

from metasae.errors import install_hint

# Triton's own switch, looked at when triton is first imported: kernels then run in numpy, one program after the other.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton() -> str | None:
    """Why they cannot run and what to do about it, in one line; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return (
            f"train.kernels = 'triton' needs the package triton: {install_hint('gpu-kernels')}, or take kernels "
            "= 'fast'"
        )
    if not INTERPRETED and not torch.cuda.is_available():
        return "train.kernels = 'triton' needs a CUDA device and there is none; take kernels = 'fast'"
    return None
