"""What a processor or GPU can do, whether a device is here, and how this process works on it. Loads torch when it is
needed.
"""

import ctypes
import importlib.util
import os
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metasae.errors import UserError

if TYPE_CHECKING:
    import torch

# glibc's mallopt parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def check_device(device: str) -> None:
    """Raises UserError for a device that is none, or is not here. Asks torch only where it may have a GPU."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise UserError(f"--device '{device}' is not one of cpu, cuda, cuda:N, mps")
    if device == "cpu":
        return
    if device == "mps":
        _check_apple()
        return
    torch = _torch_with_gpus()
    if torch is None or not torch.cuda.is_available():
        raise UserError(f"--device {device}: no CUDA device is available here; use --device cpu")
    number, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device {device}: there are only {count} CUDA devices here, counted from 0")


def _check_apple() -> None:
    """Raises UserError where Apple's GPU cannot be used here. What it has no instructions for, torch then works out on
    the processor.
    """
    why = None
    if sys.platform != "darwin":
        why = f"Apple's GPUs are in Macs, and this machine runs {sys.platform}"
    elif int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        why = "there is one GPU of Apple's, and several processes work together here"
    else:
        # torch reads it when it is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        import torch

        if not torch.backends.mps.is_built():
            why = "this PyTorch was built without MPS; install the one for macOS on Apple silicon"
        elif not torch.backends.mps.is_available():
            why = "MPS needs macOS 14 or later and one of Apple's GPUs"
    if why:
        raise UserError(f"--device mps: {why}; use --device cpu")


def widest(device: "torch.device") -> "torch.dtype":
    """float64; float32 on Apple's GPUs, which have no wider numbers."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether the device multiplies bf16 matrices itself. Older GPUs hold bf16 numbers and only emulate their
    products; Apple's are not asked, as not all have them.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = [getattr(torch.cpu, check, None) for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def work_on(device: "torch.device") -> None:
    """Makes a GPU the current one, on which Triton launches whatever its tensors' GPU is; and sums of bf16 products are
    in fp32 there.

    Nothing for a processor.
    """
    if device.type == "cuda":
        import torch

        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def keep_freed_memory() -> bool:
    """Asks glibc to serve large blocks from the heap and never to give the heap back; says whether it did.

    By default every block beyond 32 MB is mapped and unmapped each time, and each of its pages is faulted in and zeroed
    again: measured, 10% of a step at d = 384, n = 3072 and 40% at d = 1280, n = 20480. The process keeps its peak
    memory. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # each call returns 1 when it was heard
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20)])


def _torch_with_gpus():
    """torch, where it may have a GPU. None, without the seconds that importing it takes, where it was built for
    processors or has no driver.
    """
    place = importlib.util.find_spec("torch")
    if "torch" not in sys.modules and place is not None and place.origin is not None:
        version = runpy.run_path(str(Path(place.origin).with_name("version.py")))
        if version.get("hip") is None and (version.get("cuda") is None or not _has_driver()):
            return None
    import torch

    return torch


def _has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded, which CUDA needs."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
