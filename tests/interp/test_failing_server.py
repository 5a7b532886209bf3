"""Whole scores through a server that fails in every way, from a process that is killed in the middle: the same as
without any of it.
"""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chat_server import serving
from failing_run import Undisturbed, scored, text_for
from worlds import count_of

from metasae.interp.choice import READ
from metasae.interp.judges.server import ServerJudge
from metasae.interp.replies import ReplyStore
from spawned import Program

HERE = Path(__file__).parent
FAULTS = {"error": 0.05, "busy": 0.05, "silence": 0.02, "garbage": 0.05}


@pytest.mark.parametrize(
    ("keys", "latents", "at_least"),
    [(["detection"], 20, 300), pytest.param(list(READ), 30, 2000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_nothing_is_lost_and_nothing_asked_twice_after_a_kill(tmp_path, keys, latents, at_least):
    path = tmp_path / "replies.sqlite"
    expected, quiet = scored(Undisturbed(), tmp_path / "quiet.sqlite", keys, latents)
    assert quiet["asked"] >= at_least
    with serving(answer=text_for, faults=FAULTS, silence=1.5) as server:
        child = Program([HERE / "failing_run.py", server.url, path, json.dumps(keys), latents])
        deadline = time.monotonic() + 100
        while len(server.delivered) < quiet["asked"] // 2 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        while server.at_once:
            time.sleep(0.01)
        before, delivered = Counter(server.attempts), Counter(server.delivered)
        with ReplyStore(path) as store:
            kept = count_of(store)
        # whole answers that were sent and not kept were on their way when the process died; what was answered more
        # than once could not be read, and no answer to it is kept
        once = sum(times == 1 for times in delivered.values())
        assert at_least // 4 < kept < quiet["asked"] and kept <= len(delivered) and once - kept <= 16

        scores, tally = scored(ServerJudge(server.url, "oracle", timeout=1.0), path, keys, latents)
        assert set(server.met) == set(FAULTS)
        again = sum((server.delivered - delivered).values())
        # what cannot be read is asked again, in this process and in each one after it
        again -= tally["again"]
        unread = {question for question, times in server.delivered.items() if times > 2}
        assert tally["asked"] == again and quiet["asked"] - kept <= again <= quiet["asked"] - kept + len(unread)
        assert tally["failed"] == 0 and quiet["again"] == 2 * len(unread) > 0
        # else a question is answered twice only where the first answer was lost with the process
        twice = [question for question, times in server.delivered.items() if times > 1 and question not in unread]
        assert len(twice) <= sum(delivered.values()) - kept and all(before[question] for question in twice)
        with ReplyStore(path) as store:
            assert count_of(store) == quiet["asked"]
        before = Counter(server.delivered)
        everything, no_more = scored(ServerJudge(server.url, "oracle"), path, keys, latents)
        assert no_more["asked"] == len(unread) and (server.delivered - before).keys() == unread
    for key in keys:
        for part, values in expected[key].values.items():
            np.testing.assert_array_equal(scores[key].values[part], values)
            np.testing.assert_array_equal(everything[key].values[part], values)
        assert (
            scores[key].counts == expected[key].counts
            and scores[key].counts["unreadable"] > 0 == scores[key].counts["failed"]
        )
        assert scores[key].explanations == expected[key].explanations
