"""Whether a judge can tell, by its numbers alone."""

import pytest

from metasae.interp.standing import agreement_of, doubt_of, is_told, silence_of, standings


def score(low=0.6, estimate=0.7, shuffled=0.5, chance=0.5, interval=True, share=0.9, by_chance=0.5):
    part = {"estimate": estimate, "ci95": [low, 0.8] if interval else None}
    part |= {} if shuffled is None else {"shuffled": {"estimate": shuffled}}
    agreement = {"repeated": 40, "self_agreement": share, "self_agreement_by_chance": by_chance}
    return {"chance": chance, "parts": {"random": part}, **agreement}


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({}, True),
        ({"low": 0.5}, False),
        ({"low": 0.45}, False),
        ({"shuffled": 0.65}, False),
        ({"shuffled": 0.3, "low": 0.51}, True),
        ({"shuffled": None}, True),
        ({"interval": False}, True),
        ({"interval": False, "estimate": 0.5}, False),
        ({"interval": False, "estimate": None}, True),
    ],
)
def test_a_score_is_told_where_its_interval_lies_above_chance_and_the_floor(numbers, told):
    assert is_told(score(**numbers), "random") is told
    assert (doubt_of("detection", score(**numbers)) is None) is told


def test_what_is_said_of_a_score_within_its_floor():
    assert doubt_of("detection", score(low=0.4, estimate=0.55, shuffled=0.52)) == (
        "this judge cannot tell: not above the floor: random 0.550 [0.400, 0.800] against 0.520"
    )
    assert doubt_of("detection", score(interval=False, estimate=0.4)) == (
        "this judge cannot tell: not above the floor: random 0.400 against 0.500"
    )


@pytest.mark.parametrize(
    ("share", "by_chance", "near"),
    [(0.9, 0.5, False), (0.6, 0.5, True), (0.62, 0.5, False), (1.0, 1.0, True), (0.0, 0.0, True), (None, None, False)],
)
def test_agreement_near_chance_is_told_by_kappa(share, by_chance, near):
    said = doubt_of("detection", score(share=share, by_chance=by_chance))
    assert said == ("this judge cannot tell: its agreement with itself is near chance" if near else None)


def test_every_score_with_something_to_say_has_a_line():
    arms = {
        "solo-s0": {"interp": {"scores": {"detection": score(), "embedding": {"chance": 0.5, "parts": {}}}}},
        "joint-s0": {"interp": {"scores": {"detection": score(low=0.4)}}},
    }
    solo, joint = standings(arms)
    assert solo.doubt is None and solo.agreement == agreement_of(score())
    again = "asked again in another order, the judge repeats 90.0% of 40 answers (50.0% by chance)"
    assert solo.line == f"solo-s0, detection: {again}"
    assert joint.line.startswith("joint-s0, detection: this judge cannot tell: ") and joint.line.endswith(again)


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"asked": 7, "unreadable": 5, "failed": 2}, "no score: not one of 7 replies could be read"),
        ({"asked": 0, "unexplained": 4}, "no score: no explanation could be read"),
        ({"asked": 7, "unreadable": 6, "failed": 0}, None),
        ({"asked": 0, "unexplained": 0}, None),
        ({}, None),
    ],
)
def test_a_score_of_which_nothing_was_read_is_said(counts, line):
    score = {"chance": 0.5, "parts": {"random": {"estimate": None, "ci95": None}}, **counts}
    assert silence_of(score) == line
    said = standings({"solo-s0": {"interp": {"scores": {"detection": score}}}})
    assert [standing.line for standing in said] == ([f"solo-s0, detection: {line}"] if line else [])
