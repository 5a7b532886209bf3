"""Progress on stderr: a bar for each task; for a run a bar for all stages above one for the current stage; plain lines
if stderr is not a terminal.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metasae.progress.stages import Stage, Task, Timetable, in_words

Item = TypeVar("Item")
_BAR = 20


@dataclass
class Bars:
    """The bars, drawn again at every refresh of the terminal.

    timetable: of a run, None outside a run. tasks: the running tasks, the innermost last.
    """

    timetable: Timetable | None = None
    tasks: list[Task] = field(default_factory=list)

    def __rich__(self) -> Table:
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_column(width=_BAR)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        # read once, as the stage may end during drawing
        table, tasks = self.timetable, list(self.tasks)
        stage = table and table.current
        if table is None:
            for task in tasks:
                rows.add_row(_bar(task.share), Text(_joined(_facts(task, task.left))))
        elif stage is not None:
            whole = tasks[0] if stage.whole and tasks else None
            share, left = table.share(whole), table.stage_left(whole)
            rows.add_row(_bar((table.number - 1 + (share or 0.0)) / len(table.stages)), Text(_run(table, whole)))
            facts = _facts(tasks[-1], left) if tasks else [f"{table.elapsed:.0f} s so far", _left(left)]
            rows.add_row(_bar(share), Text(_joined(facts)))
        return rows


def _run(table: Timetable, whole: Task | None) -> str:
    """The number of the current stage, and the time until the run ends."""
    left = table.run_left(whole)
    if left is None:
        return table.place
    seconds, is_all = left
    return f"{table.place} · {'about' if is_all else 'at least'} {in_words(seconds)} left"


def _facts(task: Task, left: float | None) -> list[str]:
    """A task's share, rate and latest numbers, and the time until it or its stage ends."""
    name = f"{task.name}, {100 * task.share:.0f}%" if task.share else task.name
    numbers = "  ".join(f"{number} {value:.4g}" for number, value in task.live.items())
    return [name, task.rate if task.done else "", _left(left), numbers]


def _left(seconds: float | None) -> str:
    return f"{in_words(seconds)} left" if seconds else ""


def _joined(facts: list[str]) -> str:
    return " · ".join(filter(None, facts))


def _bar(share: float | None) -> ProgressBar:
    """A bar of a share from 0 to 1, or a pulse if the share is not known."""
    return ProgressBar(total=1.0, completed=share or 0.0, width=_BAR, pulse=share is None)


class Progress:
    """Shows progress on stderr: bars on a terminal, otherwise a line when a task ends. Shows nothing if not enabled.

    Inside `run`, a stage prints a line when it begins and when it ends, and its tasks move the stage's bar.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bars = Bars()
        self._drawing = False

    def say(self, line: str) -> None:
        """Prints one line, if enabled."""
        if self.enabled:
            self.answer(line)

    def answer(self, line: str) -> None:
        """Prints one line in answer to a key press, also if not enabled."""
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
        """Draws the bars during the block if stderr is a terminal; yields whether it does."""
        # asked before drawing: during it, rich replaces stderr, and releases before 14.1 then report that it is not a
        # terminal
        self._drawing = self.enabled and sys.stderr.isatty()
        live = Live(self._bars, console=self._console, transient=transient, refresh_per_second=8)
        try:
            with live if self._drawing else nullcontext():
                yield self._drawing
        finally:
            self._drawing = False

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """One stage of the run; a line about it remains. Outside a run nothing is shown."""
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
        """A task of `total` units of work (None: unknown). Inside a stage it moves the stage's bar, otherwise it has a
        bar of its own.
        """
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
    """Yields the items as a task, which advances by `size(item)` when the next item is requested.

    Use it only as the iterable of a `for` loop: an error in the loop then ends the task at once.
    """
    with progress.task(name, total, unit) as task:
        for item in items:
            yield item
            task.advance(size(item))


class SharedTask:
    """A task that several threads advance together. Each thread uses it like a `Progress` with this one task."""

    def __init__(self, task: Task):
        self._task, self._lock = task, threading.Lock()

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator["SharedTask"]:
        yield self

    def skip(self, amount: int) -> None:
        with self._lock:
            self._task.skip(amount)

    def advance(self, amount: int, **live: float) -> None:
        """Advances the task. The numbers of single threads do not describe the whole and are left out."""
        with self._lock:
            self._task.advance(amount)
