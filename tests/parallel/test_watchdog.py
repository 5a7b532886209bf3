"""A rank that ends takes the others with it, whatever they are at, and the message names it."""

import os
import signal
import time

import pytest

from metasae.errors import UserError
from spawned import on_ranks, results, start

pytestmark = pytest.mark.timeout(300)
# Seconds in which a job has ended on the busiest machine. Ranks that are not ended wait for each other, or are at work, for longer.
SOON = 90


def killed(ranks, victim, busy):
    ranks.wait()
    if ranks.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    if busy:
        time.sleep(10 * SOON)
    ranks.wait()


def failed(ranks):
    ranks.wait()
    if ranks.rank == 1:
        raise UserError("the disk is full")
    ranks.wait()


def left(ranks):
    # the one that is done first waits for the others, so that none of them is taken for lost
    time.sleep(0.5 * ranks.rank)
    return ranks.rank


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named_to_all_others(victim, tmp_path):
    begun = time.monotonic()
    found = results(start(3, killed, victim, False, errors=tmp_path / "errors"), SOON)
    assert time.monotonic() - begun < SOON
    assert found[victim] is None
    for rank, each in enumerate(found):
        assert rank == victim or each[1].startswith(f"RankLost: rank {victim} of 3 ended before the job was done"), each
    # on stderr once, and no traceback
    assert (tmp_path / "errors").read_text().count(f"metasae: rank {victim} of 3 ended") == 1


def test_a_rank_that_fails_says_why_and_the_others_say_which(tmp_path):
    first, second = results(start(2, failed, errors=tmp_path / "errors"), SOON)
    assert second[1].startswith("UserError: the disk is full") and first[1].startswith("RankLost: rank 1 of 2")
    assert "metasae:" not in (tmp_path / "errors").read_text()


def test_ranks_that_leave_at_different_times_are_not_lost():
    assert on_ranks(2, left) == [0, 1]


@pytest.mark.slow
def test_a_rank_that_does_not_listen_is_ended(tmp_path):
    started = start(2, killed, 1, True, errors=tmp_path / "errors")
    # one that is not ended wakes up after a minute and says which rank is lost
    assert results(started, 100) == [None, None]
    assert started[0][0].exitcode == UserError.exit_code
    assert "metasae: rank 1 of 2 ended" in (tmp_path / "errors").read_text()
