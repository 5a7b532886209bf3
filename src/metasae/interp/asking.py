"""Asks a judge many questions at once: from the store where it has the reply, else with bounded concurrency, a rate
limit and retries.

A reply that cannot be read, or that was cut off at its limit, is asked for again at another temperature, as the same
temperature would give the same likeliest reply. A reply that still cannot be read is kept, and the next call asks for
it again, as the server may have been repaired. A reply that was cut off is not kept. A judge in this process is held to
the form of its replies and would give the same reply again, so it is asked once.
"""

import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Protocol

from metasae.errors import UserError
from metasae.interp.reading import is_cut, is_readable
from metasae.interp.replies import Ask, Reply, ReplyStore
from metasae.progress.progress import SILENT, Progress, Task

# A server that answered none of this many questions in a row, each with its retries, is taken to be gone.
GIVE_UP = 20
LONGEST_WAIT = 60.0
# The counts of asking: questions answered now, questions answered from the store, questions not answered after every
# retry, retries, replies that could not be read and were asked for again, replies that were cut off, and the tokens of
# all replies of this call, as the judge counted them.
COUNTED = ("asked", "stored", "failed", "retried", "again", "cut", "prompt_tokens", "completion_tokens")
# The temperature of a reply that is asked for again.
ANOTHER_TEMPERATURE = 1.0
# Characters per token of English text; only the estimate before a run uses it.
CHARACTERS_PER_TOKEN = 4
EXPLANATION_LENGTH = 240


