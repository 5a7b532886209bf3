"""Where windows lie and on which side, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import random_firings, text_of

from metasae.errors import UserError
from metasae.interp.choice import InterpSpec
from metasae.interp.excerpts import POSITIONS, Text, WindowSpec, planted_strings, token_strings


def window_of(documents, positions, focus, length, position):
    """(start, whole) by walking."""
    first = focus
    while first > 0 and documents[first - 1] == documents[focus] and positions[first - 1] == positions[first] - 1:
        first -= 1
    last = focus
    while (
        last + 1 < len(documents)
        and documents[last + 1] == documents[focus]
        and positions[last + 1] == positions[last] + 1
    ):
        last += 1
    start = {
        "grid": first + (focus - first) // length * length,
        "centre": focus - length // 2,
        "end": focus - length + 1,
    }[position]
    return start, start >= first and start + length - 1 <= last


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_windows_against_a_walk(position, length):
    firings = random_firings()
    starts, whole = text_of(firings).windows(np.arange(firings.n_tokens), length, position)
    for focus in range(firings.n_tokens):
        start, inside = window_of(firings.documents, firings.positions, focus, length, position)
        assert (starts[focus], bool(whole[focus])) == (start, inside)
        assert not inside or start <= focus < start + length


def test_a_grid_window_is_the_same_for_each_of_its_tokens_and_an_end_window_ends_at_its_focus():
    text = Text(np.zeros(10, np.int32), np.arange(10), np.arange(10), lambda places: [], 0)
    assert text.windows(np.arange(10), 4, "grid")[0].tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert text.windows(np.arange(10), 4, "grid")[1].tolist() == [True] * 8 + [False] * 2
    assert text.windows(np.array([5]), 4, "end")[0].tolist() == [2]
    assert text.windows(np.array([5]), 4, "centre")[0].tolist() == [3]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=0, max_size=30), st.integers(0, 5))
def test_a_document_is_on_one_side_and_the_sides_are_about_equal(lengths, seed):
    documents = np.repeat(np.arange(len(lengths)), lengths)
    text = Text(documents, documents, np.arange(len(documents)), lambda places: [], seed)
    train, score = set(documents[~text.scoring].tolist()), set(documents[text.scoring].tolist())
    assert not train & score and len(train) + len(score) == len(lengths)
    assert abs(int(text.scoring.sum()) - len(documents) / 2) <= max(lengths, default=0)


def test_sides_follow_the_seed():
    firings = random_firings(lengths=(10,) * 40)
    sides = [text_of(firings, seed).scoring for seed in (0, 0, 1)]
    assert (sides[0] == sides[1]).all() and (sides[0] != sides[2]).any()


def test_tokens_with_an_id_on_the_scoring_side():
    firings = random_firings()
    text = text_of(firings)
    for number in range(13):
        assert list(text.scoring_by_id.get(number, [])) == [
            t for t in range(firings.n_tokens) if text.scoring[t] and firings.tokens[t] == number
        ]


def test_strings_of_a_tokenizer_join_to_its_text(build):
    from transformers import AutoTokenizer

    for family in ("gpt2", "bert"):
        tokenizer = AutoTokenizer.from_pretrained(build(family))
        story = "The river ran past the old mill, and the miller counted sacks"
        ids = np.array(tokenizer(story, add_special_tokens=False)["input_ids"])
        strings = token_strings(tokenizer, ids, np.zeros(len(ids)), np.arange(len(ids)))(np.arange(len(ids)))
        assert len(strings) == len(ids) and "".join(strings).split() == tokenizer.decode(ids).split()


def test_strings_of_a_planted_world_name_what_is_on():
    from worlds import planted

    split, _, _, _ = planted(n_tokens=2000)
    strings = planted_strings(split)(np.arange(200))
    dense = split.activations[:200].toarray()
    for place, string in enumerate(strings):
        name, *features = string.strip().split("/")
        assert {int(feature.split(":")[0][1:]) for feature in features} == set(np.flatnonzero(dense[place]).tolist())
        assert int(name[1:]) == split.tokens[place] and (name[0] == "w") == (split.senses[place] >= 0)


def test_a_spec_that_no_window_fits_is_one_line():
    with pytest.raises(UserError) as caught:
        InterpSpec(window=WindowSpec(length=0))
    assert "\n" not in str(caught.value)
