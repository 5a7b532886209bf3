"""Kinds of SAEs compared at equal FVU: measures read off each kind's curve over k where its FVU is the target's.

For a seed s, a kind trained at several k gives points (FVU_k, M_k). With F the target SAE's FVU of the same seed, M at
F is linear in ln FVU between the two k whose FVUs enclose F; where they do not, that seed has no number (nothing is
extrapolated). The same is done without each block of documents in turn, curve and target alike, so the intervals of
`paired_difference` over seeds x blocks hold here too. The model's output is measured on fewer documents, in blocks of
their own; its FVUs are those of the whole text.

Beside each number stands the error of the interpolation: every inner point of the curve is left out and read off its
neighbours, and the error is the largest |difference| over points and seeds. It is an estimate: the gap it bridges is
wider than any that is used, but what a curve does between two k is not seen. None where a kind has fewer than three k.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from metasae.compare.catalogue import Quantity, left_out_of, value_of
from metasae.compare.compare import critics_of, without_a_critic
from metasae.intervals.statistics import Difference, Source, paired_difference
from metasae.sweep.folder import DONE, SweepFolder
from metasae.sweep.plan import QUANTITIES, Plan

FVU = QUANTITIES["fidelity.fvu"]
# Measures whose blocks are of other documents than FVU's: the model's own output is seen on fewer of them.
OF_OUTPUT = ("fidelity.output_", "fidelity.ce_", "fidelity.kl")

# k -> seed -> measures.json
Curve = Mapping[int, Mapping[int, dict]]
# (FVU, the measure)
Point = tuple[float | None, float | None]


@dataclass(frozen=True)
class Read:
    """A measure of one seed: on the whole text, without each block of documents (or each critic, as `of` says), and
    the two k that it was read between.
    """

    value: float | None = None
    without: list[float | None] | None = None
    bracket: list[int] | None = None
    of: Source = "documents"


def compared_at_equal_fvu(folder: SweepFolder, plan: Plan) -> dict:
    """kinds: kind -> measure -> the difference at equal FVU; equal_k: kind -> k -> measure -> the difference against
    the target's kind.

    The target's own kind is read off its curve without the target itself. A kind whose cells are not all done is named
    with why.
    """
    spec, (curves, missing) = plan.equal_fvu, _curves(folder, plan)
    kind, k = spec["target"]["kind"], spec["target"]["k"]
    own = curves.get(kind, {})
    target = own.get(k, {})
    # FVU is equal
    read = [
        QUANTITIES[key]
        for key in plan.told
        if key != FVU.key and any(value_of(sae, QUANTITIES[key]) is not None for sae in target.values())
    ]
    kinds, equal_k = {}, {}
    for name in spec["curves"]:
        curve = {other: saes for other, saes in curves.get(name, {}).items() if (name, other) != (kind, k)}
        if not target or not curve:
            continue
        kinds[name] = {q.key: at_equal_fvu(curve, target, q, spec["baseline"] == "curve") for q in read}
        if name != kind:
            equal_k[name] = at_equal_k(curve, own, [FVU, *read])
    return {
        "target": spec["target"],
        "baseline": spec["baseline"],
        "kinds": kinds,
        "equal_k": equal_k,
        "k": {name: sorted(curve) for name, curve in curves.items()},
        "not_done": missing,
    }


def _curves(folder: SweepFolder, plan: Plan) -> tuple[dict[str, dict[int, dict[int, dict]]], dict[str, str]]:
    """(kind -> k -> seed -> measures, kind -> why one of its cells is missing)."""
    curves, missing = {}, {}
    for cell in folder.cells():
        if cell.state != DONE:
            missing[cell.setting.kind] = f"{cell.setting.values}: {cell.state}, {cell.why}"
            continue
        saes = [arm for arm in folder.run(cell.name).arms() if arm.name == plan.subject and arm.is_measured]
        k = cell.setting.recipe(plan.base).sae.k
        curves.setdefault(cell.setting.kind, {})[k] = {arm.seed: arm.measures() for arm in saes}
    return curves, missing


def at_equal_fvu(curve: Curve, target: Mapping[int, dict], quantity: Quantity, curve_is_baseline: bool = False) -> dict:
    """A kind's curve compared with the target SAE of each seed. target: seed -> measures.json.

    The difference is curve - target, or target - curve where the curve is the baseline. Beside it: the
    interpolation_error, in the measure's own unit, None with fewer than three k; brackets: per seed the two k that
    enclose the target's FVU, None where none do.
    """
    # a seed that is missing somewhere has no number, and the difference says so
    seeds = sorted({*target, *(seed for by_seed in curve.values() for seed in by_seed)})
    points = {
        seed: {k: curve[k][seed] for k in curve}
        for seed in seeds
        if seed in target and all(seed in by_seed for by_seed in curve.values())
    }
    read = {seed: _read(points[seed], target[seed], quantity) if seed in points else Read() for seed in seeds}
    own = {seed: _measured(target.get(seed, {}), quantity) for seed in seeds}
    difference = _difference(own, read) if curve_is_baseline else _difference(read, own)
    errors = [error for seed in points for error in _left_out_errors(points[seed], quantity)]
    return {
        **difference.as_dict(),
        "interpolation_error": max(errors, default=None),
        "brackets": {str(seed): read[seed].bracket for seed in seeds},
    }


def at_equal_k(curve: Curve, baseline: Curve, quantities: Sequence[Quantity]) -> dict[str, dict[str, dict]]:
    """k -> measure -> a kind's difference against the baseline kind of the same k, for every k that both have."""

    def difference(k: int, quantity: Quantity) -> Difference:
        sides = [{seed: _measured(sae, quantity) for seed, sae in kind[k].items()} for kind in (curve, baseline)]
        return _difference(*sides)

    ks = sorted(set(curve) & set(baseline))
    return {str(k): {quantity.key: difference(k, quantity).as_dict() for quantity in quantities} for k in ks}


