"""Times and memory of a trial: progress that nobody sees and that remembers, the clock of a device, what it has in use."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from metasae.doctor.machine import resident
from metasae.progress.progress import Progress


@dataclass(frozen=True)
class Timed:
    """A task that ended. ticks: (time, amount) of each advance."""

    name: str
    unit: str
    seconds: float
    ticks: tuple[tuple[float, int], ...]


class Clock(Progress):
    """`tasks`: those that ended, without the ones inside others."""

    def __init__(self):
        super().__init__(enabled=False)
        self.tasks: list[Timed] = []
        self._depth = 0

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator["Ticks"]:
        start, ticks = time.perf_counter(), Ticks()
        self._depth += 1
        try:
            yield ticks
        finally:
            self._depth -= 1
        if not self._depth:
            self.tasks.append(Timed(name, unit, time.perf_counter() - start, tuple(ticks.given)))


class Ticks:
    """Stands in for a `metasae.progress.progress.Task`."""

    def __init__(self):
        self.given: list[tuple[float, int]] = []

    def skip(self, amount: int) -> None:
        pass

    def advance(self, amount: int, **live: float) -> None:
        self.given.append((time.perf_counter(), amount))


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
    """Bytes by which the device's peak has grown since. On a CPU by what the process holds, as it keeps its peak (`metasae.memory`)."""
    return max((torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()) - before, 0)
