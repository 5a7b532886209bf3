"""Dictionaries with a known answer: what must not look more atomic does not, to the measures that the docs call robust;
what is, does."""

import functools

import pytest

from tools.case_measures import MEASURES, read_case
from tools.cases import CASES

SEEDS = range(3)
# over more worlds: the table in docs/measures.md
ROBUST = (
    "lift variance",
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
    labels = (*ROBUST, "mean |phi|") if name in FOOLING else ROBUST
    return says(name, labels)


def says(name, labels):
    return {
        label: reading.says
        for label, reading in read_case(name, SEEDS, {label: MEASURES[label] for label in labels}).items()
    }


def test_every_case_is_looked_at():
    assert set(CASES) == {*NOT_MORE, "split_senses", "split_senses_at_width", "composites_to_atoms"}


@pytest.mark.parametrize("name", NOT_MORE)
def test_what_is_not_more_atomic_does_not_look_it(name):
    verdicts = {label: word for label, word in says_of_what_is_not_more(name).items() if label in ROBUST}
    assert len(verdicts) == len(ROBUST) and "more" not in verdicts.values(), verdicts


@pytest.mark.parametrize("name", FOOLING)
def test_mean_phi_alone_is_fooled(name):
    assert says_of_what_is_not_more(name)["mean |phi|"] == "more"


WORDS = ("truth: blend rate", "sense coverage F1", "lift variance")


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
                "lift variance",
            ),
        ),
    ],
)
def test_what_is_more_atomic_looks_it(name, labels):
    assert set(says(name, labels).values()) == {"more"}
