"""Compares kinds of SAEs at equal FVU: measures are interpolated on each kind's curve over k, at the FVU of a target
SAE.

For a seed s, a kind trained at several k gives points (FVU_k, M_k). With F the target SAE's FVU of the same seed, M at
F is interpolated linearly in ln FVU between two neighbouring k whose FVUs enclose F. If no two do, that seed has no
number (nothing is extrapolated). The same is done with each block of documents left out in turn, for curve and target,
so the intervals of `paired_difference` over seeds x blocks apply. The model's output is measured on fewer documents, in
blocks of their own; its FVUs are those of the whole text.

Each number comes with the error of the interpolation: every inner point of the curve is left out and interpolated from
its neighbours, and the error is the largest |difference| over points and seeds. It is an estimate: these gaps are wider
than any gap that is used, but the curve between two k is not known. None if a kind has fewer than three k.
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
# Measures whose blocks contain other documents than FVU's: the model's own output is measured on fewer documents.
OF_OUTPUT = ("fidelity.output_", "fidelity.ce_", "fidelity.kl")

# k -> seed -> measures.json
Curve = Mapping[int, Mapping[int, dict]]
# (FVU, the measure)
Point = tuple[float | None, float | None]


@dataclass(frozen=True)
class Read:
    """A measure of one seed. value: on the whole text. without: with each block of documents, or each critic (`of`),
    left out. bracket: the two k that it was interpolated between.
    """

    value: float | None = None
    without: list[float | None] | None = None
    bracket: list[int] | None = None
    of: Source = "documents"


def compared_at_equal_fvu(folder: SweepFolder, plan: Plan) -> dict:
    """Compares all kinds. In the result, kinds: {kind: {measure: difference at equal FVU}}; equal_k: {kind: {k:
    {measure: difference against the target's kind}}}.

    The curve of the target's own kind leaves out the target. not_done: {kind whose cells are not all done: reason}.
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
    """({kind: {k: {seed: measures}}}, {kind: why one of its cells is missing})."""
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
    """Compares a kind's curve with the target SAE of each seed. target: {seed: measures.json}.

    The difference is curve - target, or target - curve if the curve is the baseline. The result also has
    interpolation_error, in the measure's own unit, None with fewer than three k; and brackets, for each seed the two k
    that enclose the target's FVU, None if there are none.
    """
    # a seed that is missing somewhere has no number, and the difference's note says so
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
    """{k: {measure: a kind's difference against the baseline kind of the same k}}, for every k that both have."""

    def difference(k: int, quantity: Quantity) -> Difference:
        sides = [{seed: _measured(sae, quantity) for seed, sae in kind[k].items()} for kind in (curve, baseline)]
        return _difference(*sides)

    ks = sorted(set(curve) & set(baseline))
    return {str(k): {quantity.key: difference(k, quantity).as_dict() for quantity in quantities} for k in ks}


def _difference(a: Mapping[int, Read], b: Mapping[int, Read]) -> Difference:
    """The difference a - b over seeds, and over blocks of documents or critics if every number has them."""
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
    """One seed's curve at the target's FVU, on the whole text and with each block left out. FVU has no critics."""
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
    """(the value at FVU = `at`, the index i of the points i and i + 1 that enclose it); (None, None) if no two do.

    Points are in the order of k. Linear in ln FVU; if several pairs enclose it, the first is used.
    """
    for place, (left, right) in enumerate(pairwise(zip(fvus, values, strict=True))):
        ends = (left[0], right[0])
        if None not in (*ends, at) and min(ends) <= at <= max(ends):
            return _between(left, right, at), place
    return None, None


def _between(left: Point, right: Point, at: float | None) -> float | None:
    """The value at an FVU, linear in ln FVU through two neighbouring points. With a block of documents left out, the
    FVU may lie outside them.
    """
    if None in (*left, *right, at) or min(left[0], right[0], at) <= 0:
        return None
    if left[0] == right[0]:
        return (left[1] + right[1]) / 2
    share = math.log(at / left[0]) / math.log(right[0] / left[0])
    return left[1] + share * (right[1] - left[1])


def _left_out_errors(points: Mapping[int, dict], quantity: Quantity) -> list[float]:
    """The errors at the inner k, each left out and interpolated from its neighbours."""
    curve = [(value_of(points[k], FVU), value_of(points[k], quantity)) for k in sorted(points)]
    errors = []
    for before, (fvu, value), after in zip(curve, curve[1:], curve[2:], strict=False):
        read = _between(before, after, fvu)
        if None not in (read, value):
            errors.append(abs(read - value))
    return errors
