"""Times on a CUDA device, by its own events; on a CPU, where there is none, by the clock. Memory, and what the device
can do."""

import statistics
import time

import torch

from metasae.doctor.cards import Card


def seconds_of(call) -> float:
    """One call, from its first kernel to its last."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def milliseconds(call, repeats: int = 15, warm: int = 3) -> float:
    """Median over single calls. On a GPU each finds the cache as the one before left it, as in training."""
    if not torch.cuda.is_available():
        repeats, warm = 1, 1
    for _ in range(warm):
        call()
    return 1e3 * statistics.median(seconds_of(call) for _ in range(repeats))


def measured_card(device: torch.device, size: int = 8192) -> Card:
    """The device by what it does now: products of square matrices, and a copy, whose bytes are read and written. There
    is no link."""
    flops = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        flops[name] = 2 * size**3 / milliseconds(lambda a=a, b=b: a @ b) * 1e3
    source = torch.empty(size * size * 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Card("measured", flops["bf16"], flops["fp32"], flops["fp32"], moved, memory, link=0)


def allocated(device: torch.device) -> int:
    """Bytes held on the device now; the peak counts from here. 0 on a CPU, which does not count."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
