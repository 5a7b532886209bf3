import numpy as np
import pytest

from metasae.intervals.families import adjust, holm
from metasae.intervals.statistics import is_clear, paired_difference


def test_four_measures_by_hand():
    # Holm's own steps: .005 x 4, .01 x 3, .03 x 2, then .04 x 1 raised to .06
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert [name for name, p in adjusted.items() if p <= 0.05] == ["a", "d"] and list(adjusted) == [
        "a",
        "b",
        "c",
        "d",
    ]


def slow_holm(p_values, level):
    """Step by step: reject the smallest while p <= level / (number of those left)."""
    left, rejected = dict(p_values), set()
    while left:
        name = min(left, key=left.get)
        if left[name] > level / len(left):
            break
        rejected.add(name)
        del left[name]
    return rejected


def test_rejections_are_those_of_the_steps():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = {
            str(place): float(p)
            for place, p in enumerate(rng.choice([0.0, 0.004, 0.01, 0.0125, 0.02, 0.3, 1.0], rng.integers(1, 8)))
        }
        assert {name for name, p in holm(p_values).items() if p <= 0.05} == slow_holm(p_values, 0.05)


def test_measures_without_a_p_value_do_not_count():
    adjusted = holm({"a": 0.02, "b": None, "c": 0.03})
    assert adjusted["a"] == 0.04 and adjusted["b"] is None
    assert holm({}) == {}


def test_the_family_errs_at_most_at_its_level():
    # 500 families of five true nulls and one real effect, the measures of a family correlated
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        common = rng.normal(size=(1, 5))
        nulls = 0.7 * common + 0.7 * rng.normal(size=(5, 5))
        values = {**{f"null {place}": row for place, row in enumerate(nulls)}, "real": 5 + rng.normal(size=5)}
        nothing = dict.fromkeys(range(5), 0.0)
        p_values = {name: paired_difference(dict(enumerate(row)), nothing).p for name, row in values.items()}
        wrong += any(p <= 0.05 for name, p in holm(p_values).items() if name != "real")
    assert wrong / 500 <= 0.07, f"a true null was rejected in {wrong / 5:.1f}% of families"


def test_families_are_adjusted_apart():
    step = paired_difference({0: 1.1, 1: 1.2, 2: 1.3}, {0: 1.0, 1: 1.1, 2: 1.21})
    adjusted = adjust(
        {"a": step, "b": step, "c": step, "d": step}, {"a": "atomicity", "b": "atomicity", "c": "fidelity", "d": None}
    )
    assert (
        adjusted["a"].p_holm == adjusted["b"].p_holm == 2 * step.p
        and adjusted["c"].p_holm == step.p
        and adjusted["d"].p_holm is None
    )
    assert adjusted["a"].as_dict()["p_holm"] == 2 * step.p and adjusted["a"].ci95 == step.ci95


def test_a_difference_that_does_not_survive_its_family_is_not_clear():
    clear = paired_difference({0: 1.1, 1: 1.16, 2: 1.32}, {0: 1.0, 1: 1.0, 2: 1.11})
    assert 0.025 < clear.p < 0.05 and is_clear(clear.as_dict())
    other = paired_difference({0: 1.0, 1: 1.2, 2: 1.1}, {0: 1.1, 1: 1.1, 2: 1.1})
    assert not is_clear(adjust({"a": clear, "b": other}, {"a": "atomicity", "b": "atomicity"})["a"].as_dict())
