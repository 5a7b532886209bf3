"""Dictionaries with a known answer: what each measure says of them, as docs/measures.md has it over more worlds."""

import functools

import pytest

from benchmarks.cases import table
from tools.case_measures import MEASURES, Reading, read_case
from tools.cases import CASES
from tools.fakes import FAKES

SEEDS = range(3)
# Measures that none of the first cases turns in so few worlds; the fakes turn most of them.
STEADY = (
    "dependence of firing",
    "meta VE beyond covariance",
    "meta VE excess",
    "sense coverage F1",
    "truth: blend rate",
    "truth: uniqueness",
)
NOT_MORE = [
    "thinned_firing",
    "widened_rates",
    "noisy_rows",
    "lower_k",
    "duplicated",
    "duplicated_in_turns",
    "undertrained",
    "narrower",
]
FOOLING = ("thinned_firing", "lower_k", "narrower")


@functools.cache
def says_of_what_is_not_more(name):
    labels = (*STEADY, "mean |phi|") if name in FOOLING else STEADY
    return says(name, labels)


def says(name, labels):
    return {
        label: reading.says
        for label, reading in read_case(name, SEEDS, {label: MEASURES[label] for label in labels}).items()
    }


TRAINED = {"higher_k", "eer_rule"}
MORE = {"split_senses", "split_senses_at_width", "composites_to_atoms"}


def test_every_case_is_looked_at():
    assert set(CASES) == {*NOT_MORE, *TRAINED, *FAKES, *MORE}


@pytest.mark.parametrize("name", [*FAKES, *sorted(TRAINED)])
def test_recovery_and_cosine_are_turned_by_no_fake(name):
    assert "more" not in says(name, ("recovery F1", "cosine")).values()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("merged_at_random", "dependence of firing"),
        ("swapped_identities", "dependence of firing"),
        ("false_firings", "dependence of firing"),
        ("junk_latents", "dependence of firing"),
        ("strongest_kept", "mean |phi|"),
        ("junk_latents", "mean |phi|"),
    ],
)
def test_what_a_fake_turns(name, label):
    assert says(name, (label,)) == {label: "more"}


@pytest.mark.parametrize("name", ["merged_at_random", "merged_apart", "junk_latents", "dense_latents", "higher_k"])
def test_what_turns_dependence_does_not_turn_it_at_equal_rates_and_l0(name):
    assert says(name, ("dependence at equal rates",))["dependence at equal rates"] in ("less", "same", "none")


def test_noise_and_rotation_turn_what_looks_at_rows():
    for name in ("rotated_rows", "noise_of_length_1"):
        assert set(says(name, ("nearest decoder cosine", "two-row fit, excess")).values()) == {"more"}
    assert says("merged_at_random", ("truth: blend rate",)) == {"truth: blend rate": "less"}


@pytest.mark.parametrize("name", NOT_MORE)
def test_what_is_not_more_atomic_does_not_look_it(name):
    verdicts = {label: word for label, word in says_of_what_is_not_more(name).items() if label in STEADY}
    assert len(verdicts) == len(STEADY) and "more" not in verdicts.values(), verdicts


@pytest.mark.parametrize("name", FOOLING)
def test_mean_phi_alone_is_fooled(name):
    assert says_of_what_is_not_more(name)["mean |phi|"] == "more"


WORDS = ("truth: blend rate", "sense coverage F1")


@pytest.mark.parametrize(
    "name, labels",
    [
        ("split_senses", (*WORDS, "sense atomicity, matched")),
        ("split_senses_at_width", (*WORDS, "meta VE / r", "meta VE beyond covariance")),
        (
            "composites_to_atoms",
            (
                "truth: blend rate",
                "truth: uniqueness",
                "meta VE excess",
                "meta VE beyond covariance",
            ),
        ),
    ],
)
def test_what_is_more_atomic_looks_it(name, labels):
    assert set(says(name, labels).values()) == {"more"}


def test_the_table_of_cases_marks_and_counts_what_is_fooled():
    truth = {"one_case": "not more atomic", "other": "more atomic"}
    says = {"one_case": ("more", "less", "none"), "other": ("more", "same", "none")}
    labels = ["a |b|", "b", "c"]
    readings = {
        name: {label: Reading(0.0, 0.0, word) for label, word in zip(labels, words, strict=True)}
        for name, words in says.items()
    }
    lines = table(labels, readings, truth).splitlines()
    assert lines[0] == r"| case | in truth | a \|b\| | b | c |"
    assert lines[2:] == [
        "| one case | not more | more ! | less | - |",
        "| other | more | more | = ! | - ! |",
        "| *fooled* | | 1 | 1 | 1 |",
    ]
