"""Marks that no text can be taken for, and white space that is seen."""

import numpy as np
import pytest

from metasae.interp import prompts
from metasae.interp.marks import OPEN, PAIRS, Marks, Shown


def window(strings, marked):
    return Shown(tuple(strings), np.array(marked, bool))


@pytest.mark.parametrize(
    ("strings", "marked", "expected"),
    [
        # C++ that writes to a stream
        ((" cout", " <<", " x", " <<", " y"), (0, 0, 1, 0, 0), "cout << [[x]] << y"),
        # one letter of a mark beside a mark would do as well
        ((" a", " <", "b", ">"), (0, 0, 1, 0), "a <[[b]]>"),
        (("m", "[", "i", "]", " <", " n"), (0, 0, 1, 0, 0, 0), "m[⟦i⟧] < n"),
        ((" [<", "⟦", "x"), (0, 0, 1), "[<⟦⟪x⟫"),
        # a firing on white space
        ((" a", "\n", "b"), (0, 1, 0), "a<<↵>>b"),
        ((" a", "\n\n", "    ", "b"), (0, 1, 1, 0), "a<<↵↵␣␣␣␣>>b"),
        ((" a", "    ", " b"), (0, 1, 0), "a<<␣␣␣␣>> b"),
        (("\t", "x"), (1, 0), "<<⇥>>x"),
        ((" a", "\r\n"), (0, 1), "a<<{U+000D}↵>>"),
        ((" a ", "b"), (1, 0), "<<a␣>>b"),
        ((" a", "\u200d", "b"), (0, 1, 0), "a<<{U+200D}>>b"),
        (("e", "\u0301", "t"), (0, 1, 0), "e<<{U+0301}>>t"),
        (("a", "\u2028", "b\x0b"), (0, 0, 0), "a{U+2028}b{U+000B}"),
        # signs that the text holds are replaced by others
        (("↵", "\n", "␣", "  "), (0, 1, 0, 1), "↵<<⏎>>␣<<␠␠>>"),
        # an indentation is not marked and is kept
        (("if", ":\n", "    ", "go", " on"), (0, 0, 0, 1, 0), "if:↵    <<go>> on"),
        # a joiner within an emoji is left where it is
        (("👩", "\u200d", "💻"), (1, 1, 1), "<<👩\u200d💻>>"),
    ],
)
def test_a_window_as_it_is_written(strings, marked, expected):
    assert str(window(strings, marked)) == expected


@pytest.mark.parametrize(
    ("marked", "expected"),
    [((0, 1, 0, 0, 0), "a<<😀>> b"), ((0, 0, 0, 1, 0), "a<<😀>> b"), ((0, 1, 0, 1, 1), "a<<😀 b>>")],
)
def test_a_mark_on_a_part_of_a_character_is_on_the_character(marked, expected):
    assert str(window(("a", "", "", "😀", " b"), marked)) == expected


def test_a_mark_is_never_lost():
    assert str(window(("a", "", ""), (0, 0, 1))) == "<<a>>" and str(window(("", ""), (1, 1))) == ""


def test_a_text_with_every_mark_has_marks_all_the_same():
    everything = "".join(sign for pair in PAIRS for sign in pair) + "mark1> <mark2> ↵⏎␤ ⇥␉ ␣␠ {U+ {line1 {space1 "
    shown = str(window((everything, "x", "\n", "\t", " ", "\r"), (0, 1, 0, 1, 1, 1)))
    assert shown == f"{everything}<mark3>x</mark3>{{line2 <mark3>{{tab1 {{space2 {{char1 000D}}</mark3>"


def test_the_marks_are_those_of_the_question_and_are_named_in_it():
    windows = [window((" a", " b"), (0, 1)), window((" x", " <<", " y"), (0, 0, 1)), window((" c", "\n"), (0, 1))]
    for ask in (
        prompts.explain(windows),
        prompts.per_window(prompts.MARKS, "the explanation", {"type": "boolean"}, windows),
        prompts.intrude(windows),
    ):
        *before, legend, _, first, second, third = ask.user.splitlines()
        assert legend == "[[ stands before and ]] behind what is marked. ↵ is a line break."
        assert (first, second, third) == ("1. a [[b]]", "2. x << [[y]]", "3. c[[↵]]")
        assert before in ([], ["Explanation: the explanation", ""]) and OPEN not in ask.system


def test_what_is_not_used_is_not_named():
    plain = [window((" a", " b"), (0, 0))] * 2
    assert prompts.choose("e", plain).user == "Explanation: e\n\nA: a b\nB: a b"
    assert Marks.of(plain).legend(plain, list(map(Marks.of(plain).line_of, plain))) == ""


def test_every_text_is_one_line_whatever_it_holds():
    odd = "".join(map(chr, range(32))) + "\x85\u2028\u2029\x7f"
    ask = prompts.explain([window((odd, letter), (0, 1)) for letter in odd])
    assert len(ask.user.splitlines()) == len(odd) + 2
