"""Times and memory of a trial: a progress that notes times, and a device's clock and memory in use."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from metasae.doctor.machine import resident
from metasae.progress.progress import Progress


@dataclass
class Timed:
    """A task, in the place of a `metasae.progress.progress.Task`. seconds: its length once it has ended.

    ticks: (time, amount) of each advance.
    """

    unit: str
    seconds: float = 0.0
    ticks: list[tuple[float, int]] = field(default_factory=list)

    def skip(self, amount: int) -> None:
        pass

    def advance(self, amount: int, **live: float) -> None:
        self.ticks.append((time.perf_counter(), amount))


class Clock(Progress):
    """`tasks`: those that ended, without the ones inside others."""

    def __init__(self):
        super().__init__(enabled=False)
        self.tasks: list[Timed] = []
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator[Timed]:
        start, timed = time.perf_counter(), Timed(unit)
        self._depth += 1
        try:
            yield timed
        finally:
            self._depth -= 1
        timed.seconds = time.perf_counter() - start
        if not self._depth:
            self.tasks.append(timed)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_use(device: torch.device) -> int:
    """Bytes in use on the device, to be given to `grown` later."""
    if device.type != "cuda":
        return resident()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def grown(device: torch.device, before: int) -> int:
    """Bytes by which the device's peak has grown since. On a CPU those by which the process has, as it keeps what it
    freed (`metasae.device.keep_freed_memory`).
    """
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()
    return max(peak - before, 0)