class Temporary(Exception):
    """The judge could not answer now and may answer later. wait: seconds it asked for, None where it did not say."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Judge(Protocol):
    """The interface of a judge. name: the name under which replies are kept: the model, and everything else that
    changes its replies. A judge that has `batch` and `answer_many` instead of `answer` (as LocalJudge) is asked `batch`
    questions at a time, by one thread.
    """

    name: str

    def answer(self, ask: Ask) -> Reply:
        """Raises Temporary for an error that may pass, UserError for one that will not."""


def cost_of(tokens: Mapping[str, int], price: tuple[float, float] | None) -> float | None:
    """The cost of some tokens. tokens: prompt_tokens and completion_tokens. price: of a million of each; None where it
    is not known.
    """
    return price and (tokens["prompt_tokens"] * price[0] + tokens["completion_tokens"] * price[1]) / 1e6


def spent(cost: float | None) -> str:
    """A cost as the end of a line."""
    return "" if cost is None else f", {cost:.2f} at the price given"


@dataclass(frozen=True)
class Limits:
    """How a judge may be asked.

    concurrency: questions on their way at once. per_minute: attempts, None for no limit. retries: after the first
    attempt. first_wait: seconds before the first retry; each further one waits twice as long, or as long as the
    server says. again: how often a reply that cannot be read is asked for again. max_tokens: of a reply, thoughts
    included; None for what the answer alone needs.
    """

    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 6
    first_wait: float = 1.0
    again: int = 2
    max_tokens: int | None = None

    def of(self, ask: Ask, attempt: int = 0) -> Ask:
        """The question as it is sent, the first time or again."""
        temperature = ANOTHER_TEMPERATURE if attempt else ask.temperature
        return replace(ask, max_tokens=self.max_tokens or ask.max_tokens, temperature=temperature)


class Asker:
    """Asks a judge the questions to which the store has no reply. name: of the model whose replies are kept."""

    def __init__(
        self,
        judge: Judge | None,
        store: ReplyStore,
        name: str | None = None,
        limits: Limits | None = None,
        progress: Progress = SILENT,
    ):
        """judge: None to answer from the store alone, with the kept replies of the model `name`."""
        self.judge, self.store, self.limits, self.progress = judge, store, limits or Limits(), progress
        self.name = judge.name if judge is not None else name
        self.tally = dict.fromkeys(COUNTED, 0)
        self._stop, self._lock = threading.Event(), threading.Lock()
        # when the next attempt may be made, and how many questions in a row were not answered
        self._next, self._unanswered = 0.0, 0
        # keys of the questions that were asked now, and of those whose reply was cut off that reply
        self._tried: set[str] = set()
        self._cut: dict[str, Reply] = {}
        # only spreads the retries of several workers; no result depends on it
        self._jitter = random.Random(0)

    def missing(self, asks: Sequence[Ask]) -> dict[str, Ask]:
        """Key -> question, of those to which the store has no reply that can be read; the same question once. In a
        replay a reply that cannot be read counts as an answer, and so does the reply to a question that this asker
        asked before.
        """
        distinct = {ask.key(self.name): ask for ask in asks}
        return {key: ask for key, ask in distinct.items() if not self._is_kept(key, ask)}

    def _is_kept(self, key: str, ask: Ask) -> bool:
        if key in self._tried:
            return True
        reply = self.store.get(key)
        return reply is not None and (self.judge is None or is_readable(ask, reply))

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        """A reply to each question, None for one that was not answered after every retry. A reply may be one that
        cannot be read, or was cut off.

        Raises UserError in replay when the store lacks a reply, for a refusal that will not pass, and when nothing
        answers. An interrupt waits for what is on its way, which is kept.
        """
        keys, left = [ask.key(self.name) for ask in asks], list(self.missing(asks).values())
        self.tally["stored"] += len(set(keys)) - len(left)
        if left and self.judge is None:
            raise UserError(
                f"{self.store.path} lacks {len(left)} of {len(asks)} replies of '{self.name}'; "
                "run without --replay to ask for them"
            )
        if left:
            with self.progress.task("asking the judge", len(left), "questions") as task:
                (self._ask_batches if hasattr(self.judge, "answer_many") else self._ask_one_by_one)(left, task)
        return [self._cut.get(key) or self.store.get(key) for key in keys]

    def _ask_one_by_one(self, asks: list[Ask], task: Task) -> None:
        self._stop.clear()
        self._unanswered = 0
        with ThreadPoolExecutor(self.limits.concurrency) as workers:
            try:
                for answer in as_completed([workers.submit(self._work, ask) for ask in asks]):
                    answer.result()
                    task.advance(1, failed=self.tally["failed"])
            finally:
                # what is still in the queue is not asked
                self._stop.set()

    def _ask_batches(self, asks: list[Ask], task: Task) -> None:
        """Questions of like length together, the longest first, so that too little memory shows at once."""
        asks = sorted(asks, key=lambda ask: len(ask.system) + len(ask.user), reverse=True)
        for start in range(0, len(asks), self.judge.batch):
            batch = asks[start : start + self.judge.batch]
            replies = self.judge.answer_many([self.limits.of(ask) for ask in batch])
            for ask, reply in zip(batch, replies, strict=True):
                self._came(reply)
                self._keep(ask, reply)
            task.advance(len(batch))

    def _came(self, reply: Reply) -> None:
        """Counts a reply, which has to be paid for even where it cannot be read."""
        with self._lock:
            self._unanswered = 0
            self.tally["cut"] += is_cut(reply)
            self.tally["prompt_tokens"] += reply.prompt_tokens or 0
            self.tally["completion_tokens"] += reply.completion_tokens or 0

    def _keep(self, ask: Ask, reply: Reply) -> None:
        """Keeps the last reply to a question, in the place of one that could not be read."""
        key, cut = ask.key(self.name), is_cut(reply)
        if not cut:
            self.store.put(self.name, ask, reply, anew=True)
        with self._lock:
            self._tried.add(key)
            if cut:
                self._cut[key] = replace(reply, cut=True)
            self.tally["asked"] += 1

    def _work(self, ask: Ask) -> None:
        """Asks one question; an error stops the other workers before they ask another one."""
        try:
            self._answer(ask)
        except BaseException:
            self._stop.set()
            raise

    def _answer(self, ask: Ask) -> None:
        """Asks until there is a reply that can be read, or no attempt is left; the last reply is kept.

        Raises UserError where nothing answers any more.
        """
        last = None
        for attempt in range(self.limits.again + 1):
            reply = self._reply(self.limits.of(ask, attempt))
            if reply is None:
                break
            # of two replies that cannot be read, one that was not cut off is kept
            last = reply if last is None or not is_cut(reply) else last
            if is_readable(ask, reply):
                break
            if attempt < self.limits.again:
                with self._lock:
                    self.tally["again"] += 1
        if last is not None:
            self._keep(ask, last)

    def _reply(self, ask: Ask) -> Reply | None:
        """The judge's reply; None where it does not answer after every retry, or asking has stopped."""
        for attempt in range(self.limits.retries + 1):
            if not self._turn():
                return None
            try:
                reply = self.judge.answer(ask)
                self._came(reply)
                return reply
            except Temporary as trouble:
                if attempt < self.limits.retries:
                    with self._lock:
                        self.tally["retried"] += 1
                    wait = max(trouble.wait or 0.0, self.limits.first_wait * 2**attempt)
                    self._stop.wait(min(LONGEST_WAIT, wait) * (1 + 0.25 * self._jitter.random()))
        with self._lock:
            self.tally["failed"] += 1
            self._unanswered += 1
            silence = self._unanswered
        if silence >= GIVE_UP:
            raise UserError(
                f"the judge answered none of the last {silence} questions; "
                "check that it runs, then run again: replies are kept"
            )
        return None

    def _turn(self) -> bool:
        """Waits for this attempt's turn under the rate limit; False when asking has stopped."""
        if self.limits.per_minute is None:
            return not self._stop.is_set()
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.limits.per_minute
        return not self._stop.wait(max(0.0, turn - time.monotonic()))


class Estimator:
    """Takes the place of an asker: it counts the questions that would be asked at most, and asks none. It assumes one
    token per four characters of a prompt, the longest replies, and that every reply can be read the first time. In
    place of a reply that the store lacks it gives a made-up explanation, a different one for each question.
    """

    def __init__(self, asker: Asker):
        self._asker, self._counted = asker, set()
        self.questions = {"questions": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        missing = self._asker.missing(asks)
        for key in missing.keys() - self._counted:
            ask = missing[key]
            self.questions["questions"] += 1
            self.questions["prompt_tokens"] += math.ceil((len(ask.system) + len(ask.user)) / CHARACTERS_PER_TOKEN)
            self.questions["completion_tokens"] += self._asker.limits.of(ask).max_tokens
        self._counted |= missing.keys()
        keys = [ask.key(self._asker.name) for ask in asks]
        stood_in = {key: Reply(json.dumps({"explanation": key.ljust(EXPLANATION_LENGTH, "x")})) for key in missing}
        return [stood_in.get(key) or self._asker.store.get(key) for key in keys]
