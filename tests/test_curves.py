"""Cost curves: the fitted power laws, the turns that points take, what is left out, and the whole command on tiny
shapes.
"""

import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import curves
import curves_phi
import curves_show
from curves_fit import Point, Series, fit, fit_upper, round_robin


@pytest.mark.parametrize("exponent, factor", [(1.0, 3e-4), (2.0, 1e-9), (0.0, 0.7), (-0.5, 2.0), (1.37, 5.0)])
def test_an_exact_power_law_gives_its_exponent_and_no_error(exponent, factor):
    x = [2048, 4096, 8192, 16384, 40960]
    fitted = fit(x, [factor * value**exponent for value in x])
    assert fitted.exponent == pytest.approx(exponent, abs=1e-12) and fitted.factor == pytest.approx(factor)
    assert fitted.error == pytest.approx(0, abs=1e-12) and fitted.points == 5


def test_the_error_is_that_of_a_straight_line_fit():
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e5, 9)
    y = 2 * x**1.2 * np.exp(0.3 * rng.standard_normal(9))
    fitted, ((slope, intercept), covariance) = fit(list(x), list(y)), np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert fitted.exponent == pytest.approx(slope) and fitted.error == pytest.approx(math.sqrt(covariance[0, 0]))
    assert math.log(fitted.factor) == pytest.approx(intercept)


def test_known_noise_moves_the_exponent_as_much_as_the_error_says():
    rng = np.random.default_rng(1)
    x = list(np.geomspace(1, 1000, 12))
    fitted = [
        fit(x, [value**1.5 * math.exp(0.1 * noise) for value, noise in zip(x, rng.standard_normal(12), strict=True)])
        for _ in range(500)
    ]
    exponents = np.array([line.exponent for line in fitted])
    true = 0.1 / np.sqrt(np.square(np.log(x) - np.log(x).mean()).sum())
    assert abs(exponents.mean() - 1.5) < 4 * true / math.sqrt(500)
    assert exponents.std() == pytest.approx(true, rel=0.15)
    assert math.sqrt(np.mean([line.error**2 for line in fitted])) == pytest.approx(true, rel=0.1)


def test_there_is_no_exponent_without_two_different_x_or_with_times_that_are_no_times():
    assert fit([], []) is None and fit([8], [1.0]) is None and fit([8, 8], [1.0, 2.0]) is None
    assert fit([1, 2, 4], [1.0, 0.0, 3.0]) is None and fit([1, 2, 4], [1.0, -0.1, 3.0]) is None
    two = fit([1, 2], [1.0, 4.0])
    assert two.exponent == pytest.approx(2) and two.error is None
    assert fit_upper([1, 2], [1.0, 4.0]) is None
    with pytest.raises(ValueError):
        fit([1, 2], [1.0])
    with pytest.raises(ValueError):
        fit([0, 2], [1.0, 2.0])


def test_the_upper_half_is_free_of_a_fixed_cost_and_takes_x_in_any_order():
    x = [4.0, 1.0, 1e6, 1e4, 1e5]
    y = [100 + value for value in x]
    assert fit(x, y).exponent < 0.8 and fit_upper(x, y).exponent == pytest.approx(1, abs=0.01)
    assert fit_upper(x, y).points == 3 and fit_upper([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0]).points == 2


def test_points_take_turns():
    called = []
    samplers = {x: lambda x=x: called.append(x) or {"a": x * 10 + len(called), "b": 0.0} for x in (1.0, 2.0)}
    assert round_robin(samplers, 3) == {
        "a": {1.0: (11, 13, 15), 2.0: (22, 24, 26)},
        "b": {1.0: (0.0,) * 3, 2.0: (0.0,) * 3},
    }
    assert called == [1.0, 2.0] * 3
    assert round_robin({}, 3) == {}


def test_a_series_fits_medians():
    points = tuple(Point(x, (x * 0.9, x, x, x * 50), model=x**2, flops=3 * x) for x in (1.0, 2.0, 4.0))
    series = Series("n", "step", points, skipped={8.0: "too large"})
    assert points[0].quartiles == pytest.approx((0.975, 1.0, 13.25))
    assert [fitted.exponent for fitted in (series.measured, series.upper, series.model, series.flops)] == pytest.approx(
        [1, 1, 2, 1]
    )
    json.dumps(series.as_dict(), allow_nan=False)
    one = Series("n", "step", points[:1])
    assert one.measured is None and one.as_dict()["measured"] is None
    assert "n = 8 was left out: too large." in curves_show.tables([series], {}, [])


def test_the_model_of_the_step_by_hand():
    shape = replace(curves.QUICK.shape, d=2, n=10, k=3, batch=5, m=4)
    rate = {"bf16": 2.0, "bytes": 4.0}
    assert curves.flops(shape) == 2 * 5 * 10 * 2 + 3 * 10 * 4 * 2 and curves.flops(shape, joint=False) == 200
    assert curves.model_seconds(shape, rate) == 440 / 2 + (2 * 5 * 10 + 16 * 3 * 5 * 2 + 64 * 10 * 2) / 4
    assert curves.shape_with(shape, "n", 1000) == replace(shape, n=1000, m=90) and curves.shape_with(
        shape, "B", 7
    ) == replace(shape, batch=7)


