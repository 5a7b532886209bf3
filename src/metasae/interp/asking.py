"""Asks a judge many questions at once: from the store where it has the reply, else with bounded concurrency, a rate
limit and retries.
"""

import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

from metasae.errors import UserError
from metasae.interp.replies import Ask, Reply, ReplyStore
from metasae.progress.progress import SILENT, Progress, Task

# A server that answered none of so many questions in a row, each with its retries, is taken to be gone.
GIVE_UP = 20
LONGEST_WAIT = 60.0
# What asking comes to: questions that were answered now, those from the store, those not answered after every retry,
# attempts too many, and the tokens of the answers that came now, as the judge counted them.
COUNTED = ("asked", "stored", "failed", "retried", "prompt_tokens", "completion_tokens")
# Of English text; only the estimate before a run rests on it.
CHARACTERS_PER_TOKEN = 4
EXPLANATION_LENGTH = 240


class Temporary(Exception):
    """The judge could not answer now and may later. wait: seconds it asked for, None where it did not say."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Judge(Protocol):
    """name: what replies are kept under, model and whatever else changes them.

    A judge that has `batch` and `answer_many` in its place (as LocalJudge) is asked so many questions at a time, by one
    thread.
    """

    name: str

    def answer(self, ask: Ask) -> Reply:
        """Raises Temporary for what may pass, UserError for what will not."""


def cost_of(tokens: Mapping[str, int], price: tuple[float, float] | None) -> float | None:
    """tokens: prompt_tokens and completion_tokens. price: of a million of each; None where it is not known."""
    return price and (tokens["prompt_tokens"] * price[0] + tokens["completion_tokens"] * price[1]) / 1e6


def spent(cost: float | None) -> str:
    """A cost as the end of a line."""
    return "" if cost is None else f", {cost:.2f} at the price given"


@dataclass(frozen=True)
class Limits:
    """How a judge may be asked.

    concurrency: questions on their way at once. per_minute: attempts, None for no limit. retries: after the first
    attempt. first_wait: seconds before the first retry; each further one waits twice as long, or as long as the
    server says.
    """

    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 6
    first_wait: float = 1.0


class Asker:
    """Asks a judge what the store has no reply to. name: of the model whose replies are kept."""

    def __init__(
        self,
        judge: Judge | None,
        store: ReplyStore,
        name: str | None = None,
        limits: Limits | None = None,
        progress: Progress = SILENT,
    ):
        """judge: None to answer from the store alone, as `name`, the model whose replies are replayed, gave them."""
        self.judge, self.store, self.limits, self.progress = judge, store, limits or Limits(), progress
        self.name = judge.name if judge is not None else name
        self.tally = dict.fromkeys(COUNTED, 0)
        self._stop, self._lock = threading.Event(), threading.Lock()
        # when the next attempt may be made, and how many questions in a row were not answered
        self._next, self._unanswered = 0.0, 0
        # only spreads retries of several workers; no result depends on it
        self._jitter = random.Random(0)

    def missing(self, asks: Sequence[Ask]) -> dict[str, Ask]:
        """Key -> question, of those not in the store; the same question once."""
        distinct = {ask.key(self.name): ask for ask in asks}
        return {key: ask for key, ask in distinct.items() if self.store.get(key) is None}

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        """A reply to each question, None for one that was not answered after every retry.

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
            with self.progress.task("ask", len(left), "questions") as task:
                (self._ask_batches if hasattr(self.judge, "answer_many") else self._ask_one_by_one)(left, task)
        return [self.store.get(key) for key in keys]

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
            for ask, reply in zip(batch, self.judge.answer_many(batch), strict=True):
                self._keep(ask, reply)
            task.advance(len(batch))

    def _keep(self, ask: Ask, reply: Reply) -> None:
        self.store.put(self.name, ask, reply)
        with self._lock:
            self._unanswered = 0
            self.tally["asked"] += 1
            self.tally["prompt_tokens"] += reply.prompt_tokens or 0
            self.tally["completion_tokens"] += reply.completion_tokens or 0

    def _work(self, ask: Ask) -> None:
        """Asks one question; an error stops the other workers before they ask another one."""
        try:
            self._answer(ask)
        except BaseException:
            self._stop.set()
            raise

    def _answer(self, ask: Ask) -> None:
        """Asks until there is a reply, which is kept, or no attempt is left.

        Raises UserError where nothing answers any more.
        """
        for attempt in range(self.limits.retries + 1):
            if not self._turn():
                return
            try:
                self._keep(ask, self.judge.answer(ask))
                return
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
                "see that it runs, then run again: replies are kept"
            )

    def _turn(self) -> bool:
        """Waits for this attempt's turn under the rate limit; False when asking has stopped."""
        if self.limits.per_minute is None:
            return not self._stop.is_set()
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.limits.per_minute
        return not self._stop.wait(max(0.0, turn - time.monotonic()))


class Estimator:
    """In the place of an asker: counts what would still be asked, at most, and asks nothing.

    A prompt has a token to four characters, a reply is at its longest. A reply that the store lacks is stood in for by
    an explanation, another for each question.
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
            self.questions["completion_tokens"] += ask.max_tokens
        self._counted |= missing.keys()
        keys = [ask.key(self._asker.name) for ask in asks]
        return [
            self._asker.store.get(key) or Reply(json.dumps({"explanation": key.ljust(EXPLANATION_LENGTH, "x")}))
            for key in keys
        ]
