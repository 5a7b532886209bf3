"""Curves read at equal FVU: against functions with a known answer, and by hand."""

import math

import numpy as np
import pytest

from metasae.compare.catalogue import CATALOGUE
from metasae.intervals.statistics import paired_difference
from metasae.sweep.equal_fvu import at_equal_fvu, at_equal_k, interpolate

PHI = next(quantity for quantity in CATALOGUE if quantity.key == "cooccurrence.mean_abs_phi")


def measures(fvu, phi, blocks=None):
    """blocks: (FVU, mean |phi|) without each block."""
    out = {"fidelity": {"fvu": fvu}, "cooccurrence": {"mean_abs_phi": phi}}
    if blocks:
        out["fidelity"]["leave_one_out"] = {"fvu": [f for f, _ in blocks]}
        out["cooccurrence"]["leave_one_out"] = {"mean_abs_phi": [p for _, p in blocks]}
    return out


def test_a_line_in_the_logarithm_is_read_exactly():
    fvus = [0.4, 0.3, 0.2, 0.1]
    values = [2 + 3 * math.log(fvu) for fvu in fvus]
    for at in (0.4, 0.35, 0.21, 0.1):
        assert interpolate(fvus, values, at)[0] == pytest.approx(2 + 3 * math.log(at))
    assert [interpolate(fvus, values, at)[1] for at in (0.35, 0.25, 0.15)] == [0, 1, 2]


def test_nothing_is_extrapolated():
    assert interpolate([0.4, 0.2], [1.0, 2.0], 0.41) == (None, None) == interpolate([0.4, 0.2], [1.0, 2.0], 0.19)
    assert interpolate([0.4], [1.0], 0.4) == (None, None) == interpolate([0.4, 0.2], [1.0, 2.0], None)
    assert interpolate([0.3, 0.3], [1.0, 2.0], 0.3) == (1.5, 0)


def test_the_difference_is_that_of_the_curve_against_the_target():
    curve = {4: {0: measures(0.4, 1.0), 1: measures(0.5, 1.2)}, 8: {0: measures(0.1, 3.0), 1: measures(0.2, 3.4)}}
    target = {0: measures(0.2, 1.5), 1: measures(0.3, 2.0)}
    compared = at_equal_fvu(curve, target, PHI)
    read = {s: interpolate([curve[4][s]["fidelity"]["fvu"], curve[8][s]["fidelity"]["fvu"]],
                           [curve[4][s]["cooccurrence"]["mean_abs_phi"], curve[8][s]["cooccurrence"]["mean_abs_phi"]],
                           target[s]["fidelity"]["fvu"])[0] for s in (0, 1)}  # fmt: skip
    assert read[0] == pytest.approx(2.0)
    assert compared.items() >= paired_difference(read, {0: 1.5, 1: 2.0}).as_dict().items()
    turned = at_equal_fvu(curve, target, PHI, curve_is_baseline=True)
    assert turned["difference"] == pytest.approx(-compared["difference"]) and turned["b"] == pytest.approx(
        compared["a"]
    )
    assert compared["brackets"] == {"0": [4, 8], "1": [4, 8]} and compared["interpolation_error"] is None


def test_a_seed_whose_fvu_is_not_reached_is_counted_out():
    curve = {4: {0: measures(0.4, 1.0), 1: measures(0.4, 1.0)}, 8: {0: measures(0.1, 3.0), 1: measures(0.3, 3.0)}}
    compared = at_equal_fvu(curve, {0: measures(0.2, 1.5), 1: measures(0.2, 1.5)}, PHI)
    assert (
        compared["n_seeds"] == 1
        and compared["brackets"] == {"0": [4, 8], "1": None}
        and "no pair for seed 1" in compared["note"]
    )
    none = at_equal_fvu({4: curve[4]}, {0: measures(0.2, 1.5)}, PHI)
    assert none["difference"] is None and none["brackets"] == {"0": None, "1": None}


def test_the_interpolation_error_is_that_of_the_inner_points_left_out():
    fvus, values = [0.4, 0.2, 0.1], [1.0, 2.5, 3.0]
    curve = {k: {0: measures(fvu, value)} for k, fvu, value in zip((2, 4, 8), fvus, values, strict=True)}
    # half way in ln FVU between 1 and 3 is 2
    assert at_equal_fvu(curve, {0: measures(0.3, 1.0)}, PHI)["interpolation_error"] == pytest.approx(0.5)


