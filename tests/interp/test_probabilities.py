"""Probabilities of yes read off replies, by hand, and the AUC they give."""

import json
from math import log

import numpy as np
import pytest

from metasae.interp.reading import yes_probabilities
from metasae.interp.replies import Reply
from metasae.interp.scores import auc


def reply(*tokens):
    """tokens: a text, or (text, {alternative: probability})."""
    pairs = [token if isinstance(token, tuple) else (token, {token: 1.0}) for token in tokens]
    return Reply(
        "".join(text for text, _ in pairs),
        logprobs=tuple((text, {name: log(p) for name, p in also.items()}) for text, also in pairs),
    )


def test_the_share_of_yes_among_yes_and_no():
    said = reply(
        '{"',
        "answers",
        '":',
        " [",
        ("true", {"true": 0.6, "false": 0.2, "maybe": 0.2}),
        ", ",
        ("false", {"false": 0.9, "true": 0.1}),
        "]}",
    )
    assert yes_probabilities(said, 2) == pytest.approx([0.75, 0.1])


def test_spaces_brackets_and_pieces_of_the_words_count():
    first = ("[true", {"[true": 0.5, "[false": 0.25, " [": 0.2})
    second = (" tr", {" tr": 0.3, " True": 0.4, "f": 0.1, " fal": 0.2})
    assert yes_probabilities(reply('{"answers":', first, ",", second, "ue", "]}"), 2) == pytest.approx([2 / 3, 0.5])


def test_words_before_the_list_and_after_it_do_not_count():
    said = reply('It is true. {"answers": [', ("false", {"false": 1.0}), "] }", " true")
    assert yes_probabilities(said, 1) == [0.0]


@pytest.mark.parametrize(
    "said",
    [
        Reply('{"answers": [true]}'),
        reply('{"answer": [', "true", "]}"),
        reply('{"answers": [', "]}"),
        reply('{"answers": [', "true", ", ", "true", "]}"),
        reply('{"answers": [', ("true", {"yes": 0.9}), "]}"),
        Reply('{"answers": [true]}', logprobs=()),
    ],
)
def test_what_does_not_fit_is_none(said):
    assert yes_probabilities(said, 1) is None


def test_two_answers_in_one_token_cannot_be_told_apart():
    assert yes_probabilities(reply('{"answers": [', "true,true", "]}"), 2) is None


def test_no_threshold_moves_the_auc_and_what_is_not_known_is_a_half():
    yes, no = np.array([0.2, 0.3]), np.array([0.1, 0.25])
    assert auc(yes, no) == 0.75 == auc(yes / 10, no / 10)
    assert (
        auc(np.array([0.9, np.nan]), np.array([0.1])) == 0.75
        and auc(np.array([np.nan]), np.array([np.nan, 1.0])) == 0.5
    )
    assert np.isnan(auc(np.array([]), no))
    assert json.dumps(auc(yes, no)) == "0.75"
