"""sense_intruder: of five windows round one token, which is the one on which the other of two siblings fires? Chance 1/5.

It needs no explanation: the judge sees that two latents into which another was split part the uses of a token in a way that a reader can
see, or it does not. It cannot see why: a sense, a grammatical role and a kind of text are all the same to it. Accuracy is per pair of
siblings, both taking turns as the intruder; pairs of one parent are one cluster of the bootstrap. The floor (`shuffled`) has five windows
of one child, one of them called the intruder: chance whatever the judge, so what lies off it is an error of the asking. What siblings
are worth is told by the baseline's: its latents split between seeds (see `siblings`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metasae.interp import prompts
from metasae.interp.held import INTRUDER
from metasae.interp.prompts import Shown
from metasae.interp.reader import FLOOR, NOTHING_COUNTED, Reader
from metasae.interp.replies import Ask, Reply
from metasae.interp.result import Score
from metasae.interp.siblings import ALIKE, Five, Splits, alone, draw_fives
from metasae.interp.windows import Text
from metasae.measures.firing.by_latent import ByLatent

# Questions of a pair with each of the two as the intruder, and how many a pair needs in all.
EACH_WAY, AT_LEAST = 4, 2


@dataclass(frozen=True)
class Siblings:
    """The score of every pair of siblings of one SAE. pairs: (parent, child, child). questions: int64 [p], asked of each pair."""

    splits: Splits
    pairs: tuple[tuple[int, int, int], ...]
    questions: np.ndarray
    score: Score

    def as_dict(self, seed: int) -> dict:
        """What the other scores have, over pairs, and what they are pairs of."""
        clusters = np.array([parent for parent, _, _ in self.pairs], np.int64)
        facts = {"parents": self.splits.parents, "children": self.splits.children, "found_in": self.splits.found_in}
        return {**self.score.as_dict(range(len(self.pairs)), clusters, seed), **facts}

    def per_pair(self) -> list[dict]:
        values = [value if np.isfinite(value) else None for value in self.score.values["all"].tolist()]
        rows = zip(self.pairs, self.questions.tolist(), values, strict=True)
        return [
            {"parent": parent, "children": children, "questions": count, INTRUDER: value}
            for (parent, *children), count, value in rows
        ]


def intruder_score(reader: Reader, view: ByLatent, documents: np.ndarray, splits: Splits) -> Siblings:
    """view: of the children's SAE. documents: int [T]. A pair with fewer than two questions has no score and is counted."""
    text, length, pairs = reader.text, reader.spec.length, splits.pairs()
    asked: list[list[Five]] = []
    same: list[list[Five]] = []
    for number, (_, one, other) in enumerate(pairs):
        rng = np.random.default_rng([reader.seed, one, other, 15])
        sides = alone(text, view, one, other, length), alone(text, view, other, one, length)
        both = [draw_fives(text, documents, most, odd, length, EACH_WAY, rng) for most, odd in (sides, sides[::-1])]
        asked.append(both[0] + both[1] if len(both[0]) + len(both[1]) >= AT_LEAST else [])
        floored = asked[-1] and number < FLOOR
        same.append(
            [five for side in sides for five in draw_fives(text, documents, side, side, length, 1, rng)]
            if floored
            else []
        )
    counts = {
        "candidates": len(splits.ranked),
        "pairs": len(pairs),
        "too_few_windows": sum(not each for each in asked),
        **NOTHING_COUNTED,
    }
    own = _accuracy(reader, asked, counts)
    # what cannot be read of the floor is not counted as the score's
    floor = _accuracy(reader, same, dict(counts))
    return Siblings(
        splits,
        tuple(pairs),
        np.array([len(each) for each in asked], np.int64),
        Score(INTRUDER, {"all": own}, {"all": floor[:FLOOR]}, counts),
    )


def _accuracy(reader: Reader, fives: Sequence[Sequence[Five]], counts: dict) -> np.ndarray:
    """float64 [p]: share of each pair's questions answered right, NaN without any; what was not read has the credit of chance."""
    flat = [(row, five) for row, each in enumerate(fives) for five in each]
    asks = [_ask(reader.text, five, reader.spec.length) for _, five in flat]
    found, _ = reader.replies(asks, [_number] * len(asks), counts)
    right: list[list[float]] = [[] for _ in fives]
    for (row, five), answer in zip(flat, found, strict=True):
        right[row].append(1 / (ALIKE + 1) if answer is None else float(answer == five.intruder + 1))
    return np.array([np.mean(each) if each else np.nan for each in right], np.float64)


def _ask(text: Text, five: Five, length: int) -> Ask:
    windows = []
    for start, focus in zip(five.starts.tolist(), five.focus.tolist(), strict=True):
        marked = np.zeros(length, bool)
        marked[focus - start] = True
        windows.append(Shown(tuple(text.strings(start, length)), marked))
    return prompts.intrude(windows)


def _number(reply: Reply) -> int | None:
    answer = prompts.field_of(reply, "intruder")
    return answer if type(answer) is int and 1 <= answer <= ALIKE + 1 else None
