"""Differences between arms. The unit is a trained SAE (a seed); arms are paired, as they share initialisation and batches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

ONE_SEED = "1 seed, no interval"


@dataclass(frozen=True)
class Difference:
    """a - b over paired seeds.

    a, b: means over the seeds that both arms have. percent: 100 (a - b) / |b|, so its sign is that of the difference; None
    when b is 0. ci95: Student's t interval of the difference over seeds; None with one seed. percent_ci95: the same as a
    percentage of |b|, with b taken as it is. values: per seed (seed, a, b). note: why something is missing, or "".
    """

    a: float | None
    b: float | None
    difference: float | None
    percent: float | None
    ci95: tuple[float, float] | None
    percent_ci95: tuple[float, float] | None
    n_seeds: int
    values: tuple[tuple[int, float, float], ...]
    note: str = ""

    @property
    def clear(self) -> bool:
        """Whether the interval exists and leaves out 0."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]

    def as_dict(self) -> dict:
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "percent": self.percent,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "percent_ci95": None if self.percent_ci95 is None else list(self.percent_ci95),
            "n_seeds": self.n_seeds,
            "values": [{"seed": seed, "a": a, "b": b} for seed, a, b in self.values],
            "note": self.note,
        }


def paired_difference(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> Difference:
    """a, b: seed -> value. Only seeds with a number on both sides count; the others are named in the note."""
    paired = tuple((seed, a[seed], b[seed]) for seed in sorted(a.keys() & b.keys()) if a[seed] is not None and b[seed] is not None)
    unpaired = sorted((a.keys() | b.keys()) - {seed for seed, _, _ in paired})
    notes = [f"no pair for seed {', '.join(map(str, unpaired))}"] if unpaired else []
    if not paired:
        return Difference(None, None, None, None, None, None, 0, (), "; ".join(notes) or "no seeds")
    mean_a, mean_b = fmean(value for _, value, _ in paired), fmean(value for _, _, value in paired)
    differences = [value_a - value_b for _, value_a, value_b in paired]
    interval = t_interval(differences)
    if interval is None:
        notes.insert(0, ONE_SEED)
    scale = 100 / abs(mean_b) if mean_b else None
    return Difference(
        a=mean_a,
        b=mean_b,
        difference=fmean(differences),
        percent=None if scale is None else scale * fmean(differences),
        ci95=interval,
        percent_ci95=None if scale is None or interval is None else (scale * interval[0], scale * interval[1]),
        n_seeds=len(paired),
        values=paired,
        note="; ".join(notes),
    )


def t_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """mean -+ t s / sqrt(n) with n - 1 degrees of freedom. None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
