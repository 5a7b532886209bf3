"""What a processor or GPU can do, whether a device is available, and settings for work on it. Imports torch only when
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
    """Raises UserError for a name that is not a device, and for a device that is not available. Imports torch only if
    there may be a GPU.
    """
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
    """Raises UserError if Apple's GPU cannot be used here. Operations that it lacks then run on the processor."""
    why = None
    if sys.platform != "darwin":
        why = f"Apple's GPUs are in Macs, and this machine runs {sys.platform}"
    elif int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        why = "a Mac has one GPU, and several processes work together here"
    else:
        # torch reads this variable when it is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        import torch

        if not torch.backends.mps.is_built():
            why = "this PyTorch was built without MPS; install the one for macOS on Apple silicon"
        elif not torch.backends.mps.is_available():
            why = "MPS needs macOS 14 or later and one of Apple's GPUs"
    if why:
        raise UserError(f"--device mps: {why}; use --device cpu")


def widest(device: "torch.device") -> "torch.dtype":
    """The widest floating-point type of a device: float64, on Apple's GPUs float32."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether the device has instructions for products of bf16 matrices. Older GPUs only emulate them. False for
    Apple's GPUs, as not all of them do.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = [getattr(torch.cpu, check, None) for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def work_on(device: "torch.device") -> None:
    """Makes a GPU the current one, and lets it sum bf16 products in fp32. Triton launches kernels on the current GPU,
    wherever their tensors are.

    Does nothing for a processor.
    """
    if device.type == "cuda":
        import torch

        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def keep_freed_memory() -> bool:
    """Asks glibc to take large blocks from the heap and never to return the heap to the system; returns whether glibc
    accepted.

    By default glibc maps and unmaps every block beyond 32 MB each time, so each of its pages is faulted in and zeroed
    again. This took 10% of a step at d = 384, n = 3072 and 40% at d = 1280, n = 20480. The price: the process keeps its
    peak memory. Does nothing if the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # each call returns 1 if it succeeded
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20)])


def _torch_with_gpus():
    """The torch module if it may have a GPU. None if it was built for processors alone or there is no driver; torch is
    then not imported, which would take seconds.
    """
    place = importlib.util.find_spec("torch")
    if "torch" not in sys.modules and place is not None and place.origin is not None:
        version = runpy.run_path(str(Path(place.origin).with_name("version.py")))
        if version.get("hip") is None and (version.get("cuda") is None or not _has_driver()):
            return None
    import torch

    return torch


def _has_driver() -> bool:
    """Whether NVIDIA's driver, which CUDA needs, can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
