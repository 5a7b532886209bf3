"""A scripted reader of planted worlds: it answers the same prompts as a language model, knows every concept, and names
one per explanation.

A concept is a feature (`f12`) or a word in any sense (`w3`), as `planted_strings` writes tokens. It explains by the one
concept that fits the marked tokens best, by F1 over the tokens shown, features before words among equals. So what is
atomic is explained exactly, and a blend by the nearest thing that has a name. It shows what scores do with a judge that
makes no mistakes; real ones make others.
"""

import json
import re

from metasae.interp import marks, prompts
from metasae.interp.replies import Ask, Reply

_LINE = re.compile(r"^(?:(\d+)\.|([AB]):) (.*)$")


class OracleJudge:
    """fires_above: a feature weaker than this does not make a latent fire; `FIRES_ABOVE` of hand-made dictionaries."""

    name = "oracle"

    def __init__(self, fires_above: float = 0.4):
        self.fires_above = fires_above

    def answer(self, ask: Ask) -> Reply:
        windows = [_tokens(match[3]) for match in map(_LINE.match, ask.user.splitlines()) if match]
        concept = ask.user.splitlines()[0].removeprefix("Explanation: ")
        answer = {
            prompts.EXPLAIN: lambda: {"explanation": self._best(windows)},
            prompts.DETECT: lambda: {
                "answers": [any(self._on(token, concept) for token, _ in window) for window in windows]
            },
            prompts.MARKS: lambda: {
                "answers": [all(self._on(token, concept) for token, marked in window if marked) for window in windows]
            },
            prompts.SIMULATE: lambda: {
                "answers": [min(10, round(4 * _strength(window[-1][0], concept))) for window in windows]
            },
            prompts.CHOOSE: lambda: {"answer": "AB"[self._stronger(windows, concept)]},
            prompts.INTRUDE: lambda: {"intruder": self._odd(windows)},
        }[ask.system]()
        text = json.dumps(answer)
        return Reply(text, len(ask.user) // 4, len(text) // 4)

    def _on(self, token: str, concept: str) -> bool:
        return _strength(token, concept) > self.fires_above

    def _best(self, windows) -> str:
        tokens = [token for window in windows for token in window]
        marked = sum(mark for _, mark in tokens)

        def fit(concept: str) -> float:
            on = [mark for token, mark in tokens if self._on(token, concept)]
            return 2 * sum(on) / (len(on) + marked) if marked else 0.0

        concepts = sorted(
            {name for token, _ in tokens for name in _names(token)}, key=lambda name: (name[0] != "f", int(name[1:]))
        )
        return max(concepts, key=fit, default="nothing")

    def _odd(self, windows) -> int:
        """The number of the window whose marked token lacks most of what all others have, then has most to itself; the
        first of equals.
        """
        marked = [
            {name for token, mark in window if mark for name in _names(token) if self._on(token, name)}
            for window in windows
        ]

        def oddness(number: int) -> tuple[int, int]:
            others = marked[:number] + marked[number + 1 :]
            return len(set.intersection(*others) - marked[number]), len(marked[number] - set.union(*others))

        return max(range(len(windows)), key=oddness) + 1

    def _stronger(self, windows, concept: str) -> int:
        strengths = [max((_strength(token, concept) for token, _ in window), default=0.0) for window in windows]
        return int(strengths[1] > strengths[0])


def _tokens(line: str) -> list[tuple[str, bool]]:
    """(token, whether it is marked)."""
    out, inside = [], False
    for piece in line.split():
        inside = inside or piece.startswith(marks.OPEN)
        out.append((piece.replace(marks.OPEN, "").replace(marks.CLOSE, ""), inside))
        inside = inside and not piece.endswith(marks.CLOSE)
    return out


def _names(token: str) -> list[str]:
    """The concepts of a token: its features, and its word."""
    name, *features = token.split("/")
    return [feature.split(":")[0] for feature in features] + ([name] if name.startswith("w") else [])


def _strength(token: str, concept: str) -> float:
    """How strongly a concept is on: a feature's number, of a word its strongest feature's."""
    name, *features = token.split("/")
    strengths = {feature: float(number) for feature, number in (entry.split(":") for entry in features)}
    return max(strengths.values(), default=0.0) if concept == name else strengths.get(concept, 0.0)
