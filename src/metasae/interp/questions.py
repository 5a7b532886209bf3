"""Asks questions about windows, some of them twice, reads the replies and gives credit.

A twentieth of a score's questions is asked a second time with its windows in another order, the second half first, and
enough of them to have 40 answers. A judge that reads the windows gives the same answers again; one that answers by
place or at random does not. How often two such rounds would agree if the second knew nothing of the first is worked out
from what was said in each (Cohen 1960):

    by chance = sum over the answers c of (share of c in the first round) (share of c in the second)
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq

import numpy as np

from metasae.interp.asking import Asker
from metasae.interp.marks import Shown
from metasae.interp.replies import Ask, Reply

REPEATED, ANSWERS_AT_LEAST = 0.05, 40
# repeated: answers that were asked for twice and read both times; repeated_alike: those that said the same;
# repeated_by_chance: as many as would have by chance.
NOTHING_COUNTED = {
    "asked": 0,
    "unreadable": 0,
    "failed": 0,
    "repeated": 0,
    "repeated_alike": 0,
    "repeated_by_chance": 0.0,
}


def uncounted() -> dict:
    """Counts for a floor, which are not kept: none of its questions are asked twice, and its unreadable replies are not
    counted for the score.
    """
    return {"asked": 0, "unreadable": 0, "failed": 0}


@dataclass
class Question:
    """A question about one latent, or one pair of siblings, that a list of answers answers.

    build: windows -> what is asked of them; None where there is no explanation to ask with. row: of the latent or pair.
    parts: of the score, one for each answer. right: the answers that are true. choices: where the answer is one of the
    windows, what each is called; else there is an answer for each window. reply, answers: filled in by `put`; answers
    is None where the question was not asked or answered, or the reply cannot be read.
    """

    build: Callable[[Sequence[Shown]], Ask] | None
    windows: Sequence[Shown]
    row: int
    parts: Sequence[str]
    right: Sequence
    choices: Sequence = ()
    reply: Reply | None = None
    answers: list | None = None

    def again(self) -> Ask:
        """The question with the second half of its windows first."""
        half = len(self.windows) // 2
        return replace(self.build([*self.windows[half:], *self.windows[:half]]), repeat=1)

    def in_order(self, answers: list) -> list:
        """Answers to `again` as answers to the question."""
        half, count = len(self.windows) // 2, len(self.windows)
        if self.choices:
            return [self.choices[(self.choices.index(answers[0]) + half) % count]]
        return [*answers[count - half :], *answers[: count - half]]


def credit_of(questions: Sequence[Question], chance: float) -> dict[tuple[int, str], list[float]]:
    """(row, part) -> 1 for every right answer and 0 for every wrong one; an answer that was not read has the credit of
    chance. A row of which no answer was read has no credit, and so no score.
    """
    credit = defaultdict(list)
    read = {question.row for question in questions if question.answers is not None}
    for question in (question for question in questions if question.row in read):
        for place, part in enumerate(question.parts):
            said = question.answers
            credit[question.row, part].append(chance if said is None else float(said[place] == question.right[place]))
    return credit


def means(credit: Mapping[tuple[int, str], list[float]], count: int, part: str = "all") -> np.ndarray:
    """float64 [count]: the mean credit of each row, NaN without any."""
    return np.array(
        [np.mean(credit[row, part]) if (row, part) in credit else np.nan for row in range(count)], np.float64
    )


def put(
    asker: Asker,
    questions: Sequence[Question],
    read: Callable[[Reply | None, int], list | None],
    counts: dict,
    seed: int,
) -> None:
    """Asks the questions, some a second time, and fills in their replies and answers.

    read: (a reply, how many answers it is to have) -> the answers; None where it was not answered or cannot be read.
    counts: as NOTHING_COUNTED or `uncounted()`, added to.
    """
    asked = [question for question in questions if question.build is not None]
    again = _drawn(asked, np.random.default_rng([seed, len(questions), 14])) if "repeated" in counts else []
    asks = [question.build(question.windows) for question in asked]
    replies = asker.ask(asks + [question.again() for question in again])
    counts["asked"] += len(asked)
    for question, reply in zip(asked, replies, strict=False):
        question.reply, question.answers = reply, read(reply, len(question.parts))
        counts["failed"] += reply is None
        counts["unreadable"] += reply is not None and question.answers is None
    first, second = [], []
    for question, reply in zip(again, replies[len(asked) :], strict=True):
        answers = read(reply, len(question.parts))
        if question.answers is not None and answers is not None:
            first += question.answers
            second += question.in_order(answers)
    if first:
        counts["repeated"] += len(first)
        counts["repeated_alike"] += sum(map(eq, first, second))
        shares, others = Counter(first), Counter(second)
        counts["repeated_by_chance"] += sum(shares[answer] * others[answer] for answer in shares) / len(first)


def _drawn(asked: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """Those to ask again."""
    if not asked:
        return []
    count = max(math.ceil(REPEATED * len(asked)), math.ceil(ANSWERS_AT_LEAST / len(asked[0].parts)))
    return [asked[place] for place in sorted(rng.permutation(len(asked))[:count].tolist())]
