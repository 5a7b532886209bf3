"""A judge's probability of each yes in a list of yes and no, from the log probabilities beside its reply.

Where the reply's text has `true` or `false`, the token that begins it has alternatives. Those that would begin `true` are a yes, those
that would begin `false` a no (spaces, commas and brackets before them left aside), and the rest does not count:

    P(yes) = sum of p over the yes / sum of p over yes and no

The model has written its earlier answers of the list by then, so the numbers are of one list, in its order.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from metasae.interp.replies import Reply

_LIST = re.compile(r'"answers"\s*:\s*\[')
_ANSWER = re.compile(r"true|false")
_BEFORE = " \t\r\n,[:"


def yes_probabilities(reply: Reply, count: int) -> list[float] | None:
    """P(yes) of each of `count` answers; None where the reply has no log probabilities or they do not fit its list."""
    if reply.logprobs is None:
        return None
    tokens = [token for token, _ in reply.logprobs]
    text, ends = "".join(tokens), list(accumulate(map(len, tokens)))
    start = _LIST.search(text)
    if start is None:
        return None
    close = text.find("]", start.end())
    found = [match.start() for match in _ANSWER.finditer(text, start.end(), len(text) if close < 0 else close)]
    # a token may hold the end of one answer and the beginning of the next, whose alternatives cannot be told apart then
    places = [bisect_right(ends, offset) for offset in found]
    if len(found) != count or len(set(places)) != count:
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
