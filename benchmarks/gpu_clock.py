"""Times on a CUDA device, by its own events; on a CPU, where there is none, by the clock."""

import statistics
import time

import torch


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
