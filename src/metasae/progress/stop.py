"""Ctrl-C and SIGTERM: answered at once, and obeyed as soon as nothing that is worth keeping is lost by it."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A first signal, to which one line on stderr is the answer. A second one acts as if nobody listened.

    What loses only its own unfinished file runs inside `at_once`, where the first signal raises KeyboardInterrupt.
    All else looks at `asked` where it can stop, and saves what it has.

    say: prints the answer; None keeps quiet. doing: what goes on, as the answer calls it.
    """

    def __init__(self, say: Callable[[str], None] | None = None, doing: str = "the work in hand"):
        self.asked, self.doing = False, doing
        self._say, self._at_once = say, False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Takes both signals while inside, but for one that this process ignores. Only a main thread is sent any."""
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
        """While inside, a signal raises KeyboardInterrupt, as does one that came before.

        In a lane only one that came before does.
        """
        if threading.current_thread() is not threading.main_thread():
            # signals go to the main thread, which waits for all lanes
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
        manner = "stopping" if self._at_once else "finishing the step in hand, then saving"
        line = f"{manner} ({self.doing}); Ctrl-C again to stop now"
        try:
            self._say(line)
        except RuntimeError:
            # the signal came while this thread wrote to stderr, which takes no line in the middle of another
            os.write(sys.__stderr__.fileno(), f"\n{line}\n".encode())
