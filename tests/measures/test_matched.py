"""Dependence of firing between two SAEs: at equal rates, and only at equal L0."""

import json

import numpy as np
import pytest

from metasae.arms.folder import Arm
from metasae.compare.catalogue import CATALOGUE, reading
from metasae.compare.compare import Measured, _matched
from metasae.compare.matched import dependence_at_equal_rates, why_no_dependence
from metasae.measures.cofiring.phi_sums import bands_of, rate_edges

KEY = "cooccurrence.dependence_at_equal_rates"


def measures(cells, l0):
    conditions = {"sae": "digest", "l0_realised": l0}
    return {
        "conditions": conditions,
        "cooccurrence": {"dependence": {"value": 0.0, "rate_cells": cells}, "l0_realised": l0},
    }


def cells(**lists):
    return {"frequent": [0.1, 0.01], "rare": [0.01, 0.01], "expected": [30.0, 10.0], "dependence": [0.2, 0.8]} | lists


def test_by_hand_weights_are_what_both_expect():
    a, b = measures(cells(), 32.0), measures(cells(expected=[10.0, 30.0], dependence=[0.2, 0.8]), 32.3)
    # alike in every cell, so equal, while the plain numbers are 0.35 and 0.65
    assert dependence_at_equal_rates(a, b) == (pytest.approx(0.5), pytest.approx(0.5))
    other = measures(cells(frequent=[0.1, 0.001], rare=[0.01, 0.001]), 32.0)
    assert dependence_at_equal_rates(a, other) == (pytest.approx(0.2), pytest.approx(0.2))


@pytest.mark.parametrize("l0,compared", [(32.32, True), (32.33, False), (31.69, True), (31.68, False), (36.0, False)])
def test_no_number_where_l0_differs_by_more_than_one_percent(l0, compared):
    a, b = measures(cells(), 32.0), measures(cells(), l0)
    for one, other in ((a, b), (b, a)):
        assert (None not in dependence_at_equal_rates(one, other)) == compared
        assert why_no_dependence(one, other) == (
            "" if compared else f"realised L0 {min(32.0, l0):.4g} and {max(32.0, l0):.4g} differ by more than 1%"
        )


def test_not_measured_is_no_number_and_needs_no_reason():
    for other in ({}, {"cooccurrence": {"l0_realised": 40.0}}):
        assert dependence_at_equal_rates(measures(cells(), 32.0), other) == (None, None)
        assert why_no_dependence(measures(cells(), 32.0), other) == ""


def test_the_comparison_notes_the_reason(tmp_path):
    def arm(*l0s):
        return {
            seed: Measured(Arm("joint", seed, tmp_path), measures(cells(), l0)) for seed, l0 in enumerate(l0s) if l0
        }

    alike = _matched(arm(32.0, 32.0), arm(32.1, 32.1))[KEY]
    assert alike.difference == 0 and alike.n_seeds == 2 and "L0" not in alike.note
    one = _matched(arm(32.0, 36.0), arm(32.1, 32.0))[KEY]
    assert one.n_seeds == 1 and "seed 1: realised L0 32 and 36 differ by more than 1%" in one.note
    none = _matched(arm(36.0, 36.0), arm(32.0, 32.0))[KEY].as_dict()
    assert none["difference"] is None and none["n_seeds"] == 0 and none["note"].count("realised L0") == 2
    json.dumps(none)
    without = {0: Measured(Arm("solo", 0, tmp_path), {"conditions": {}})}
    assert KEY not in _matched(without, without)


def sampled(spread, seed):
    """Pairs whose ties fall with their rates, (lift - 1)^2 = (p q)^-1/2, over log-normal rates: cells and plain
    number."""
    rng = np.random.default_rng(seed)
    rates = np.sort(np.exp(rng.normal(-5, spread, 1500)).clip(1e-7, 0.5))
    high, low = np.tril_indices(len(rates), -1)
    expected = 60_000 * rates[high] * rates[low]
    squares, bands = expected / np.sqrt(rates[high] * rates[low]), bands_of(rates)
    sums = np.zeros((2, 32, 32))
    np.add.at(sums[0], (bands[high], bands[low]), squares)
    np.add.at(sums[1], (bands[high], bands[low]), expected)
    frequent, rare = np.nonzero(sums[1])
    squares, expected = sums[:, frequent, rare]
    edges = rate_edges()
    return {
        "frequent": edges[frequent].tolist(),
        "rare": edges[rare].tolist(),
        "expected": expected.tolist(),
        "dependence": (squares / expected).tolist(),
    }, squares.sum() / expected.sum()


def test_wider_rates_alone_move_the_plain_number_and_hardly_the_matched_one():
    (wide, plain_wide), (narrow, plain_narrow) = sampled(1.3, 0), sampled(1.0, 1)
    of_wide, of_narrow = dependence_at_equal_rates(measures(wide, 32.0), measures(narrow, 32.0))
    assert abs(plain_wide / plain_narrow - 1) > 0.2 and abs(of_wide / of_narrow - 1) < 0.02


def test_the_row_says_the_reason(tmp_path):
    (quantity,) = (q for q in CATALOGUE if q.key == KEY)
    pair = [
        {0: Measured(Arm(name, 0, tmp_path), measures(cells(), l0))} for name, l0 in (("joint", 36.0), ("solo", 32))
    ]
    assert "seed 0: realised L0 32 and 36 differ by more than 1%" in reading(quantity, _matched(*pair)[KEY].as_dict())
    assert quantity.main and quantity.better is None and not quantity.in_words
