"""Reads the answers in a judge's reply.

A reply may contain more than was asked for: a thought before the answer, remarks after it, objects that are drafts or
examples. The last whole JSON object that has the field is read. Numbers, letters and yes or no may come as text ("3",
"true"). A reply that was cut off counts as no answer, whatever it contains.

The probability of a yes in a list of yes and no comes from the log probabilities beside the reply. Where the reply's
text has `true` or `false`, the token that begins it has alternatives. Those that would begin `true` are a yes, those
that would begin `false` a no (spaces, commas and brackets before them left aside), and the rest does not count:

    P(yes) = sum of p over the yes / sum of p over yes and no

The model has already written the earlier answers of the list, so the probabilities are those of one list, in its order.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from metasae.interp.replies import Ask, Reply

# A list of answers. A reply that was cut off does not close it.
_LIST = re.compile(r'"answers"\s*:\s*\[(?P<answers>[^\]]*)')
_ANSWER = re.compile(r"true|false", re.IGNORECASE)
_BEFORE = ' \t\r\n,[:"'
_NUMBER = re.compile(r"-?\d{1,9}")
_WORDS = {"true": True, "false": False}
# The tags round a thought in the text of many models.
_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"
_DECODER = json.JSONDecoder()


def is_readable(ask: Ask, reply: Reply) -> bool:
    """Whether a reply has an answer of the form that the question's schema asks for; any whole one, where it asks for
    no field.
    """
    if is_cut(reply):
        return False
    for name, field in ask.schema.get("properties", {}).items():
        return _has(reply, name, field)
    return True


def is_cut(reply: Reply) -> bool:
    """Whether a reply ended at its limit, as its server says, or in the middle of a thought."""
    return reply.cut or reply.text.rfind(_THOUGHT) > reply.text.rfind(_THOUGHT_ENDS)


def _has(reply: Reply, name: str, field: Mapping) -> bool:
    if "enum" in field:
        return choice_of(reply, 1, name, field["enum"]) is not None
    if field["type"] == "array":
        kind = bool if field["items"]["type"] == "boolean" else int
        return answers_of(reply, field["minItems"], kind) is not None
    if field["type"] == "integer":
        return choice_of(reply, 1, name, range(field["minimum"], field["maximum"] + 1)) is not None
    words = field_of(reply, name)
    return isinstance(words, str) and bool(words.strip())


def field_of(reply: Reply | None, name: str):
    """A field of the last whole JSON object of a reply that has it; None where it was not answered, was cut off or
    cannot be read.
    """
    if reply is None or is_cut(reply):
        return None
    value = None
    for fields in _objects(reply.text, name):
        value = fields[name]
    return value


def choice_of(reply: Reply | None, count: int, name: str, allowed: Sequence) -> list | None:
    """[the field], where it is one of these values, of their type; else None."""
    choice = _as(field_of(reply, name), type(allowed[0]))
    return [choice] if choice is not None and choice in allowed else None


def answers_of(reply: Reply | None, count: int, kind: type) -> list | None:
    """`answers`, where it is a list of `count` values of this type; else None."""
    answers = field_of(reply, "answers")
    if not isinstance(answers, list) or len(answers) != count:
        return None
    read = [_as(answer, kind) for answer in answers]
    return None if None in read else read


def _as(value, kind: type):
    """A value as of this type: itself, or a number or a yes or no that came as text; None where it is another."""
    if type(value) is kind:
        return value
    if isinstance(value, str) and kind is not str:
        word = value.strip().lower()
        return _WORDS.get(word) if kind is bool else int(word) if _NUMBER.fullmatch(word) else None
    return None


def _objects(text: str, name: str) -> Iterator[dict]:
    """The whole JSON objects with this field, in their order; of one within another the outer one."""
    place = text.find("{")
    while place >= 0:
        end = place + 1
        try:
            fields, stop = _DECODER.raw_decode(text, place)
            if name in fields:
                yield fields
                end = stop
        except (ValueError, RecursionError):
            # a brace of the text, or an object that was never closed
            pass
        place = text.find("{", end)


def yes_probabilities(reply: Reply, count: int) -> list[float] | None:
    """P(yes) of each of `count` answers; None where the reply has no log probabilities or they do not fit its list."""
    tokens = [token for token, _ in reply.logprobs or ()]
    text, ends = "".join(tokens), list(accumulate(map(len, tokens)))
    # the last is the one that is read; a thought may hold others
    *_, answers = [None, *_LIST.finditer(text)]
    if answers is None:
        return None
    offsets = [match.start() for match in _ANSWER.finditer(text, *answers.span("answers"))]
    # a token may contain the end of one answer and the beginning of the next; then the alternatives of the two cannot
    # be separated
    places = [bisect_right(ends, offset) for offset in offsets]
    if len(offsets) != count or len(set(places)) != count:
        return None
    shares = [_yes(reply.logprobs[place][1]) for place in places]
    return None if None in shares else shares


def _yes(alternatives: Mapping[str, float]) -> float | None:
    """The share of yes among the alternatives that are a yes or a no; None without any."""
    weights = {"true": 0.0, "false": 0.0}
    for token, logprob in alternatives.items():
        begun = token.lstrip(_BEFORE)
        for word in weights:
            if begun and (word.startswith(begun) or begun.startswith(word)):
                weights[word] += math.exp(logprob)
    total = sum(weights.values())
    return weights["true"] / total if total > 0 else None
