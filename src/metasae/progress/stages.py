"""The stages of a run and their tasks: the current stage, and an estimate of the remaining time from earlier stages."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A rate is used once this share of a stage and this many seconds have passed.
_SHARE, _SECONDS = 0.05, 2.0
Clock = Callable[[], float]


class Task:
    """One running task of `total` units of work, None if that is not known.

    done: units since it began. skipped: units that an earlier run did, which do not count in the rate. live: the latest
    numbers.
    """

    def __init__(self, name: str | None, total: int | None, unit: str = "tokens", clock: Clock = time.perf_counter):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.skipped, self.live = 0, 0, {}
        self._clock, self._start = clock, clock()

    def skip(self, amount: int) -> None:
        self.skipped += amount

    def advance(self, amount: int, **live: float) -> None:
        """Moves the bar by `amount` units and shows the given numbers, as in `advance(amount, loss=...)`."""
        self.done += amount
        self.live = live or self.live

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    @property
    def share(self) -> float | None:
        """The share that is done, from 0 to 1; None if the total is not known."""
        return min((self.done + self.skipped) / self.total, 1.0) if self.total else None

    @property
    def length(self) -> float | None:
        """Estimated seconds for all units; None if too little is done for an estimate."""
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
    """A stage of a run. title: what is done, for the user. kind: stages of one kind take about the same time.

    quick: it takes almost no time. whole: its first task is the whole stage, so the task's share is the stage's share.
    """

    kind: str
    title: str
    whole: bool = False
    quick: bool = False


class Timetable:
    """The stages of a run in their order. The caller begins and ends them.

    whole, below: the stage's task if it is the whole stage, else None.
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
        """The current stage in words: `stage 2 of 5: ...`."""
        return f"stage {self.number} of {len(self.stages)}: {self.current.title}"

    def begin(self, stage: Stage) -> None:
        """Begins a stage; a stage that was not planned is added at the end."""
        if stage not in self.stages:
            self.stages += (stage,)
        self.current, self.number, self._start = stage, self.stages.index(stage) + 1, self._clock()

    def end(self) -> float:
        """Ends the current stage; returns its seconds."""
        seconds = self.elapsed
        self._seconds.setdefault(self.current.kind, []).append(seconds)
        self.current = None
        return seconds

    def share(self, whole: Task | None) -> float | None:
        """The share of the current stage that is done, from 0 to 1; None if unknown."""
        if whole is not None and whole.total:
            return whole.share
        known = self._mean(self.current)
        return min(self.elapsed / known, 0.99) if known else None

    def stage_left(self, whole: Task | None) -> float | None:
        """Estimated seconds until the current stage ends; None if unknown."""
        if whole is not None and whole.left is not None:
            return whole.left
        known = self._mean(self.current)
        return None if known is None else max(known - self.elapsed, 0.0)

    def run_left(self, whole: Task | None) -> tuple[float, bool] | None:
        """(estimated seconds until the run ends, whether every stage has an estimate; the others are left out). None
        without estimates.
        """
        length = whole.length if whole is not None else None
        left = [self.stage_left(whole)]
        for later in self.stages[self.number :]:
            left.append(length if length is not None and later.kind == self.current.kind else self._mean(later))
        known = [seconds for seconds in left if seconds is not None]
        return (sum(known), len(known) == len(left)) if any(known) else None

    def _mean(self, stage: Stage) -> float | None:
        """Mean seconds of the finished stages of this kind; None if none has finished."""
        if stage.quick:
            return 0.0
        seconds = self._seconds.get(stage.kind)
        return sum(seconds) / len(seconds) if seconds else None


def in_words(seconds: float) -> str:
    """A length of time in words: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def short(number: float) -> str:
    """A number with a unit letter: 1234.5 as 1.2k."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.1f}"