def _difference(a: Mapping[int, Read], b: Mapping[int, Read]) -> Difference:
    """a - b over the seeds; over blocks of documents, or critics, too where every number has them."""
    sides = [{seed: read.value for seed, read in side.items()} for side in (a, b)]
    blocks = [{seed: read.without for seed, read in side.items()} for side in (a, b)]
    usable = [seed for seed in a if seed in b and None not in (a[seed].value, b[seed].value)]
    has_blocks = bool(usable) and all(side[seed] for side in blocks for seed in usable)
    of = next((read.of for side in (a, b) for read in side.values()), "documents")
    return paired_difference(*sides, *(blocks if has_blocks else (None, None)), blocks_of=of)


def _measured(sae: dict, quantity: Quantity) -> Read:
    value = value_of(sae, quantity)
    if value is not None and critics_of(sae, quantity):
        return Read(value, without_a_critic(sae, quantity), of="critics")
    return Read(value, left_out_of(sae, quantity))


def _read(points: Mapping[int, dict], target: dict, quantity: Quantity) -> Read:
    """One seed's curve at the target's FVU, on the whole text and without each block. FVU knows no critics."""
    ks, at = sorted(points), _measured(target, FVU)
    fvus, own = [_measured(points[k], FVU) for k in ks], [_measured(points[k], quantity) for k in ks]
    value, place = interpolate([fvu.value for fvu in fvus], [read.value for read in own], at.value)
    bracket = None if place is None else ks[place : place + 2]
    if value is None or not all(read.without for read in (at, *fvus, *own)):
        return Read(value, None, bracket, own[0].of)
    if quantity.key.startswith(OF_OUTPUT) or own[0].of == "critics":
        count = len(own[0].without)
        at, *fvus = (replace(fvu, without=[fvu.value] * count) for fvu in (at, *fvus))
    left, right = (zip(fvus[end].without, own[end].without, strict=True) for end in (place, place + 1))
    return Read(value, [_between(*block) for block in zip(left, right, at.without, strict=True)], bracket, own[0].of)


def interpolate(
    fvus: Sequence[float | None], values: Sequence[float | None], at: float | None
) -> tuple[float | None, int | None]:
    """(the value where FVU is `at`, the place i of the points i and i + 1 that enclose it); (None, None) where none do.

    Points in the order of k. Linear in ln FVU; where several neighbours enclose it, the first.
    """
    for place, (left, right) in enumerate(pairwise(zip(fvus, values, strict=True))):
        ends = (left[0], right[0])
        if None not in (*ends, at) and min(ends) <= at <= max(ends):
            return _between(left, right, at), place
    return None, None


def _between(left: Point, right: Point, at: float | None) -> float | None:
    """Linear in ln FVU through two neighbouring points; without a block of documents it may reach beyond them."""
    if None in (*left, *right, at) or min(left[0], right[0], at) <= 0:
        return None
    if left[0] == right[0]:
        return (left[1] + right[1]) / 2
    share = math.log(at / left[0]) / math.log(right[0] / left[0])
    return left[1] + share * (right[1] - left[1])


def _left_out_errors(points: Mapping[int, dict], quantity: Quantity) -> list[float]:
    """How far off each inner k is where it is left out and read off its neighbours."""
    curve = [(value_of(points[k], FVU), value_of(points[k], quantity)) for k in sorted(points)]
    errors = []
    for before, (fvu, value), after in zip(curve, curve[1:], curve[2:], strict=False):
        read = _between(before, after, fvu)
        if None not in (read, value):
            errors.append(abs(read - value))
    return errors
