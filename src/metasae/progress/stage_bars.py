"""What a terminal shows of a run: the run's bar over the bar of its current stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metasae.progress.stages import Pace, Plan, Stage, in_words

_BAR = 20


class Step:
    """A task inside a stage. done: units since it began; skipped: units before that; live: the numbers given last."""

    def __init__(self, name: str, total: int | None, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.skipped, self.live = 0, 0, {}
        self._start = time.perf_counter()

    def advance(self, amount: int, live: dict[str, float]) -> None:
        self.done += amount
        self.live = live or self.live

    @property
    def pace(self) -> Pace | None:
        """None where the total is not known."""
        return Pace(self.done, self.skipped, self.total, time.perf_counter() - self._start) if self.total else None

    @property
    def name_and_share(self) -> str:
        pace = self.pace
        return f"{self.name}, {100 * pace.share:.0f}%" if pace is not None and pace.share else self.name

    @property
    def rate(self) -> str:
        return f"{short(self.done / max(time.perf_counter() - self._start, 1e-9))} {self.unit}/s" if self.done else ""


class StageBars:
    """Drawn anew as often as the terminal is. steps: the tasks that are under way, the innermost last."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str, total: int | None, unit: str) -> Iterator[Step]:
        step = Step(name, total, unit)
        self.steps.append(step)
        try:
            yield step
        finally:
            if step in self.steps:
                self.steps.remove(step)

    def __rich__(self) -> Table:
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_column(width=_BAR)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        # read once: the stage may end while it is drawn
        stage, steps = self.plan.current, list(self.steps)
        if stage is not None:
            pace = steps[0].pace if stage.whole and steps else None
            share = self.plan.share(pace)
            done = self.plan.number - 1 + (share or 0.0)
            rows.add_row(_bar(done / self.plan.total), Text(self._run_in_words(stage, pace)))
            rows.add_row(_bar(share), Text(self._stage_in_words(steps, pace)))
        return rows

    def _run_in_words(self, stage: Stage, pace: Pace | None) -> str:
        """The stage's place in the run, and the time until the run ends."""
        name = f"stage {self.plan.number} of {self.plan.total}: {stage.title}"
        left = self.plan.run_left(pace)
        if left is None:
            return name
        seconds, is_all = left
        return f"{name} · {'about' if is_all else 'at least'} {in_words(seconds)} left"

    def _stage_in_words(self, steps: list[Step], pace: Pace | None) -> str:
        """The step that is on, its rate and latest numbers, and the time until the stage ends."""
        seconds = self.plan.stage_left(pace)
        facts = [f"{in_words(seconds)} left" if seconds else ""]
        if steps:
            step = steps[-1]
            facts = [step.name_and_share, step.rate, *facts, numbers_in_words(step.live)]
        else:
            facts = [f"{self.plan.elapsed:.0f} s so far", *facts]
        return " · ".join(fact for fact in facts if fact)


def _bar(share: float | None) -> ProgressBar:
    """A pulse where the share is not known."""
    return ProgressBar(total=1.0, completed=share or 0.0, width=_BAR, pulse=share is None)


def numbers_in_words(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def short(number: float) -> str:
    """1234.5 as 1.2k."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.1f}"
