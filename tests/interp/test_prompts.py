"""What a judge is shown, and what is made of what it says."""

import numpy as np
import pytest
from worlds import random_firings, text_of, view_of

from metasae.interp import prompts
from metasae.interp.draws import Windows
from metasae.interp.prompts import Shown, answers_of, field_of, shown
from metasae.interp.replies import Reply


@pytest.mark.parametrize(
    ("strings", "marked", "expected"),
    [
        ((" the", " cat", " sat"), (0, 1, 0), "the <<cat>> sat"),
        ((" the", " cat", "s", " sat"), (0, 1, 1, 0), "the <<cats>> sat"),
        ((" un", "happy", " cat"), (0, 1, 0), "un<<happy>> cat"),
        ((" a", " b"), (1, 1), "<<a b>>"),
        ((" a", " b"), (0, 0), "a b"),
        ((" a", "\n\n", " b"), (1, 0, 1), "<<a>> <<b>>"),
        ((" a",), (1,), "<<a>>"),
    ],
)
def test_marks_stand_round_tokens_and_a_window_is_one_line(strings, marked, expected):
    assert str(Shown(strings, np.array(marked, bool))) == expected


def test_the_marked_tokens_are_those_on_which_the_latent_fires():
    firings = random_firings()
    text, view, on = text_of(firings), view_of(firings), firings.csr.toarray() > 0
    windows = Windows(np.arange(0, 60, 7), np.arange(0, 60, 7), np.ones(9, np.float32), np.zeros(9, np.int8), 6)
    for latent in range(firings.n_latents):
        for window, start in zip(shown(text, windows, view, latent), windows.starts, strict=True):
            assert (window.marked == on[start : start + 6, latent]).all() and list(window.strings) == text.strings(
                start, 6
            )
    assert not any(window.marked.any() for window in shown(text, windows))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answers": [true, false]}', [True, False]),
        ('Here it is:\n```json\n{"answers": [true, false]}\n```', [True, False]),
        ('{"answers": [true]}', None),
        ('{"answers": [1, 0]}', None),
        ('{"answers": "true, false"}', None),
        ('{"answers": [true, fal', None),
        ('{"answer": [true, false]}', None),
        ("[true, false]", None),
        ("", None),
        ("}{", None),
        ("{" * 5000, None),
    ],
)
def test_only_a_reply_of_the_right_shape_is_read(text, expected):
    assert answers_of(Reply(text), 2, bool) == expected


def test_a_yes_is_no_number_and_no_reply_is_none():
    assert answers_of(Reply('{"answers": [true, 3]}'), 2, int) is None and answers_of(
        Reply('{"answers": [0, 3]}'), 2, int
    ) == [0, 3]
    assert field_of(None, "answer") is None and field_of(Reply('{"answer": "B"}'), "answer") == "B"


def test_every_question_names_the_shape_of_its_reply():
    window = Shown((" a",), np.array([True]))
    asks = [
        prompts.explain([window]),
        prompts.choose("e", [window] * 2),
        prompts.per_window(prompts.DETECT, "e", {"type": "boolean"}, [window] * 3),
    ]
    for ask in asks:
        assert (
            ask.schema["type"] == "object"
            and ask.schema["required"] == list(ask.schema["properties"])
            and not ask.schema["additionalProperties"]
        )
    answers = asks[2].schema["properties"]["answers"]
    assert answers["minItems"] == answers["maxItems"] == 3