def test_intervals_hold_the_text_when_there_are_blocks():
    rng = np.random.default_rng(0)

    def drawn(fvu, phi):
        return measures(
            fvu, phi, [(fvu * (1 + 0.01 * rng.normal()), phi * (1 + 0.01 * rng.normal())) for _ in range(5)]
        )

    curve = {k: {s: drawn(fvu, phi) for s in (0, 1)} for k, fvu, phi in ((4, 0.4, 1.0), (8, 0.1, 3.0))}
    target = {s: drawn(0.2, 1.4 + 0.1 * s) for s in (0, 1)}
    compared = at_equal_fvu(curve, target, PHI)
    assert compared["n_blocks"] == 5 and compared["ci95"] is not None
    # the same by hand, block by block
    expected = []
    for b in range(5):
        left, right, at = (m[0]["fidelity"]["leave_one_out"]["fvu"][b] for m in (curve[4], curve[8], target))
        low, high = (m[0]["cooccurrence"]["leave_one_out"]["mean_abs_phi"][b] for m in (curve[4], curve[8]))
        expected.append(low + (high - low) * math.log(at / left) / math.log(right / left))
    without = {0: expected, 1: None}
    from metasae.sweep.equal_fvu import _read

    assert _read({k: curve[k][0] for k in curve}, target[0], PHI).without == pytest.approx(without[0])


def test_the_models_output_has_blocks_of_its_own_and_is_read_at_the_fvu_of_the_whole_text():
    output = next(quantity for quantity in CATALOGUE if quantity.key == "fidelity.ce_delta")

    def with_output(fvu, delta, without):
        # FVU's two blocks are other documents than the output's two
        out = measures(fvu, 1.0, [(fvu / 2, 1.0), (fvu * 2, 1.0)])
        out["fidelity"] |= {
            "ce_delta": delta,
            "leave_one_out": {**out["fidelity"]["leave_one_out"], "ce_delta": without},
        }
        return out

    curve = {
        4: {s: with_output(0.4, 1.0, [0.9, 1.1]) for s in (0, 1)},
        8: {s: with_output(0.1, 3.0, [3.2, 2.9]) for s in (0, 1)},
    }
    target = {s: with_output(0.2, 1.5 + s, [1.5 + s, 1.6 + s]) for s in (0, 1)}
    # half way in ln FVU: 2.0 on the whole text, 2.05 and 2.0 without each block
    read, own = {0: 2.0, 1: 2.0}, {0: 1.5, 1: 2.5}
    expected = paired_difference(read, own, {s: [2.05, 2.0] for s in read}, {s: [own[s], own[s] + 0.1] for s in own})
    compared = at_equal_fvu(curve, target, output)
    assert compared["difference"] == pytest.approx(expected.difference) and compared["n_blocks"] == 2
    assert compared["ci95"] == pytest.approx(expected.as_dict()["ci95"])


def test_a_seed_that_is_missing_at_one_k_is_named():
    curve = {4: {0: measures(0.4, 1.0)}, 8: {0: measures(0.1, 3.0), 1: measures(0.1, 3.0)}}
    compared = at_equal_fvu(curve, {0: measures(0.2, 1.5), 1: measures(0.2, 1.5)}, PHI)
    assert compared["n_seeds"] == 1 and "seed 1" in compared["note"]


def test_at_equal_k_only_what_both_have_is_compared():
    one = {4: {0: measures(0.4, 1.0), 1: measures(0.4, 1.5)}, 8: {0: measures(0.1, 3.0), 1: measures(0.1, 3.5)}}
    other = {8: {0: measures(0.1, 2.0), 1: measures(0.1, 2.0)}, 16: {0: measures(0.1, 2.0), 1: measures(0.1, 2.0)}}
    differences = at_equal_k(one, other, [PHI])
    assert differences == {"8": {PHI.key: paired_difference({0: 3.0, 1: 3.5}, {0: 2.0, 1: 2.0}).as_dict()}}
    assert at_equal_k(one, {}, [PHI]) == {}
