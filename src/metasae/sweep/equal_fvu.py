"""Kinds of SAEs compared at equal FVU: measures read off each kind's curve over k where its FVU is the target's.

For a seed s, a kind trained at several k gives points (FVU_k, M_k). With F the target SAE's FVU of the same seed, M at F is linear in ln FVU
between the two k whose FVUs enclose F; where they do not, that seed has no number (nothing is extrapolated). The same is done
without each block of documents in turn, curve and target alike, so the intervals of `paired_difference` over seeds x blocks hold here too.
The model's output is measured on fewer documents, in blocks of their own; its FVUs are those of the whole text.

The interpolation's own error is told beside each number: every inner point of the curve is left out and read off its neighbours; told is
the largest |difference| over points and seeds. It is an estimate: the gap it bridges is wider than any that is used, but what a curve does
between two k is not seen. None where a kind has fewer than three k.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from metasae.compare.catalogue import CATALOGUE, Quantity, left_out_of, value_of
from metasae.intervals.statistics import Difference, paired_difference

FVU = next(quantity for quantity in CATALOGUE if quantity.key == "fidelity.fvu")

# k -> seed -> measures.json
Curve = Mapping[int, Mapping[int, dict]]


@dataclass(frozen=True)
class AtEqualFvu:
    """difference: of the measure, a against its baseline b. interpolation_error: in the measure's own unit, None with fewer than three k.

    brackets: per seed the two k that enclose the target's FVU, None where none do.
    """

    difference: Difference
    interpolation_error: float | None
    brackets: dict[int, tuple[int, int] | None]

    def as_dict(self) -> dict:
        brackets = {str(seed): None if ks is None else list(ks) for seed, ks in self.brackets.items()}
        return {**self.difference.as_dict(), "interpolation_error": self.interpolation_error, "brackets": brackets}


def at_equal_fvu(
    curve: Curve, target: Mapping[int, dict], quantity: Quantity, curve_is_baseline: bool = False
) -> AtEqualFvu:
    """A kind's curve held against the target SAE of each seed. target: seed -> measures.json.

    The difference is curve - target, or target - curve where the curve is the baseline.
    """
    # a seed that is missing somewhere has no number, and the difference says so
    seeds = sorted({*target, *(seed for by_seed in curve.values() for seed in by_seed)})
    whole = [seed for seed in seeds if seed in target and all(seed in by_seed for by_seed in curve.values())]
    read = {
        seed: _read({k: curve[k][seed] for k in curve}, target[seed], quantity) if seed in whole else NOTHING
        for seed in seeds
    }
    values = {seed: found.value for seed, found in read.items()}
    own = {seed: value_of(target[seed], quantity) if seed in target else None for seed in seeds}
    without = {seed: found.without for seed, found in read.items()}
    own_without = {seed: left_out_of(target[seed], quantity) if seed in target else None for seed in seeds}
    sides, blocks = (values, own), (without, own_without)
    if curve_is_baseline:
        sides, blocks = sides[::-1], blocks[::-1]
    usable = [seed for seed in seeds if values[seed] is not None and own[seed] is not None]
    has_blocks = bool(usable) and all(without[seed] and own_without[seed] for seed in usable)
    difference = paired_difference(*sides, *(blocks if has_blocks else ()))
    errors = [error for seed in whole for error in _left_out_errors({k: curve[k][seed] for k in curve}, quantity)]
    return AtEqualFvu(difference, max(errors, default=None), {seed: found.bracket for seed, found in read.items()})


def at_equal_k(curve: Curve, baseline: Curve, quantity: Quantity) -> dict[int, Difference]:
    """k -> a kind's difference against the baseline kind of the same k, for every k that both have."""
    return {k: _difference(curve[k], baseline[k], quantity) for k in sorted(set(curve) & set(baseline))}


def _difference(a: Mapping[int, dict], b: Mapping[int, dict], quantity: Quantity) -> Difference:
    values = [{seed: value_of(measures, quantity) for seed, measures in side.items()} for side in (a, b)]
    blocks = [{seed: left_out_of(measures, quantity) for seed, measures in side.items()} for side in (a, b)]
    has_blocks = all(rows for side in blocks for rows in side.values())
    return paired_difference(*values, *(blocks if has_blocks else ()))


@dataclass(frozen=True)
class _Read:
    value: float | None
    without: list[float | None] | None
    bracket: tuple[int, int] | None


NOTHING = _Read(None, None, None)


def _read(points: Mapping[int, dict], target: dict, quantity: Quantity) -> _Read:
    """One seed's curve at the target's FVU, on the whole text and without each block."""
    ks = sorted(points)
    fvus, values = [value_of(points[k], FVU) for k in ks], [value_of(points[k], quantity) for k in ks]
    value, place = interpolate(fvus, values, value_of(target, FVU))
    bracket = None if place is None else (ks[place], ks[place + 1])
    own_blocks = [left_out_of(points[k], quantity) for k in ks]
    fvu_blocks, at_blocks = [left_out_of(points[k], FVU) for k in ks], left_out_of(target, FVU)
    if value is None or not at_blocks or not all(fvu_blocks) or not all(own_blocks):
        return _Read(value, None, bracket)
    if _has_own_blocks(quantity):
        count = len(own_blocks[0])
        fvu_blocks, at_blocks = [[fvu] * count for fvu in fvus], [value_of(target, FVU)] * count
    columns = zip(zip(*fvu_blocks, strict=True), zip(*own_blocks, strict=True), at_blocks, strict=True)
    return _Read(value, [_between(fvu, own, place, each) for fvu, own, each in columns], bracket)


def _has_own_blocks(quantity: Quantity) -> bool:
    """Whether a measure's blocks are of other documents than FVU's: the model's own output is seen on fewer of them."""
    return quantity.key.startswith(("fidelity.output_", "fidelity.ce_", "fidelity.kl"))


def interpolate(
    fvus: Sequence[float | None], values: Sequence[float | None], at: float | None
) -> tuple[float | None, int | None]:
    """(the value where FVU is `at`, the place i of the points i and i + 1 that enclose it); (None, None) where none do.

    Points in the order of k. Linear in ln FVU; where several neighbours enclose it, the first.
    """
    if at is None or at <= 0:
        return None, None
    for place, (left, right) in enumerate(pairwise(fvus)):
        if left is not None and right is not None and min(left, right) <= at <= max(left, right):
            return _between(fvus, values, place, at), place
    return None, None


def _between(fvus, values, place: int, at: float | None) -> float | None:
    """Linear in ln FVU through two neighbouring points; without a block of documents it may reach a little beyond them."""
    left, right, a, b = fvus[place], fvus[place + 1], values[place], values[place + 1]
    if None in (left, right, a, b, at) or min(left, right, at) <= 0:
        return None
    if left == right:
        return (a + b) / 2
    share = math.log(at / left) / math.log(right / left)
    return a + share * (b - a)


def _left_out_errors(points: Mapping[int, dict], quantity: Quantity) -> list[float]:
    ks = sorted(points)
    errors = []
    for before, own, after in zip(ks, ks[1:], ks[2:], strict=False):
        fvus, values = (
            [value_of(points[k], FVU) for k in (before, after)],
            [value_of(points[k], quantity) for k in (before, after)],
        )
        fvu, value = value_of(points[own], FVU), value_of(points[own], quantity)
        read = None if fvu is None else _between(fvus, values, 0, fvu)
        if read is not None and value is not None:
            errors.append(abs(read - value))
    return errors
