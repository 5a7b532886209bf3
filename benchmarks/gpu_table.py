"""The table of what was timed: each row beside its floor."""

import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """floor_ms, floor_bytes: the least that it can take. Memory is 0 where it was not looked at."""

    name: str
    ms: float
    floor_ms: float
    tokens_per_second: float = 0.0
    peak_bytes: int = 0
    floor_bytes: float = 0.0


class Deadline:
    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def until(deadline: Deadline, rows: Iterable[Row]) -> tuple[list[Row], bool]:
    """(the rows that were begun in time, whether these are all). A row that has begun is finished."""
    done: list[Row] = []
    remaining = iter(rows)
    while deadline.left():
        row = next(remaining, None)
        if row is None:
            return done, True
        done.append(row)
    return done, False


def lines(rows: Iterable[Row]) -> list[str]:
    head = f"{'':<56}{'ms':>10}{'floor':>10}{'x':>7}{'tokens/s':>14}{'GiB':>8}{'floor':>8}"
    return [head, *map(_line, rows)]


def _line(row: Row) -> str:
    speed = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""
    memory = f"{row.peak_bytes / 2**30:.2f}" if row.peak_bytes else ""
    least = f"{row.floor_bytes / 2**30:.2f}" if row.floor_bytes else ""
    over_floor = row.ms / max(row.floor_ms, 1e-9)
    times = f"{row.ms:10.3f}{row.floor_ms:10.3f}{over_floor:7.1f}"
    return f"{row.name:<56}{times}{speed:>14}{memory:>8}{least:>8}"
