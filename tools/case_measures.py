"""Every measure of atomicity as a number of a subject of `cases.py`, and what each says of each case."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch

from metasae.compare.matched import dependence_at_equal_rates
from metasae.intervals.statistics import leaves_out_zero, paired_difference
from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.cofiring.dependence import dependence
from metasae.measures.cofiring.excess import excess_phi
from metasae.measures.cofiring.lift import lift_statistics
from metasae.measures.cofiring.phi_sums import matched_mean
from metasae.measures.cofiring.shift import shift_null
from metasae.measures.rows.critic import gaussian_rows, judge, random_rows
from metasae.measures.rows.decomposability import nearest_cosines
from metasae.measures.rows.pursuit import pursue
from metasae.measures.rows.seeds import attenuation, match
from metasae.measures.truth.truth import as_firings, measure_truth
from metasae.measures.words.sense_reference import even_parts
from metasae.measures.words.sense_scores import coverage_f1, draw_for, firings_per_sense, matched, weighted_mean
from metasae.measures.words.senses import energy_of
from tools.cases import CASES, Case
from tools.fakes import FAKES
from tools.planted_scores import as_concepts, as_spikes
from tools.subjects import Subject, noisy

CRITIC = {"m": 0.25, "k": 2, "steps": 150}


@dataclass(frozen=True, eq=False)
class Examined:
    """A subject with what several measures need of it, worked out once. other: the same dictionary as another seed
    would have it."""

    subject: Subject
    other: Subject
    _numbers: dict = field(default_factory=dict)

    def number(self, of: Callable[["Examined"], float | None]) -> float | None:
        """of(self), worked out once."""
        if of not in self._numbers:
            self._numbers[of] = of(self)
        return self._numbers[of]

    @cached_property
    def rows(self) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(self.subject.rows[self.subject.live]).float(), dim=1)

    @cached_property
    def pairs(self) -> dict:
        return pair_statistics(self.subject.firings)

    @cached_property
    def excess(self) -> dict:
        return excess_phi(self.subject.firings)

    @cached_property
    def dependence(self) -> dict:
        return dependence(self.subject.firings)

    @cached_property
    def lift(self) -> dict:
        return lift_statistics(self.subject.firings)

    @cached_property
    def truth(self) -> dict:
        split = self.subject.split
        truth = as_firings(split.activations, split)
        return measure_truth(self.subject.rows, self.subject.firings, split.world.directions, truth, split.world.parent)

    @cached_property
    def spikes(self) -> dict:
        return as_spikes(self.subject)

    @cached_property
    def concepts(self) -> dict:
        return as_concepts(self.subject)

    @property
    def critic(self):
        return _judged(_key(self.rows))

    @property
    def gaussian_floor(self):
        return _gaussian_floor(_key(self.rows))

    @property
    def critic_floor(self):
        return _floor(*self.rows.shape)


# Many cases share their rows, and rows decide what these give: nothing is worked out twice for the same rows.
Key = tuple[bytes, tuple[int, ...]]


def _key(rows: torch.Tensor) -> Key:
    return rows.numpy().tobytes(), tuple(rows.shape)


def _rows(key: Key) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(key[0], np.float32).reshape(key[1]).copy())


def _judge(rows: torch.Tensor):
    return judge(rows, max(1, round(CRITIC["m"] * len(rows))), CRITIC["k"], CRITIC["steps"], 0)


@lru_cache(maxsize=512)
def _judged(key: Key):
    return _judge(_rows(key))


@lru_cache(maxsize=512)
def _gaussian_floor(key: Key):
    return _judge(gaussian_rows(_rows(key), 2))


@lru_cache(maxsize=512)
def _floor(n_rows: int, d: int):
    return _judge(random_rows(n_rows, d, 1))


@lru_cache(maxsize=512)
def _two_row_error(key: Key) -> float:
    return float(pursue(_rows(key), 2).errors[:, 1].mean())


@lru_cache(maxsize=512)
def _two_row_floor(n_rows: int, d: int) -> float:
    return float(pursue(random_rows(n_rows, d, 2), 2).errors[:, 1].mean())


@dataclass(frozen=True)
class Measured:
    """better: the direction that says more atomic. of: a number of one subject; or of_two: the numbers of both."""

    better: Literal["lower", "higher"]
    of: Callable[[Examined], float | None] | None = None
    of_two: Callable[[Examined, Examined], tuple[float | None, float | None]] | None = None

    def both(self, before: Examined, after: Examined) -> tuple[float | None, float | None]:
        return self.of_two(before, after) if self.of is None else (before.number(self.of), after.number(self.of))


def _senses(side: Examined, value: Callable) -> float | None:
    """Mean over the planted words of value(acts [T, n], sense [T], number of senses, rng)."""
    subject, numbers = side.subject, []
    split = subject.split
    for word in range(int(split.world.word.max(initial=-1)) + 1):
        places = np.flatnonzero(split.tokens == word)
        sense = split.senses[places].astype(np.int64)
        number = value(subject.firings.csr[places], sense, int(sense.max()) + 1, np.random.default_rng(word))
        numbers += [] if number is None else [number]
    return float(np.mean(numbers)) if numbers else None


def _atomicity(acts, sense, n_senses, rng) -> float | None:
    sizes = np.bincount(sense, minlength=n_senses)
    atomicity, _ = matched(firings_per_sense(acts, sense, n_senses), sizes, draw_for(sizes, rng), rng)
    return weighted_mean(atomicity, energy_of(acts))


def _coverage(acts, sense, n_senses, rng) -> float:
    halves = np.stack([even_parts(sense, np.arange(len(sense)), 2, rng) for _ in range(3)])
    return coverage_f1(acts, sense, n_senses, halves)


def _ve_over_r(side: Examined) -> float | None:
    matching = match(side.rows, Examined(side.other, side.other).rows)
    return attenuation(side.critic.ve, side.critic_floor.ve, matching.mean_r)[0]


def _pursuit_excess(side: Examined) -> float:
    return _two_row_floor(*side.rows.shape) - _two_row_error(_key(side.rows))


def _dependence_at_equal_rates(a: Examined, b: Examined) -> tuple[float | None, float | None]:
    """None for both where their L0 are not equal, as in a comparison."""
    measures = (
        {"cooccurrence": {"dependence": side.dependence, "l0_realised": side.subject.firings.l0}} for side in (a, b)
    )
    return dependence_at_equal_rates(*measures)


FIRING: dict[str, Measured] = {
    "mean |phi|": Measured("lower", lambda side: side.pairs["mean_abs_phi"]),
    "mean |phi| at equal rates": Measured(
        "lower", of_two=lambda a, b: matched_mean(a.pairs["rate_cells"], b.pairs["rate_cells"])
    ),
    "excess |phi|, fixed marginals": Measured("lower", lambda side: side.excess["excess_abs_phi"]),
    "excess |phi|, shifted text": Measured(
        "lower", lambda side: shift_null(side.subject.firings, side.pairs["mean_abs_phi"], 0)["excess_abs_phi"]
    ),
    "pairs with phi > 0.1": Measured("lower", lambda side: side.pairs["share_above_0.1"]),
    "nearest-partner phi": Measured("lower", lambda side: side.pairs["nearest_phi"]),
    "dependence of firing": Measured("lower", lambda side: side.dependence["value"]),
    "dependence at equal rates": Measured("lower", of_two=_dependence_at_equal_rates),
    "latents within another's firings": Measured("lower", lambda side: side.lift["share_contained"]),
}
ROWS: dict[str, Measured] = {
    "nearest decoder cosine": Measured("lower", lambda side: float(nearest_cosines(side.rows).mean())),
    "meta VE excess": Measured("lower", lambda side: side.critic.ve - side.critic_floor.ve),
    "meta VE excess, held out": Measured("lower", lambda side: side.critic.ve_heldout - side.critic_floor.ve_heldout),
    "meta VE beyond covariance": Measured("lower", lambda side: side.critic.ve - side.gaussian_floor.ve),
    "meta VE beyond covariance, held out": Measured(
        "lower", lambda side: side.critic.ve_heldout - side.gaussian_floor.ve_heldout
    ),
    "meta VE / r": Measured("lower", _ve_over_r),
    "two-row fit, excess": Measured("lower", _pursuit_excess),
}
TRUTH: dict[str, Measured] = {
    "sense atomicity, matched": Measured("higher", lambda side: _senses(side, _atomicity)),
    "sense coverage F1": Measured("higher", lambda side: _senses(side, _coverage)),
    "truth: blend rate": Measured("lower", lambda side: side.truth["blend_rate"]),
    "truth: uniqueness": Measured("higher", lambda side: side.truth["uniqueness"]),
    "truth: MCC": Measured("higher", lambda side: side.truth["mcc"]),
    "truth: firing F1": Measured("higher", lambda side: side.truth["f1"]),
}
# Planted features judged as spike-ins are, and as a bank of concepts is.
FEATURES: dict[str, Measured] = {
    "recovery F1": Measured("higher", lambda side: side.spikes["recovery_f1"]),
    "told apart": Measured("higher", lambda side: side.spikes["told_apart"]),
    "blended share": Measured("lower", lambda side: side.spikes["blend_rate"]),
    "absorption": Measured("lower", lambda side: side.spikes["absorption"]),
    "cosine": Measured("higher", lambda side: side.spikes["cosine"]),
    "phi error": Measured("lower", lambda side: side.spikes["phi_error"]),
    "probe5 F1": Measured("higher", lambda side: side.concepts["probe5_f1"]),
}
TABLES = {
    "How latents fire": FIRING,
    "Decoder rows": ROWS,
    "Senses and planted truth": TRUTH,
    "Planted features as spike-ins": FEATURES,
}
MEASURES = FIRING | ROWS | TRUTH | FEATURES


def sides_of(case: Case, seed: int) -> tuple[Examined, Examined]:
    """Both sides with their other seeds: the same dictionary, except that a fake, or noise in rows, is drawn anew."""
    fresh = case.after
    if case.name in FAKES:
        fresh = FAKES[case.name].make(case.before, seed + 1000)
    elif case.name == "noisy_rows":
        fresh = noisy(case.before, 0.3, seed + 1000)
    return _examined(case.before), Examined(case.after, fresh)


@lru_cache(maxsize=128)
def _examined(subject: Subject) -> Examined:
    """Many cases begin with the same dictionary."""
    return Examined(subject, subject)


@dataclass(frozen=True)
class Reading:
    """before, after: means over seeds. says: `more`, `less` or `same` atomic; `same` where the 95% interval over seeds
    holds 0."""

    before: float | None
    after: float | None
    says: Literal["more", "less", "same", "none"]


def read_case(name: str, seeds: range, measures: dict[str, Measured] = MEASURES) -> dict[str, Reading]:
    """measure -> what it says of a case, over worlds drawn from these seeds (at least two)."""
    values: dict[str, dict[int, tuple]] = {label: {} for label in measures}
    for seed in seeds:
        before, after = sides_of(CASES[name](seed), seed)
        for label, measure in measures.items():
            values[label][seed] = measure.both(before, after)
    return {label: _reading(by_seed, measures[label].better) for label, by_seed in values.items()}


def _reading(values: dict[int, tuple], better: str) -> Reading:
    difference = paired_difference(
        {seed: after for seed, (_, after) in values.items()}, {seed: before for seed, (before, _) in values.items()}
    )
    if difference.difference is None:
        return Reading(None, None, "none")
    entry = difference.as_dict()
    # equal but for the last digits in every seed is no change
    if not leaves_out_zero(entry) or abs(difference.difference) <= 1e-9 * max(abs(difference.a), abs(difference.b)):
        return Reading(difference.b, difference.a, "same")
    return Reading(difference.b, difference.a, "more" if (difference.difference < 0) == (better == "lower") else "less")
