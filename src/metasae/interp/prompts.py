"""Windows as a judge reads them, the questions, and what is read of a reply. Marked tokens stand between << and >>.

Every question says in words what its reply looks like, as not every server holds its model to the schema.

The probability of a yes in a list of yes and no comes from the log probabilities beside the reply. Where the reply's
text has `true` or `false`, the token that begins it has alternatives. Those that would begin `true` are a yes, those
that would begin `false` a no (spaces, commas and brackets before them left aside), and the rest does not count:

    P(yes) = sum of p over the yes / sum of p over yes and no

The model has written its earlier answers of the list by then, so the numbers are of one list, in its order.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from metasae.interp.draws import Windows
from metasae.interp.excerpts import Text
from metasae.interp.replies import Ask, Reply
from metasae.measures.firing.by_latent import ByLatent

OPEN, CLOSE = "<<", ">>"
# What the two texts of a choice are called.
LETTERS = ("A", "B")
# Tokens of a reply: per item of a list, and what stands round them.
PER_ITEM, ROUND, EXPLANATION = 8, 32, 160
# A list of answers, which a reply that was cut off does not close.
_LIST = re.compile(r'"answers"\s*:\s*\[(?P<answers>[^\]]*)')
_ANSWER = re.compile(r"true|false")
_BEFORE = " \t\r\n,[:"

_FEATURE = "A feature of a language model is active on some tokens of a text and silent on the others. "
_JUDGED = _FEATURE + "You see an explanation of one feature, and numbered texts"
_YES_OR_NO = 'Reply with JSON, one true or false for each text, in their order: {"answers": [...]}.'
EXPLAIN = (
    f"{_FEATURE}You see short texts in which tokens on which one feature is active stand between {OPEN} and {CLOSE}. "
    "Say in one short sentence what these tokens have in common and the rest has not: their meaning, their form or "
    "what stands round them. Be as specific as the texts allow. "
    'Reply with JSON: {"explanation": "the sentence"}.'
)
DETECT = f"{_JUDGED}. Say for each text whether the feature is active on any token of it. {_YES_OR_NO}"
MARKS = (
    f"{_JUDGED} with tokens marked by {OPEN} and {CLOSE}. Say for each text whether "
    f"the marked tokens are those on which the feature is active. {_YES_OR_NO}"
)
SIMULATE = (
    f"{_JUDGED}. Say for each text how strongly the feature is active on its last "
    "token: a whole number from 0, not at all, to 10, as strongly as ever. "
    'Reply with JSON, one number for each text, in their order: {"answers": [...]}.'
)
CHOOSE = (
    f"{_FEATURE}You see an explanation of one feature and two texts, A and B. The feature is active in one; the other "
    "is the same with the tokens it is active on replaced. Say in which text it is active. "
    'Reply with JSON: {"answer": "the letter"}.'
)
INTRUDE = (
    f"You see five numbered texts with the same token, marked by {OPEN} and {CLOSE}. In four of them it is used alike: "
    "in one meaning, one role or one kind of surroundings. One text is the intruder. Say which. "
    'Reply with JSON: {"intruder": its number}.'
)


@dataclass(frozen=True)
class Shown:
    """A window as it is shown. strings: the text of each token. marked: bool [L]."""

    strings: tuple[str, ...]
    marked: np.ndarray

    def __str__(self) -> str:
        pieces, inside = [], False
        for string, mark in zip(self.strings, self.marked, strict=True):
            # spaces before a token stay outside its mark
            word = string.lstrip(" ")
            if mark and not inside:
                pieces += [string.removesuffix(word), OPEN, word]
            else:
                pieces += [CLOSE, string] if inside and not mark else [string]
            inside = bool(mark)
        return " ".join("".join([*pieces, CLOSE if inside else ""]).split())


def shown(text: Text, windows: Windows, view: ByLatent | None = None, latent: int = -1) -> list[Shown]:
    """The windows, with the tokens marked on which the latent fires; no marks without a view."""
    fires = np.zeros(0, np.int32) if view is None else view.latent(latent)[0]
    windows_shown = []
    for start in windows.starts.tolist():
        marked = np.zeros(windows.length, bool)
        low, high = np.searchsorted(fires, [start, start + windows.length])
        marked[fires[low:high] - start] = True
        windows_shown.append(Shown(tuple(text.strings(start, windows.length)), marked))
    return windows_shown


def explain(windows: Sequence[Shown]) -> Ask:
    return Ask(EXPLAIN, _numbered(windows), _object({"explanation": {"type": "string"}}), EXPLANATION)


def per_window(question: str, explanation: str, item: dict, windows: Sequence[Shown]) -> Ask:
    """One answer per window, each of the JSON type `item`, in a list under `answers`."""
    count = len(windows)
    answers = {"type": "array", "items": item, "minItems": count, "maxItems": count}
    user = f"Explanation: {explanation}\n\n{_numbered(windows)}"
    return Ask(question, user, _object({"answers": answers}), ROUND + PER_ITEM * count)


def choose(explanation: str, windows: Sequence[Shown]) -> Ask:
    """windows: two."""
    texts = "\n".join(f"{letter}: {window}" for letter, window in zip(LETTERS, windows, strict=True))
    schema = _object({"answer": {"type": "string", "enum": list(LETTERS)}})
    return Ask(CHOOSE, f"Explanation: {explanation}\n\n{texts}", schema, ROUND)


def intrude(windows: Sequence[Shown]) -> Ask:
    number = {"type": "integer", "minimum": 1, "maximum": len(windows)}
    return Ask(INTRUDE, _numbered(windows), _object({"intruder": number}), ROUND)


def field_of(reply: Reply | None, name: str):
    """A field of a reply's JSON object; None where it was not answered or cannot be read."""
    if reply is None:
        return None
    start, end = reply.text.find("{"), reply.text.rfind("}")
    try:
        fields = json.loads(reply.text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    return fields.get(name) if isinstance(fields, dict) else None


def choice_of(reply: Reply | None, count: int, name: str, allowed: Sequence) -> list | None:
    """[the field], where it is one of these very values, of their type; else None."""
    choice = field_of(reply, name)
    return [choice] if choice in allowed and type(choice) is type(allowed[0]) else None


def answers_of(reply: Reply | None, count: int, kind: type) -> list | None:
    """`answers`, where it is a list of so many of this very type; else None."""
    answers = field_of(reply, "answers")
    readable = isinstance(answers, list) and len(answers) == count and all(type(answer) is kind for answer in answers)
    return answers if readable else None


def yes_probabilities(reply: Reply, count: int) -> list[float] | None:
    """P(yes) of each of `count` answers; None where the reply has no log probabilities or they do not fit its list."""
    tokens = [token for token, _ in reply.logprobs or ()]
    text, ends = "".join(tokens), list(accumulate(map(len, tokens)))
    answers = _LIST.search(text)
    if answers is None:
        return None
    offsets = [match.start() for match in _ANSWER.finditer(text, *answers.span("answers"))]
    # a token may hold the end of one answer and the beginning of the next, whose alternatives cannot be told apart then
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


def _numbered(windows: Sequence[Shown]) -> str:
    return "\n".join(f"{number}. {window}" for number, window in enumerate(windows, 1))


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
