"""Many questions at once, against a server that fails, is slow, or is killed in the middle."""

import json
import signal
import textwrap
import time
from collections import Counter

import pytest
from chat_server import serving
from worlds import count_of

from metasae.errors import UserError
from metasae.interp.asking import GIVE_UP, Asker, Estimator, Limits, Temporary, cost_of
from metasae.interp.choice import InterpSpec
from metasae.interp.judges.server import ServerJudge
from metasae.interp.replies import Ask, Reply, ReplyStore
from spawned import Program

QUICK = Limits(concurrency=16, retries=4, first_wait=0.01)


def questions(count):
    return [Ask("answer in JSON", f"question {number}", {"type": "object"}) for number in range(count)]


class Scripted:
    """A judge in this process. trouble: (question, attempt) -> exception or None."""

    name = "scripted"

    def __init__(self, trouble=lambda question, attempt: None):
        self.trouble, self.attempts = trouble, Counter()

    def answer(self, ask):
        attempt = self.attempts[ask.user]
        self.attempts[ask.user] += 1
        trouble = self.trouble(ask.user, attempt)
        if trouble is not None:
            raise trouble
        return Reply(ask.user.upper(), 10, 2)


@pytest.fixture
def store(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        yield store


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_question_is_answered_once_whatever_the_server_does(store, count):
    faults = {"error": 0.05, "busy": 0.04, "silence": 0.02, "garbage": 0.04}

    def unreadable(messages):
        question = messages[-1]["content"]
        return "{not json" if question.endswith("7") else json.dumps({"is": question})

    # a reply that is only slow, on a busy machine, must not be taken for silence
    with serving(answer=unreadable, faults=faults, silence=2.0) as server:
        asker = Asker(ServerJudge(server.url, "m", timeout=1.5), store, limits=QUICK)
        replies = asker.ask(questions(count))
        assert [reply.text for reply in replies] == [unreadable([{"content": ask.user}]) for ask in questions(count)]
        assert (
            set(server.met) == set(faults) and set(server.delivered.values()) == {1} and len(server.delivered) == count
        )
        assert (
            asker.tally["asked"] == count
            and asker.tally["failed"] == 0
            and asker.tally["retried"] == sum(server.met.values())
        )
        assert asker.tally["prompt_tokens"] == 2 * count
        assert 1 < server.most_at_once <= QUICK.concurrency + server.met["silence"]
        again = Asker(ServerJudge(server.url, "m", timeout=1.5), store, limits=QUICK)
        assert again.ask(questions(count)) == replies and again.tally["stored"] == count and again.tally["asked"] == 0
        assert set(server.delivered.values()) == {1}


_CHILD = """
    import sys
    from metasae.interp.asking import Asker, Limits
    from metasae.interp.judges.server import ServerJudge
    from metasae.interp.replies import Ask, ReplyStore

    asks = [Ask("answer in JSON", f"question {number}", {"type": "object"}) for number in range(int(sys.argv[3]))]
    with ReplyStore(sys.argv[2]) as store:
        Asker(ServerJudge(sys.argv[1], "m"), store, limits=Limits(concurrency=4)).ask(asks)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_asks_for_no_reply_it_has(tmp_path, how):
    path, count = tmp_path / "replies.sqlite", 120
    with serving(delay=0.02) as server:
        child = Program(["-c", textwrap.dedent(_CHILD), server.url, path, count])
        deadline = time.monotonic() + 60
        while len(server.delivered) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(how)
        child.wait(30)
        while server.at_once:
            time.sleep(0.01)
        before = Counter(server.attempts)
        assert 30 <= len(server.delivered) < count
        with ReplyStore(path) as store:
            kept = {ask.user for ask in questions(count) if store.get(ask.key("m")) is not None}
            on_their_way = set(before) - kept
            # a kill loses what was on its way; an interrupt waits for it
            assert len(on_their_way) <= (4 if how == signal.SIGKILL else 0)
            asker = Asker(ServerJudge(server.url, "m"), store, limits=QUICK)
            replies = asker.ask(questions(count))
        assert [json.loads(reply.text)["echo"] for reply in replies] == [ask.user for ask in questions(count)]
        assert asker.tally["stored"] == len(kept) and asker.tally["asked"] == count - len(kept)
        asked_twice = {question for question, times in server.attempts.items() if times > 1}
        assert asked_twice == on_their_way


def test_the_same_question_twice_is_asked_once_and_a_repeat_again(store):
    judge = Scripted()
    ask, repeat = questions(1)[0], Ask("answer in JSON", "question 0", {"type": "object"}, repeat=1)
    assert Asker(judge, store).ask([ask, ask, repeat]) == [Reply("QUESTION 0", 10, 2)] * 3
    assert judge.attempts["question 0"] == 2


def test_a_question_that_is_never_answered_is_counted_and_asked_again_next_time(store):
    stubborn = Scripted(lambda question, attempt: Temporary("busy") if question == "question 3" else None)
    asker = Asker(stubborn, store, limits=QUICK)
    replies = asker.ask(questions(6))
    assert [reply is None for reply in replies] == [number == 3 for number in range(6)]
    assert (
        asker.tally["failed"] == 1
        and asker.tally["asked"] == 5
        and asker.tally["retried"] == 4
        and stubborn.attempts["question 3"] == 5
    )
    assert Asker(Scripted(), store).ask(questions(6))[3] == Reply("QUESTION 3", 10, 2)


def test_a_server_that_is_gone_is_given_up_and_what_was_answered_is_kept(store):
    judge = Scripted(lambda question, attempt: None if int(question.split()[1]) < 10 else Temporary("no connection"))
    with pytest.raises(UserError, match="answered none of the last"):
        Asker(judge, store, limits=Limits(concurrency=1, retries=0, first_wait=0)).ask(questions(400))
    assert count_of(store) == 10 and len(judge.attempts) == 10 + GIVE_UP


def test_a_refusal_stops_at_once(store):
    judge = Scripted(lambda question, attempt: UserError("no such model") if question == "question 5" else None)
    with pytest.raises(UserError, match="no such model"):
        Asker(judge, store, limits=Limits(concurrency=1)).ask(questions(50))
    assert len(judge.attempts) == 6


def test_replay_answers_from_the_store_alone(store):
    Asker(Scripted(), store).ask(questions(3))
    replay = Asker(None, store, name="scripted")
    assert [reply.text for reply in replay.ask(questions(3))] == ["QUESTION 0", "QUESTION 1", "QUESTION 2"]
    with pytest.raises(UserError, match="lacks 2 of 5"):
        replay.ask(questions(5))


def test_the_rate_is_kept(store):
    start = time.monotonic()
    Asker(Scripted(), store, limits=Limits(concurrency=8, per_minute=1200)).ask(questions(9))
    assert time.monotonic() - start >= 8 * 60 / 1200 - 0.01


def test_waits_grow_and_follow_the_server(store):
    def waits(asked_for, retries):
        asker = Asker(Scripted(lambda *_: Temporary("busy", asked_for)), store, limits=Limits(1, None, retries, 1.0))
        seconds = []
        asker._stop.wait = seconds.append
        assert asker.ask(questions(1)) == [None]
        return seconds

    assert all(2**attempt <= wait <= 1.25 * 2**attempt for attempt, wait in enumerate(waits(None, 4)))
    assert 30 <= waits(30.0, 1)[0] <= 37.5 and 60 <= waits(None, 21)[20] <= 75


def test_the_estimate_counts_what_is_left_and_the_tally_what_it_cost(store):
    asker = Asker(Scripted(), store)
    asks = questions(4)
    estimator = Estimator(asker)
    estimator.ask([*asks, asks[0]])
    assert estimator.questions == {"questions": 4, "prompt_tokens": 4 * 6, "completion_tokens": 4 * 256}
    asker.ask(asks[:3])
    later = Estimator(asker)
    later.ask(asks)
    assert later.questions["questions"] == 1
    assert (
        cost_of(asker.tally, (1.0, 10.0)) == pytest.approx((30 * 1 + 6 * 10) / 1e6)
        and cost_of(asker.tally, None) is None
    )


@pytest.mark.parametrize("values", [{"concurrency": 0}, {"per_minute": 0}, {"per_minute": -1.0}])
def test_limits_that_cannot_be_are_one_line(values):
    with pytest.raises(UserError, match="a judge needs"):
        InterpSpec(limits=Limits(**values))