def test_the_model_of_the_step_is_the_sum_of_the_floors_of_its_parts():
    plan, rate = replace(curves.QUICK, shapes={"n": (64, 128)}), {"bf16": 2e9, "bytes": 3e9}
    fitted = curves.ends(plan, rate)
    assert list(fitted) == ["base", "n = 64", "n = 128"]
    shapes = (plan.shape, curves.shape_with(plan.shape, "n", 64), curves.shape_with(plan.shape, "n", 128))
    for shape, parts in zip(shapes, fitted.values(), strict=True):
        assert sum(floor for _, _, floor in parts) == pytest.approx(1e3 * curves.model_seconds(shape, rate))
        assert all(ms > 0 for _, ms, _ in parts)
    assert "| n = 128 | " in curves_show.tables([], fitted, []) and curves.ends(plan, rate, limit=10) == {}


def test_full_plan_fits_the_limit_and_has_its_base_in_every_series():
    plan = curves.FULL
    own = {"n": plan.shape.n, "d": plan.shape.d, "k": plan.shape.k, "B": plan.shape.batch}
    for varied, values in plan.shapes.items():
        assert own[varied] in values and list(values) == sorted(values)
        assert not curves.affordable({x: curves.shape_with(plan.shape, varied, x) for x in values}, 2, curves.LIMIT)[1]
        assert curves.shape_with(plan.shape, varied, own[varied]) == plan.shape
    for varied, values in plan.stores.items():
        assert getattr(plan.store, curves_phi.FIELDS[varied]) in values


def test_what_does_not_fit_is_left_out_and_said():
    shapes = {float(n): curves.shape_with(curves.FULL.shape, "n", n) for n in (2048, 4_000_000)}
    kept, skipped = curves.affordable(shapes, 1, curves.LIMIT)
    assert list(kept) == [2048.0] and list(skipped) == [4e6] and "8.0 is the limit" in skipped[4e6]
    (phi,) = curves_phi.phi_series(curves.QUICK.store, "tokens", (4000,), 1, limit=10**6)
    (step,) = curves.step_series(curves.QUICK, "k", {}, limit=10**6)
    assert not phi.points and list(phi.skipped) == [4000.0] and phi.measured is None
    assert (
        not step.points
        and list(step.skipped) == [4.0, 8.0, 16.0]
        and "k = 16 was left out" in curves_show.tables([step, phi], {}, [])
    )


def test_a_drawn_store_knows_its_pairs():
    store = curves_phi.drawn(curves_phi.Store(300, 4, 30))
    indptr, indices = store.entries
    on = [len(set(indices[a:b])) for a, b in pairwise(indptr)]
    assert store.pairs == sum(length * (length + 1) // 2 for length in on) and store.l0 == pytest.approx(sum(on) / 300)
    live = len(set(indices.tolist()))
    assert store.latent_pairs == live * (live - 1) // 2


def test_the_whole_command_on_tiny_shapes(tmp_path, monkeypatch):
    tiny = replace(
        curves.QUICK,
        shape=replace(curves.QUICK.shape, d=16, n=64, k=4, batch=32, m=6, k_m=2),
        shapes={"n": (32, 64), "k": (4,)},
        step_rounds=2,
        store=curves_phi.Store(500, 4, 40),
        stores={"L0": (2, 4, 8)},
    )
    monkeypatch.setattr(curves, "QUICK", tiny)
    # the machine's rates take longer than all of this
    monkeypatch.setattr(curves, "rates", lambda: {"bf16": 1e11, "fp32": 5e10, "bytes": 1e10})
    curves.main(["--out", str(tmp_path / "out"), "--quick"])
    fitted = json.loads((tmp_path / "out" / "curves.json").read_text())
    series = {(line["varied"], line["name"]): line for line in fitted["series"]}
    assert list(series) == [
        ("n", "joint step"), ("n", "solo step"), ("n", "penalty and meta"), ("k", "joint step"),
        ("arms", "joint steps"),
        ("L0", "phi"), ("L0", "counting, core time"), ("L0", "statistics, core time"),
    ]  # fmt: skip
    assert {"cores", "threads", "torch", "dtype", "rates", "peak_bytes"} <= set(fitted["machine"])
    assert series["k", "joint step"]["measured"] is None and len(series["k", "joint step"]["points"]) == 1
    for point in series["n", "joint step"]["points"] + series["L0", "phi"]["points"]:
        low, high = point["quartiles"]
        assert 0 < low <= point["median"] <= high and len(point["seconds"]) == 2
    assert series["arms", "joint steps"]["model"]["exponent"] == pytest.approx(1)
    assert series["L0", "phi"]["points"][1]["x"] == curves_phi.drawn(tiny.store).l0
    assert list(fitted["parts"]) == ["base", "n = 32", "n = 64", "k = 4"] and set(fitted["parts"]["base"][0]) == {
        "part",
        "ms",
        "floor_ms",
    }
    text = (tmp_path / "out" / "curves.md").read_text()
    assert all(f"| {varied} | {name} | " in text for varied, name in series) and "nan" not in text
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
