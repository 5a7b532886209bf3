"""Power laws t = c x^b through timed points: least squares of log t = log c + b log x.

The standard error of b is sqrt(sum of squared residuals / (points - 2) / sum of (log x - mean)^2), as in any
straight-line fit. It tells the scatter about the line, and a bend is scatter too: a curve that is no power law shows as
a large error, and as another exponent of its upper half.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Fit:
    """t = factor * x^exponent. error: standard error of the exponent, None with two points. points: how many were
    fitted."""

    exponent: float
    error: float | None
    factor: float
    points: int


def fit(x: list[float], y: list[float]) -> Fit | None:
    """The power law through the points; None with fewer than two different x, or where a y is not above zero, as no
    power law meets that.

    Raises ValueError when x and y are not as many, or an x is not above zero.
    """
    if len(x) != len(y) or any(value <= 0 for value in x):
        raise ValueError("as many y as x, and every x above zero")
    if len(set(x)) < 2 or any(value <= 0 for value in y):
        return None
    log_x, log_y = np.log(np.array(x, np.float64)), np.log(np.array(y, np.float64))
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    exponent = float(centred @ log_y) / spread
    residuals = log_y - log_y.mean() - exponent * centred
    free = len(x) - 2
    error = float(np.sqrt(residuals @ residuals / free / spread)) if free else None
    return Fit(exponent, error, float(np.exp(log_y.mean() - exponent * log_x.mean())), len(x))


def fit_upper(x: list[float], y: list[float]) -> Fit | None:
    """`fit` of the upper half of the points by x, the middle one with it: a fixed cost bends the lower end."""
    order = sorted(range(len(x)), key=lambda i: x[i])[len(x) // 2 :]
    return fit([x[i] for i in order], [y[i] for i in order])


def round_robin(
    samplers: dict[float, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, dict[float, tuple[float, ...]]]:
    """Calls every sampler once a round, in turn: quantity -> x -> its seconds in each round."""
    taken = [{x: sample() for x, sample in samplers.items()} for _ in range(rounds)]
    names = next(iter(taken[0].values())) if taken and samplers else ()
    return {name: {x: tuple(fitted[x][name] for fitted in taken) for x in samplers} for name in names}


@dataclass(frozen=True)
class Point:
    """x, the seconds of every round, what the cost model says (seconds, or counts where it names no rate), and its
    products alone."""

    x: float
    seconds: tuple[float, ...]
    model: float
    flops: float | None = None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, middle, high = np.percentile(self.seconds, (25, 50, 75)).tolist()
        return low, middle, high

    def as_dict(self) -> dict:
        low, middle, high = self.quartiles
        return {
            "x": self.x,
            "median": middle,
            "quartiles": [low, high],
            "seconds": list(self.seconds),
            "model": self.model,
            "flops": self.flops,
        }


@dataclass(frozen=True)
class Series:
    """The times of one quantity while one number is varied. varied: that number. model_unit: 's', or what the model
    counts.

    skipped: x -> why it was not measured.
    """

    varied: str
    name: str
    points: tuple[Point, ...]
    model_unit: str = "s"
    skipped: dict[float, str] = field(default_factory=dict)

    @property
    def x(self) -> list[float]:
        return [point.x for point in self.points]

    @property
    def medians(self) -> list[float]:
        return [point.quartiles[1] for point in self.points]

    @cached_property
    def measured(self) -> Fit | None:
        return fit(self.x, self.medians)

    @cached_property
    def upper(self) -> Fit | None:
        return fit_upper(self.x, self.medians)

    @cached_property
    def model(self) -> Fit | None:
        """The same fit through what the cost model says at the same x."""
        return fit(self.x, [point.model for point in self.points])

    @cached_property
    def flops(self) -> Fit | None:
        """The same through the dense products alone; None where the model has none."""
        counts = [point.flops for point in self.points]
        return None if None in counts else fit(self.x, counts)

    def as_dict(self) -> dict:
        fits = {name: getattr(self, name) for name in ("measured", "upper", "model", "flops")}
        return {
            "varied": self.varied,
            "name": self.name,
            "model_unit": self.model_unit,
            "points": [point.as_dict() for point in self.points],
            "skipped": [{"x": x, "why": why} for x, why in self.skipped.items()],
            **{name: fitted and asdict(fitted) for name, fitted in fits.items()},
        }
