"""The questions that a judge is asked about windows of text. `marks.py` writes the windows, and `reading.py` reads the
replies.

Every question describes the form of its reply in words, as not every server holds its model to the schema.
"""

from collections.abc import Sequence

import numpy as np

from metasae.interp.draws import Windows
from metasae.interp.excerpts import Text
from metasae.interp.marks import Marks, Shown
from metasae.interp.replies import Ask
from metasae.measures.firing.by_latent import ByLatent

# What the two texts of a choice are called.
LETTERS = ("A", "B")
# Tokens of a reply: per item of a list, and what stands round them.
PER_ITEM, ROUND, EXPLANATION = 8, 32, 160

_FEATURE = "A feature of a language model is active on some tokens of a text and silent on the others. "
_JUDGED = _FEATURE + "You see an explanation of one feature, and numbered texts"
_YES_OR_NO = 'Reply with JSON, one true or false for each text, in their order: {"answers": [...]}.'
EXPLAIN = (
    f"{_FEATURE}You see short texts in which tokens on which one feature is active are marked, as is named before the "
    "texts. Say in one short sentence what these tokens have in common and the rest has not: their meaning, their form "
    "or what stands round them. Be as specific as the texts allow. "
    'Reply with JSON: {"explanation": "the sentence"}.'
)
DETECT = f"{_JUDGED}. Say for each text whether the feature is active on any token of it. {_YES_OR_NO}"
MARKS = (
    f"{_JUDGED} with marked tokens. How they are marked is named before the texts. Say for each text whether "
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
    "You see five numbered texts with the same token, marked as is named before the texts. In four of them it is used "
    "alike: in one meaning, one role or one kind of surroundings. One text is the intruder. Say which. "
    'Reply with JSON: {"intruder": its number}.'
)


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
    return Ask(EXPLAIN, _listed(_numbers(windows), windows), _object({"explanation": {"type": "string"}}), EXPLANATION)


def per_window(question: str, explanation: str, item: dict, windows: Sequence[Shown]) -> Ask:
    """One answer per window, each of the JSON type `item`, in a list under `answers`."""
    count = len(windows)
    answers = {"type": "array", "items": item, "minItems": count, "maxItems": count}
    user = f"Explanation: {explanation}\n\n{_listed(_numbers(windows), windows)}"
    return Ask(question, user, _object({"answers": answers}), ROUND + PER_ITEM * count)


def choose(explanation: str, windows: Sequence[Shown]) -> Ask:
    """Asks in which of two windows the feature is active."""
    texts = _listed([f"{letter}:" for letter in LETTERS], windows)
    schema = _object({"answer": {"type": "string", "enum": list(LETTERS)}})
    return Ask(CHOOSE, f"Explanation: {explanation}\n\n{texts}", schema, ROUND)


def intrude(windows: Sequence[Shown]) -> Ask:
    number = {"type": "integer", "minimum": 1, "maximum": len(windows)}
    return Ask(INTRUDE, _listed(_numbers(windows), windows), _object({"intruder": number}), ROUND)


def _numbers(windows: Sequence[Shown]) -> list[str]:
    return [f"{number}." for number in range(1, len(windows) + 1)]


def _listed(names: Sequence[str], windows: Sequence[Shown]) -> str:
    """The windows, one a line after its name, with marks that none of them contains; before them what the marks
    mean.
    """
    marks = Marks.of(windows)
    lines = [marks.line_of(window) for window in windows]
    legend = marks.legend(windows, lines)
    named = [f"{name} {line}" for name, line in zip(names, lines, strict=True)]
    return "\n".join([*([legend, ""] if legend else []), *named])


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
