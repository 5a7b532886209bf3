"""Ctrl-C and SIGTERM: answered at once, and obeyed as soon as no work worth keeping would be lost."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked to stop. The first signal is answered by one line; a second one has its usual effect.

    Work that would lose only its own unfinished file runs inside `at_once`, where the first signal raises
    KeyboardInterrupt. All other work checks `asked` where it can stop, and saves its state.

    say: prints the answer; None prints nothing. doing: the current work, as named in the answer.
    """

    def __init__(self, say: Callable[[str], None] | None = None, doing: str = "the current work"):
        self.asked, self.doing = False, doing
        self._say, self._at_once = say, False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handles both signals during the block, except one that this process ignores. Only the main thread receives
        signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number, frame):
            self.asked = True
            give_back()
            self._answer()
            if self._at_once:
                raise KeyboardInterrupt

        def give_back():
            for number, handler in previous.items():
                signal.signal(number, handler)

        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        previous = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        for number in previous:
            signal.signal(number, ask)
        try:
            yield self
        finally:
            give_back()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """During the block a signal raises KeyboardInterrupt; so does a signal that came before.

        In another thread only a signal that came before does.
        """
        if threading.current_thread() is not threading.main_thread():
            # signals go to the main thread, which waits for all threads
            if self.asked:
                raise KeyboardInterrupt
            yield
            return
        before = self._at_once
        try:
            self._at_once = True
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = before

    def _answer(self) -> None:
        if self._say is None:
            return
        manner = "stopping" if self._at_once else "finishing the current step, then saving"
        line = f"{manner} ({self.doing}); Ctrl-C again to stop now"
        try:
            self._say(line)
        except RuntimeError:
            # the signal came while this thread was writing to stderr, which cannot be entered again
            os.write(sys.__stderr__.fileno(), f"\n{line}\n".encode())
