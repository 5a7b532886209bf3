"""The stages of a run and their tasks: which one is on, and how long the rest takes if it goes as the stages before."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A rate is believed once so much of a stage and so many seconds are behind it.
_SHARE, _SECONDS = 0.05, 2.0
Clock = Callable[[], float]


class Task:
    """One running task: `total` units of work, None where that is not known.

    done: units since it began; skipped: units that an earlier run did, which are no part of the rate; live: the numbers
    given last.
    """

    def __init__(self, name: str | None, total: int | None, unit: str = "tokens", clock: Clock = time.perf_counter):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.skipped, self.live = 0, 0, {}
        self._clock, self._start = clock, clock()

    def skip(self, amount: int) -> None:
        self.skipped += amount

    def advance(self, amount: int, **live: float) -> None:
        """`advance(amount, loss=...)` moves the bar and shows the numbers given."""
        self.done += amount
        self.live = live or self.live

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where the total is not known."""
        return min((self.done + self.skipped) / self.total, 1.0) if self.total else None

    @property
    def length(self) -> float | None:
        """Seconds that all units take; None where too little is done to say."""
        believed = self.total and self.done > _SHARE * self.total and self.seconds > _SECONDS
        return self.seconds * self.total / self.done if believed else None

    @property
    def left(self) -> float | None:
        return None if self.length is None else (1 - self.share) * self.length

    @property
    def rate(self) -> str:
        return f"{short(self.done / max(self.seconds, 1e-9))} {self.unit}/s"


@dataclass(frozen=True)
class Stage:
    """title: what is done, in plain words. kind: stages of one kind take about the same time.

    quick: it takes next to no time. whole: its first task is the whole stage, so that the task's share is the stage's.
    """

    kind: str
    title: str
    whole: bool = False
    quick: bool = False


class Timetable:
    """Stages in the order in which they come. The caller begins and ends them.

    whole, below: the stage's task, where that task is the whole stage.
    """

    def __init__(self, stages: Sequence[Stage], clock: Clock = time.perf_counter):
        self.stages, self._clock = tuple(stages), clock
        self.current: Stage | None = None
        self.number, self._start = 0, 0.0
        self._seconds: dict[str, list[float]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the current stage began."""
        return self._clock() - self._start

    @property
    def place(self) -> str:
        """The current stage as a run's lines call it."""
        return f"stage {self.number} of {len(self.stages)}: {self.current.title}"

    def begin(self, stage: Stage) -> None:
        """One that was not planned for comes last."""
        if stage not in self.stages:
            self.stages += (stage,)
        self.current, self.number, self._start = stage, self.stages.index(stage) + 1, self._clock()

    def end(self) -> float:
        """Ends the current stage; the seconds that it took."""
        seconds = self.elapsed
        self._seconds.setdefault(self.current.kind, []).append(seconds)
        self.current = None
        return seconds

    def share(self, whole: Task | None) -> float | None:
        """How much of the current stage is done, from 0 to 1; None where nothing says so."""
        if whole is not None and whole.total:
            return whole.share
        known = self._mean(self.current)
        return min(self.elapsed / known, 0.99) if known else None

    def stage_left(self, whole: Task | None) -> float | None:
        """Seconds until the current stage ends; None where nothing is known of it."""
        if whole is not None and whole.left is not None:
            return whole.left
        known = self._mean(self.current)
        return None if known is None else max(known - self.elapsed, 0.0)

    def run_left(self, whole: Task | None) -> tuple[float, bool] | None:
        """(seconds until the last stage ends, whether that is all of them: else of the stages that are known)."""
        length = whole.length if whole is not None else None
        left = [self.stage_left(whole)]
        for later in self.stages[self.number :]:
            left.append(length if length is not None and later.kind == self.current.kind else self._mean(later))
        known = [seconds for seconds in left if seconds is not None]
        return (sum(known), len(known) == len(left)) if any(known) else None

    def _mean(self, stage: Stage) -> float | None:
        """Seconds that stages of this kind took so far; None where none has ended."""
        if stage.quick:
            return 0.0
        seconds = self._seconds.get(stage.kind)
        return sum(seconds) / len(seconds) if seconds else None


def in_words(seconds: float) -> str:
    """A length of time as one says it: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def short(number: float) -> str:
    """1234.5 as 1.2k."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.1f}"
