"""Progress on stderr: a bar per task; of a run two bars, its own over its stage's; plain lines where nobody watches."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.live import Live

from metasae.progress.bars import Bars
from metasae.progress.stages import Stage, Task, Timetable

Item = TypeVar("Item")


class Progress:
    """On stderr when it is a terminal, bars; otherwise a line when a task ends; nothing at all when not enabled.

    Inside `run`, a stage has a line when it begins and one when it ends, and its tasks are steps on the stage's bar.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars()
        self._drawing = False

    def say(self, line: str) -> None:
        """One line of news."""
        if self.enabled:
            self.answer(line)

    def answer(self, line: str) -> None:
        """One line to whoever pressed a key: shown also where all else is silent."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def run(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Shows the stages of a run, which `stage` begins and ends one after the other."""
        self._bars.timetable = Timetable(stages)
        try:
            with self._drawn(transient=True):
                yield
        finally:
            self._bars.timetable = None

    @contextmanager
    def _drawn(self, transient: bool) -> Iterator[bool]:
        """Draws the bars while inside, where a terminal shows them; gives whether it does."""
        # asked before anything is drawn: while it is, rich stands in for stderr, and before 14.1 calls itself no
        # terminal
        self._drawing = self.enabled and sys.stderr.isatty()
        try:
            if self._drawing:
                with Live(self._bars, console=self._console, transient=transient, refresh_per_second=8):
                    yield True
            else:
                yield False
        finally:
            self._drawing = False

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """One stage of the run, of which a line is left; outside a run nothing is shown of it."""
        timetable = self._bars.timetable
        if timetable is None:
            yield
            return
        timetable.begin(stage)
        name = timetable.place
        if not self._drawing:
            self.say(name)
        yield
        self._bars.tasks.clear()
        self.say(f"{name}: done in {timetable.end():.1f} s")

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator[Task]:
        """`total` units of work (None: unknown): a step of the stage that is on, outside any a bar of its own."""
        task, timetable = Task(name, total, unit), self._bars.timetable
        if not self.enabled:
            yield task
            return
        self._bars.tasks.append(task)
        try:
            if self._drawing or (timetable and timetable.current):
                yield task
                return
            with self._drawn(transient=False) as drawn:
                yield task
            if not drawn:
                self.say(f"{name}: {task.done:,} {unit} in {task.seconds:.1f} s ({task.rate})")
        finally:
            if task in self._bars.tasks:
                self._bars.tasks.remove(task)


SILENT = Progress(enabled=False)


def tracked(
    progress: Progress,
    items: Iterable[Item],
    name: str,
    total: int,
    unit: str = "tokens",
    size: Callable[[Item], int] = len,
) -> Iterator[Item]:
    """The items one after the other, as a task that moves on by `size(item)` when the next one is asked for.

    Only for the head of a `for` loop: an error in the loop then ends the task at once.
    """
    with progress.task(name, total, unit) as task:
        for item in items:
            yield item
            task.advance(size(item))


class SharedTask:
    """A task that several lanes move forward together. To each of them it is a `Progress` that has this one task."""

    def __init__(self, task: Task):
        self._task, self._lock = task, threading.Lock()

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator["SharedTask"]:
        yield self

    def skip(self, amount: int) -> None:
        with self._lock:
            self._task.skip(amount)

    def advance(self, amount: int, **live: float) -> None:
        """The lanes' own numbers say nothing of the whole and are left out."""
        with self._lock:
            self._task.advance(amount)
