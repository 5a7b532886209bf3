"""An iterator that works ahead in a background thread, within bounds."""

import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_END = object()


class Prefetch(Generic[Item]):
    """Iterates over `source` in a thread that keeps at most `depth` items ready.

    An exception of the source is raised where its item would have come. `close` stops the thread and waits for it.
    """

    def __init__(self, source: Iterable[Item], depth: int = 2):
        self._ready: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        # the thread holds no reference to self, so that a forgotten Prefetch can be collected
        self._thread = threading.Thread(
            target=_fill, args=(source, self._ready, self._stop), daemon=True, name="metasae-prefetch"
        )
        self._thread.start()
        # also when the program ends: a thread that is cut off inside torch can crash the interpreter
        weakref.finalize(self, _halt, self._stop, self._thread)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stop.is_set():
            raise StopIteration
        kind, value = self._ready.get()
        if kind is None:
            return value
        self._stop.set()
        if kind is _END:
            raise StopIteration
        raise value

    def close(self) -> None:
        _halt(self._stop, self._thread)

    def __enter__(self) -> "Prefetch[Item]":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _fill(source: Iterable, ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in source:
            if not _put(ready, (None, item), stop):
                return
        _put(ready, (_END, None), stop)
    except BaseException as error:
        # handed over, not swallowed: it is raised again in the thread that waits
        _put(ready, (BaseException, error), stop)


def _halt(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()


def _put(ready: queue.Queue, entry: tuple, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(entry, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
