"""Progress on stderr: one bar per task with rate, ETA and live numbers; silent where nobody watches."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Task:
    """One running task. `advance(amount, loss=...)` moves the bar and shows the numbers given."""

    def __init__(self, bars: Bars | None, task_id: TaskID | None):
        self._bars, self._id = bars, task_id
        self._start, self._done = time.perf_counter(), 0

    def skip(self, amount: int) -> None:
        """Moves the bar over what an earlier run did; the rate counts only what this one does."""
        if self._bars is not None:
            self._bars.update(self._id, advance=amount)

    def advance(self, amount: int, **live: float) -> None:
        self._done += amount
        if self._bars is None:
            return
        rate = self._done / max(time.perf_counter() - self._start, 1e-9)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in live.items())
        fields = {"live": shown} if live else {}
        self._bars.update(self._id, advance=amount, rate=_short(rate), **fields)


class Progress:
    """Bars on stderr when it is a terminal, otherwise one line when a task ends; nothing at all when not enabled."""

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """One line of news."""
        if self.enabled:
            self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator[Task]:
        """A bar for `total` units (None: unknown)."""
        if not self.enabled:
            yield Task(None, None)
            return
        if not sys.stderr.isatty():
            task = Task(None, None)
            yield task
            seconds = time.perf_counter() - task._start
            self.say(f"{name}: {task._done:,} {unit} in {seconds:.1f} s ({_short(task._done / max(seconds, 1e-9))} {unit}/s)")
            return
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]} " + unit + "/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[live]}"),
        )
        with Bars(*columns, console=self._console) as bars:
            yield Task(bars, bars.add_task(name, total=total, rate="-", live=""))


SILENT = Progress(enabled=False)


def _short(number: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.1f}"
