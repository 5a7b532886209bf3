"""Windows as a judge reads them, and the questions. Marked tokens stand between << and >>.

Every question says in words what its reply looks like, as not every server and no model in this process is held to the schema.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metasae.interp.draws import Windows
from metasae.interp.replies import Ask, Reply
from metasae.interp.windows import Text
from metasae.measures.firing.by_latent import ByLatent

OPEN, CLOSE = "<<", ">>"
# Tokens of a reply: per item of a list, and what stands round them.
PER_ITEM, ROUND, EXPLANATION = 8, 32, 160

_NEURON = "A feature of a language model is active on some tokens of a text and silent on the others. "
EXPLAIN = (
    _NEURON
    + f"You see short texts in which tokens on which one feature is active stand between {OPEN} and {CLOSE}. Say in one short sentence "
    "what these tokens have in common and the rest has not: their meaning, their form or what stands round them. Be as specific as the texts allow. "
    'Reply with JSON: {"explanation": "the sentence"}.'
)
_YES_OR_NO = 'Reply with JSON, one true or false for each text, in their order: {"answers": [...]}.'
DETECT = (
    _NEURON
    + "You see an explanation of one feature, and numbered texts. Say for each text whether the feature is active on any token of it. "
    + _YES_OR_NO
)
MARKS = (
    _NEURON
    + f"You see an explanation of one feature, and numbered texts with tokens marked by {OPEN} and {CLOSE}. Say for each text whether "
    "the marked tokens are those on which the feature is active. " + _YES_OR_NO
)
SIMULATE = (
    _NEURON
    + "You see an explanation of one feature, and numbered texts. Say for each text how strongly the feature is active on its last "
    "token: a whole number from 0, not at all, to 10, as strongly as ever. "
    'Reply with JSON, one number for each text, in their order: {"answers": [...]}.'
)
CHOOSE = (
    _NEURON
    + "You see an explanation of one feature and two texts, A and B. The feature is active in one; the other is the same with the "
    'tokens it is active on replaced. Say in which text it is active. Reply with JSON: {"answer": "the letter"}.'
)
INTRUDE = (
    f"You see five numbered texts with the same token, marked by {OPEN} and {CLOSE}. In four of them it is used alike: in one meaning, one "
    'role or one kind of surroundings. One text is the intruder. Say which. Reply with JSON: {"intruder": its number}.'
)


@dataclass(frozen=True)
class Shown:
    """A window as it is shown. strings: the text of each token. marked: bool [L]."""

    strings: tuple[str, ...]
    marked: np.ndarray

    def __str__(self) -> str:
        out, inside = [], False
        for string, mark in zip(self.strings, self.marked, strict=True):
            if mark != inside:
                # spaces before a token stay outside its mark
                space = len(string) - len(string.lstrip(" ")) if mark else 0
                out.append(string[:space] + OPEN + string[space:] if mark else CLOSE + string)
            else:
                out.append(string)
            inside = bool(mark)
        return " ".join("".join([*out, CLOSE if inside else ""]).split())


def shown(text: Text, windows: Windows, view: ByLatent | None = None, latent: int = -1) -> list[Shown]:
    """The windows, with the tokens marked on which the latent fires; no marks without a view."""
    out = []
    for start in windows.starts.tolist():
        marked = np.zeros(windows.length, bool)
        if view is not None:
            fires = view.latent(latent)[0]
            low, high = np.searchsorted(fires, [start, start + windows.length])
            marked[fires[low:high] - start] = True
        out.append(Shown(tuple(text.strings(start, windows.length)), marked))
    return out


def explain(windows: Sequence[Shown]) -> Ask:
    return Ask(EXPLAIN, _numbered(windows), _object({"explanation": {"type": "string"}}), EXPLANATION)


def per_window(question: str, explanation: str, windows: Sequence[Shown], item: dict, repeat: int = 0) -> Ask:
    """One answer per window, each of the JSON type `item`, in a list under `answers`."""
    count = len(windows)
    answers = {"type": "array", "items": item, "minItems": count, "maxItems": count}
    return Ask(
        question,
        f"Explanation: {explanation}\n\n{_numbered(windows)}",
        _object({"answers": answers}),
        ROUND + PER_ITEM * count,
        repeat=repeat,
    )


def choose(explanation: str, a: Shown, b: Shown, repeat: int = 0) -> Ask:
    user = f"Explanation: {explanation}\n\nA: {a}\nB: {b}"
    return Ask(CHOOSE, user, _object({"answer": {"type": "string", "enum": ["A", "B"]}}), ROUND, repeat=repeat)


def intrude(windows: Sequence[Shown], repeat: int = 0) -> Ask:
    number = {"type": "integer", "minimum": 1, "maximum": len(windows)}
    return Ask(INTRUDE, _numbered(windows), _object({"intruder": number}), ROUND, repeat=repeat)


def field_of(reply: Reply | None, name: str):
    """A field of a reply's JSON object; None where it was not answered or cannot be read."""
    if reply is None:
        return None
    start, end = reply.text.find("{"), reply.text.rfind("}")
    try:
        found = json.loads(reply.text[start : end + 1]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    return found.get(name) if isinstance(found, dict) else None


def answers_of(reply: Reply | None, count: int, kind: type) -> list | None:
    """`answers`, where it is a list of so many of this very type; else None."""
    found = field_of(reply, "answers")
    right = isinstance(found, list) and len(found) == count and all(type(each) is kind for each in found)
    return found if right else None


def _numbered(windows: Sequence[Shown]) -> str:
    return "\n".join(f"{number}. {window}" for number, window in enumerate(windows, 1))


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
