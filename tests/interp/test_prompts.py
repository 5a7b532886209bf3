"""What a judge is shown, and what is made of what it says."""

import numpy as np
import pytest
from worlds import random_firings, text_of, view_of

from metasae.interp import prompts
from metasae.interp.draws import Windows
from metasae.interp.marks import Shown
from metasae.interp.prompts import shown
from metasae.interp.reading import answers_of, choice_of, field_of, is_readable
from metasae.interp.replies import Reply


@pytest.mark.parametrize(
    ("strings", "marked", "expected"),
    [
        ((" the", " cat", " sat"), (0, 1, 0), "the <<cat>> sat"),
        ((" the", " cat", "s", " sat"), (0, 1, 1, 0), "the <<cats>> sat"),
        ((" un", "happy", " cat"), (0, 1, 0), "un<<happy>> cat"),
        ((" a", " b"), (1, 1), "<<a b>>"),
        ((" a", " b"), (0, 0), "a b"),
        ((" a", "\n\n", " b"), (1, 0, 1), "<<a>>↵↵ <<b>>"),
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
        ('{"answers": ["true", "False"]}', [True, False]),
        ('{"answers": ["yes", "no"]}', None),
        ('A set {a, b} is meant. {"answers": [true, false]} I hope {so}.', [True, False]),
        ('<think>perhaps {"answers": [false, false]}</think> {"answers": [true, false]}', [True, False]),
        ('<think>perhaps {"answers": [true, false]}', None),
        ('{"answers": [false, false]}\nNo: {"answers": [true, false]}', [True, False]),
        ('{"answers": [true, false]} {"because": "it {does}"}', [True, False]),
        ('{"thought": "not {\\"answers\\": [false, false]}", "answers": [true, false], "sure": 1}', [True, False]),
        ('{"reply": {"answers": [true, false]}}', [True, False]),
        ('{"answers": [true, false]} {"answers": [true', [True, False]),
        ('{"answers": [true, false]} {"answers": []}', None),
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


def test_numbers_may_come_as_text_but_no_other_type_for_another():
    assert answers_of(Reply('{"answers": ["0", " 7 "]}'), 2, int) == [0, 7]
    assert answers_of(Reply('{"answers": ["0", "seven"]}'), 2, int) is None
    assert answers_of(Reply('{"answers": [0.5, 1]}'), 2, int) is None
    assert choice_of(Reply('{"intruder": "3"}'), 1, "intruder", range(1, 6)) == [3]
    assert choice_of(Reply('{"intruder": "9"}'), 1, "intruder", range(1, 6)) is None
    assert choice_of(Reply('{"answer": true}'), 1, "answer", ("A", "B")) is None


def test_a_reply_that_was_cut_off_is_no_answer():
    assert answers_of(Reply('{"answers": [true, false]}', cut=True), 2, bool) is None


def test_whether_a_reply_can_be_read_follows_from_the_question():
    window = Shown((" a",), np.array([True]))
    yes = prompts.per_window(prompts.DETECT, "e", {"type": "boolean"}, [window] * 2)
    strength = {"type": "integer", "minimum": 0, "maximum": 10}
    cases = [
        (prompts.explain([window]), '{"explanation": "words"}', '{"explanation": " "}'),
        (yes, '{"answers": [true, false]}', '{"answers": [true]}'),
        (prompts.per_window(prompts.SIMULATE, "e", strength, [window] * 2), '{"answers": [1, 2]}', '{"answers": "12"}'),
        (prompts.choose("e", [window] * 2), '{"answer": "B"}', '{"answer": "C"}'),
        (prompts.intrude([window] * 5), '{"intruder": 5}', '{"intruder": 6}'),
    ]
    for ask, good, bad in cases:
        assert is_readable(ask, Reply(good)) and not is_readable(ask, Reply(bad)), ask.system
        assert not is_readable(ask, Reply(good, cut=True)) and not is_readable(ask, Reply("I cannot help with that."))
