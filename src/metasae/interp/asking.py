"""Asks a judge many questions at once: from the store where it has the reply, else with bounded concurrency, a rate limit and retries."""

import json
import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from metasae.errors import UserError
from metasae.interp.replies import Ask, Reply, ReplyStore
from metasae.progress.progress import SILENT, Progress

# A server that answered none of so many questions in a row, each with its retries, is taken to be gone.
GIVE_UP = 20
LONGEST_WAIT = 60.0
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

    A judge that also has `batch` and `answer_many` (as LocalJudge) is asked so many questions at a time, by one thread.
    """

    name: str

    def answer(self, ask: Ask) -> Reply:
        """Raises Temporary for what may pass, UserError for what will not."""


@dataclass
class Tally:
    """asked: questions that were answered now; stored: from the store; failed: not answered after every retry; retried: attempts too many.

    prompt_tokens, completion_tokens: of the answers that came now, as the judge counted them.
    """

    asked: int = 0
    stored: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self, price: tuple[float, float] | None = None) -> dict:
        """price: of a million prompt and completion tokens."""
        cost = None if price is None else (self.prompt_tokens * price[0] + self.completion_tokens * price[1]) / 1e6
        return {**vars(self), "cost": cost}


@dataclass(frozen=True)
class Limits:
    """concurrency: questions on their way at once. per_minute: attempts, None for no limit. retries: after the first attempt.

    first_wait: seconds before the first retry; each further one waits twice as long, or as long as the server says.
    """

    concurrency: int = 8
    per_minute: float | None = None
    retries: int = 6
    first_wait: float = 1.0

    def __post_init__(self):
        if (
            self.concurrency < 1
            or self.retries < 0
            or self.first_wait < 0
            or (self.per_minute is not None and not self.per_minute > 0)
        ):
            raise UserError("a judge needs a concurrency of at least 1, and neither retries, waits nor a rate below 0")


class Asker:
    """judge: None to answer from the store alone (replay)."""

    def __init__(
        self,
        judge: Judge | None,
        store: ReplyStore,
        name: str | None = None,
        limits: Limits | None = None,
        progress: Progress = SILENT,
    ):
        """name: of the model whose replies are replayed; a judge has its own."""
        self.judge, self.store, self.limits, self.progress = judge, store, limits or Limits(), progress
        self.name = judge.name if judge is not None else name
        self.tally = Tally()
        self._stop, self._lock, self._next = threading.Event(), threading.Lock(), 0.0
        # only spreads retries of several workers; no result depends on it
        self._jitter = random.Random(0)

    def missing(self, asks: Sequence[Ask]) -> dict[str, Ask]:
        """Key -> question, of those not in the store; the same question once."""
        return {
            key: ask for key, ask in {ask.key(self.name): ask for ask in asks}.items() if self.store.get(key) is None
        }

    def estimate(self, asks: Sequence[Ask]) -> dict[str, int]:
        """Questions still to be asked and their tokens, at most: four characters to a prompt token, replies at their longest."""
        left = self.missing(asks).values()
        prompt = sum(math.ceil((len(ask.system) + len(ask.user)) / CHARACTERS_PER_TOKEN) for ask in left)
        return {
            "questions": len(left),
            "prompt_tokens": prompt,
            "completion_tokens": sum(ask.max_tokens for ask in left),
        }

    def planner(self) -> "Planner":
        """Takes the same questions and asks none: for the estimate before a run."""
        return Planner(self)

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        """A reply to each question, None for one that was not answered after every retry.

        Raises UserError in replay when the store lacks a reply, for a refusal that will not pass, and when nothing answers. An interrupt
        waits for what is on its way, which is kept.
        """
        left = self.missing(asks)
        self.tally.stored += len({ask.key(self.name) for ask in asks}) - len(left)
        if left and self.judge is None:
            raise UserError(
                f"{self.store.path} lacks {len(left)} of {len(asks)} replies of '{self.name}'; run without --replay to ask for them"
            )
        if left:
            (self._ask_batches if hasattr(self.judge, "answer_many") else self._ask_all)(list(left.values()))
        return [self.store.get(ask.key(self.name)) for ask in asks]

    def _ask_all(self, asks: list[Ask]) -> None:
        self._stop.clear()
        silence, waiting = 0, iter(asks)
        with (
            self.progress.task("ask", len(asks), "questions") as task,
            ThreadPoolExecutor(self.limits.concurrency) as workers,
        ):
            running: set[Future] = set()
            try:
                while True:
                    # never more at hand than can run, so that an interrupt finds nothing queued
                    while len(running) < self.limits.concurrency and (following := next(waiting, None)) is not None:
                        running.add(workers.submit(self._answer, following))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for each in done:
                        silence = 0 if each.result() else silence + 1
                        task.advance(1, failed=self.tally.failed)
                    if silence >= GIVE_UP:
                        raise UserError(
                            f"the judge answered none of the last {silence} questions; see that it runs, then run again: replies are kept"
                        )
            finally:
                self._stop.set()

    def _ask_batches(self, asks: list[Ask]) -> None:
        """Questions of like length together, the longest first, so that too little memory shows at once."""
        asks = sorted(asks, key=lambda ask: len(ask.system) + len(ask.user), reverse=True)
        with self.progress.task("ask", len(asks), "questions") as task:
            for start in range(0, len(asks), self.judge.batch):
                some = asks[start : start + self.judge.batch]
                for ask, reply in zip(some, self.judge.answer_many(some), strict=True):
                    self._keep(ask, reply)
                task.advance(len(some))

    def _keep(self, ask: Ask, reply: Reply) -> None:
        self.store.put(self.name, ask, reply)
        with self._lock:
            self.tally.asked += 1
            self.tally.prompt_tokens += reply.prompt_tokens or 0
            self.tally.completion_tokens += reply.completion_tokens or 0

    def _answer(self, ask: Ask) -> bool:
        """Whether the question was answered; the reply is in the store then."""
        for attempt in range(self.limits.retries + 1):
            if not self._turn():
                return False
            try:
                reply = self.judge.answer(ask)
            except Temporary as trouble:
                with self._lock:
                    self.tally.retried += attempt < self.limits.retries
                if attempt < self.limits.retries:
                    self._stop.wait(self._delay(attempt, trouble.wait))
                continue
            self._keep(ask, reply)
            return True
        with self._lock:
            self.tally.failed += 1
        return False

    def _turn(self) -> bool:
        """Waits for this attempt's turn under the rate limit; False when asking has stopped."""
        if self.limits.per_minute is None:
            return not self._stop.is_set()
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.limits.per_minute
        return not self._stop.wait(max(0.0, turn - time.monotonic()))

    def _delay(self, attempt: int, asked_for: float | None) -> float:
        with self._lock:
            spread = 1 + 0.25 * self._jitter.random()
        return min(LONGEST_WAIT, max(asked_for or 0.0, self.limits.first_wait * 2**attempt)) * spread


class Planner:
    """Counts what would be asked, at most. A reply that the store lacks is stood in for by an explanation, another for each question."""

    def __init__(self, asker: Asker):
        self._asker = asker
        self.questions: dict[str, int] = {"questions": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._seen: set[str] = set()

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        keys = [ask.key(self._asker.name) for ask in asks]
        new = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self._seen}
        for name, number in self._asker.estimate(list(new.values())).items():
            self.questions[name] += number
        self._seen |= new.keys()
        return [
            self._asker.store.get(key) or Reply(json.dumps({"explanation": key.ljust(EXPLANATION_LENGTH, "x")}))
            for key in keys
        ]
