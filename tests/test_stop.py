"""Ctrl-C: the answer at once, what stops at once and what saves first, and a second one."""

import os
import signal
import threading

import pytest

from metasae.progress.stop import StopRequest

ANSWER = "finishing the current step, then saving (training solo, seed 0); Ctrl-C again to stop now"


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture
def answers():
    return []


@pytest.fixture
def stop(answers):
    return StopRequest(answers.append, "training solo, seed 0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_is_answered_at_once_and_only_asks(stop, answers, number):
    before = signal.getsignal(number)
    with stop.listening():
        press(number)
        assert stop.asked and answers == [ANSWER]
        # whatever the process did with a signal before
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_second_one_stops_now(stop, answers):
    with pytest.raises(KeyboardInterrupt), stop.listening():
        press()
        press()
    assert len(answers) == 1


def test_where_nothing_is_lost_the_first_one_stops(stop, answers):
    with pytest.raises(KeyboardInterrupt), stop.listening(), stop.at_once():
        press()
    assert answers == ["stopping (training solo, seed 0); Ctrl-C again to stop now"]


def test_one_that_came_before_stops_what_would_begin(stop):
    begun = []
    with pytest.raises(KeyboardInterrupt), stop.listening():
        press()
        with stop.at_once():
            begun.append(True)
    assert not begun


def test_after_a_block_that_stops_at_once_it_asks_again(stop):
    with stop.listening():
        with stop.at_once():
            pass
        press()
    assert stop.asked


def test_a_signal_that_the_process_ignores_stays_ignored(stop):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.listening(), stop.at_once():
            press()
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_sent_no_signal_and_goes_on(stop):
    done = []

    def work():
        with stop.listening():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_an_answer_in_the_middle_of_a_line_is_written_past_it(capfd):
    def busy(line):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with StopRequest(busy).listening():
        press()
    assert "finishing the current step, then saving (the current work)" in capfd.readouterr().err
