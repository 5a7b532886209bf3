"""Turns a reply's JSON schema into the tokens that a model may write next, so that its replies have the form that was
asked for. Servers do the same for their models.

A form is a row of parts. A part is a choice among token sequences (a single one is written whatever the model prefers),
or free text, which ends where the model writes a bare quote, a new line or the end of its reply. The sequences of an
answer include what follows it, so that the comma tells `1` from `10`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from metasae.errors import UserError

TOP = 5
# The model's own words.
FREE = None
Part = list[tuple[int, ...]] | None


class Step(NamedTuple):
    """A token that is written; the ids that it was chosen among, the likeliest first, at most 5, and their log p: 0 of
    one that was not chosen.
    """

    token: int
    others: list[int]
    logprobs: list[float]


class Form:
    """One reply under way.

    parts: from `parts_of`. piece: a token's text. stops: the tokens with which a model ends its reply.
    """

    def __init__(self, parts: Sequence[Part], piece: Callable[[int], str], stops: Collection[int]):
        self._parts, self._piece, self._stops = list(parts), piece, stops
        # whether the free text so far ends with a backslash that escapes the next character
        self._escapes = False

    @property
    def is_whole(self) -> bool:
        return not self._parts

    def opening(self) -> list[Step]:
        """The fixed beginning of the reply; to be asked for first."""
        return _fixed(self._parts.pop(0))

    def write(self, logprobs: Tensor, room: int) -> list[Step]:
        """Writes the likeliest next token that keeps to the form, and after it the rest where that is fixed.

        logprobs: float32 [V]. room: tokens left. Free text ends where the fixed part after it would otherwise not fit.
        """
        if self._parts[0] is FREE:
            step = _likeliest(logprobs, range(len(logprobs)))
            behind = len(self._parts[1][0])
            if room > behind and step.token not in self._stops and self._goes_on(self._piece(step.token)):
                return [step]
            self._parts.pop(0)
            return self._rest()
        step = _likeliest(logprobs, sorted({sequence[0] for sequence in self._parts[0]}))
        left = [sequence[1:] for sequence in self._parts[0] if sequence[0] == step.token]
        # an answer's sequences end alike, so none is the beginning of another
        self._parts[:1] = [left] if left[0] else []
        return [step, *self._rest()]

    def _rest(self) -> list[Step]:
        """The rest of the reply, where it is fixed."""
        if any(len(part) > 1 for part in self._parts):
            return []
        rest = [step for part in self._parts for step in _fixed(part)]
        self._parts = []
        return rest

    def _goes_on(self, piece: str) -> bool:
        """Whether the JSON string of the free text is still open after this piece of it."""
        for character in piece:
            if character < " " or (character == '"' and not self._escapes):
                return False
            self._escapes = character == "\\" and not self._escapes
        return True


def _fixed(part: Part) -> list[Step]:
    return [Step(token, [token], [0.0]) for token in part[0]]


def _likeliest(logprobs: Tensor, tokens: Sequence[int]) -> Step:
    values = logprobs if len(tokens) == len(logprobs) else logprobs[tokens]
    top = values.topk(min(TOP, len(tokens)))
    others = [tokens[place] for place in top.indices.tolist()]
    return Step(others[0], others, top.values.tolist())


def parts_of(schema: Mapping, encode: Callable[[str], Sequence[int]]) -> list[Part]:
    """The parts of an object with one field: a string, one of an `enum`, a whole number from a range, true or false, or
    a list of a fixed number of those.

    encode: text -> token ids, without special tokens. Raises UserError for another schema.
    """
    try:
        ((name, field),) = schema["properties"].items()
        opening, closing = "{" + json.dumps(name) + ":", "}"
        if field["type"] == "string":
            opening, closing = opening + '"', '"' + closing
            if "enum" not in field:
                return [[tuple(encode(opening))], FREE, [tuple(encode(closing))]]
        count, item = 1, field
        if field["type"] == "array":
            opening, closing, count, item = opening + "[", "]" + closing, field["minItems"], field["items"]
        # no spaces: with some tokenizers the first token of every answer would be the space, which distinguishes no
        # answers
        ends = [","] * (count - 1) + [closing]
        answers = [[(*encode(option), *encode(end)) for option in _options(item)] for end in ends]
        return [[tuple(encode(opening))], *answers]
    except (KeyError, ValueError):
        raise UserError(
            "a model in this process answers one field: a string, an enum, a number or a list of them; "
            "ask a server anything else"
        ) from None


def _options(item: Mapping) -> list[str]:
    if "enum" in item:
        return item["enum"]
    if item["type"] == "boolean":
        return ["true", "false"]
    return [str(number) for number in range(item["minimum"], item["maximum"] + 1)]
