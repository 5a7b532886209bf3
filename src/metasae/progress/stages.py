"""The stages of a run: which one is on, and how long the rest will take as far as the stages before it say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A rate is believed once so much of a stage and so many seconds are behind it.
_SHARE, _SECONDS = 0.05, 2.0


@dataclass(frozen=True)
class Stage:
    """title: what is done, in plain words. kind: stages of one kind take about the same time.

    quick: it takes next to no time. whole: its first task is the whole stage, so that the task's share is the stage's.
    """

    kind: str
    title: str
    whole: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Pace:
    """How a task goes: `done` of `total` units in `seconds`, behind `skipped` units that an earlier run did."""

    done: int
    skipped: int
    total: int
    seconds: float

    @property
    def share(self) -> float:
        return min((self.done + self.skipped) / self.total, 1.0)

    @property
    def length(self) -> float | None:
        """Seconds that all units take; None where too little is done to say."""
        believed = self.done > _SHARE * self.total and self.seconds > _SECONDS
        return self.seconds * self.total / self.done if believed else None


class Plan:
    """Stages in the order in which they come. The caller begins and ends them and says at what pace one goes.

    pace, below: of the stage's task, where that task is the whole stage.
    """

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], float] = time.perf_counter):
        self.stages, self._clock = tuple(stages), clock
        self.current: Stage | None = None
        self.number, self._start = 0, 0.0
        self._seconds: dict[str, list[float]] = {}

    @property
    def total(self) -> int:
        return len(self.stages)

    @property
    def elapsed(self) -> float:
        """Seconds since the current stage began."""
        return self._clock() - self._start

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

    def share(self, pace: Pace | None) -> float | None:
        """How much of the current stage is done, from 0 to 1; None where nothing says so."""
        if pace is not None:
            return pace.share
        known = self._mean(self.current)
        return min(self.elapsed / known, 0.99) if known else None

    def stage_left(self, pace: Pace | None) -> float | None:
        """Seconds until the current stage ends; None where nothing is known of it."""
        if pace is not None and pace.length is not None:
            return (1 - pace.share) * pace.length
        known = self._mean(self.current)
        return None if known is None else max(known - self.elapsed, 0.0)

    def run_left(self, pace: Pace | None) -> tuple[float, bool] | None:
        """(seconds until the last stage ends, whether that is all of them: else of the stages that are known)."""
        length = pace.length if pace is not None else None
        left = [self.stage_left(pace)]
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
