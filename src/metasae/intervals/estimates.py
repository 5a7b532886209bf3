"""Estimates with their errors: a mean over seeds, and a paired difference of two arms."""

from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its errors.

    ci95: interval over seeds x document blocks, over seeds alone if n_blocks is 0; None with one seed, or one pair of
    seeds.
    n_seeds: numbers, one for each seed. documents_ci95: over the text alone, for exactly these SAEs; it says nothing
    about other seeds.
    se_seeds, se_documents: standard errors of the two parts of ci95 (with one seed se_documents is that of
    documents_ci95); se_documents is None without blocks. se_critics, n_critics: for measures by critics, which take the
    place of blocks, the standard error of their part of ci95, and their number. note: why something is missing, or "".
    """

    ci95: Interval | None = None
    documents_ci95: Interval | None = None
    se_seeds: float | None = None
    se_documents: float | None = None
    se_critics: float | None = None
    n_seeds: int = 0
    n_blocks: int = 0
    n_critics: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """a - b over paired seeds.

    a, b: means over the seeds that both arms have. percent: 100 (a - b) / |b|, with the sign of the difference; None if
    b is 0, if its own interval includes 0, or if it is negative and has no interval. percent_ci95: Fieller's interval
    of the percentage, which contains b's own error and may be asymmetric. p: the p-value of no difference, below .05 if
    ci95 excludes 0; p_holm: adjusted within a family (`metasae.intervals.families`). smallest: the least |difference|
    that would be clear in that family at this spread. values: (seed, a, b) for each seed.
    """

    a: float | None = None
    b: float | None = None
    difference: float | None = None
    percent: float | None = None
    percent_ci95: Interval | None = None
    values: tuple[tuple[int, float, float], ...] = ()
    p: float | None = None
    p_holm: float | None = None
    smallest: float | None = None

    def as_dict(self) -> dict:
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "percent": self.percent,
            "ci95": _ends(self.ci95),
            "percent_ci95": _ends(self.percent_ci95),
            "documents_ci95": _ends(self.documents_ci95),
            "se_seeds": self.se_seeds,
            "se_documents": self.se_documents,
            "se_critics": self.se_critics,
            "p": self.p,
            "p_holm": self.p_holm,
            "smallest": self.smallest,
            "n_seeds": self.n_seeds,
            "n_blocks": self.n_blocks,
            "n_critics": self.n_critics,
            "values": [{"seed": seed, "a": a, "b": b} for seed, a, b in self.values],
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Mean(Estimate):
    """The mean of one arm."""

    mean: float | None = None

    def as_dict(self) -> dict:
        return {
            "mean": self.mean,
            "ci95": _ends(self.ci95),
            "documents_ci95": _ends(self.documents_ci95),
            "se_seeds": self.se_seeds,
            "se_documents": self.se_documents,
            "se_critics": self.se_critics,
            "n_seeds": self.n_seeds,
            "n_blocks": self.n_blocks,
            "n_critics": self.n_critics,
            "note": self.note,
        }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
