"""Progress on stderr: a bar per task; of a run two bars, its own over its stage's; plain lines where nobody watches."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from metasae.progress.stage_bars import StageBars, Step, numbers_in_words, short
from metasae.progress.stages import Plan, Stage


class Task:
    """One running task. `advance(amount, loss=...)` moves the bar and shows the numbers given."""

    def __init__(self, bars: Bars | None, task_id: TaskID | None, step: Step | None = None):
        self._bars, self._id, self._step = bars, task_id, step
        self._start, self._done = time.perf_counter(), 0

    def skip(self, amount: int) -> None:
        """Moves the bar over what an earlier run did; the rate counts only what this one does."""
        if self._step is not None:
            self._step.skipped += amount
        if self._bars is not None:
            self._bars.update(self._id, advance=amount)

    def advance(self, amount: int, **live: float) -> None:
        self._done += amount
        if self._step is not None:
            self._step.advance(amount, live)
        if self._bars is None:
            return
        rate = self._done / max(time.perf_counter() - self._start, 1e-9)
        fields = {"live": numbers_in_words(live)} if live else {}
        self._bars.update(self._id, advance=amount, rate=short(rate), **fields)


class Progress:
    """On stderr when it is a terminal, bars; otherwise a line when a task ends; nothing at all when not enabled.

    Inside `run`, a stage has a line when it begins and one when it ends, and its tasks are steps on the stage's bar.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._plan: Plan | None = None
        self._shown: StageBars | None = None
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
        self._plan = Plan(stages)
        self._shown = StageBars(self._plan)
        # asked before anything is drawn: while it is, rich stands in for stderr, and before 14.1 calls itself no terminal
        self._drawing = self.enabled and sys.stderr.isatty()
        try:
            if self._drawing:
                with Live(self._shown, console=self._console, transient=True, refresh_per_second=8):
                    yield
            else:
                yield
        finally:
            self._plan = self._shown = None

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """One stage of the run, of which a line is left; outside a run nothing is shown of it."""
        if self._plan is None:
            yield
            return
        self._plan.begin(stage)
        name = f"stage {self._plan.number} of {self._plan.total}: {stage.title}"
        if not self._drawing:
            self.say(name)
        yield
        self._shown.steps.clear()
        self.say(f"{name}: done in {self._plan.end():.1f} s")

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "tokens") -> Iterator[Task]:
        """`total` units of work (None: unknown): a step of the stage that is on, outside any a bar of its own."""
        if not self.enabled:
            yield Task(None, None)
        elif self._plan is not None and self._plan.current is not None:
            with self._shown.step(name, total, unit) as step:
                yield Task(None, None, step)
        elif self._bars is not None:
            # inside another task, under whose bar it stands
            yield Task(self._bars, _bar(self._bars, name, total, unit))
        elif not sys.stderr.isatty():
            task = Task(None, None)
            yield task
            seconds = time.perf_counter() - task._start
            rate = short(task._done / max(seconds, 1e-9))
            self.say(f"{name}: {task._done:,} {unit} in {seconds:.1f} s ({rate} {unit}/s)")
        else:
            with _bars(self._console) as self._bars:
                try:
                    yield Task(self._bars, _bar(self._bars, name, total, unit))
                finally:
                    self._bars = None


SILENT = Progress(enabled=False)


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


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[live]}"),
        console=console,
    )


def _bar(bars: Bars, name: str, total: int | None, unit: str) -> TaskID:
    return bars.add_task(name, total=total, unit=unit, rate="-", live="")
