"""A lock file that names its holder. The operating system lets go of it when the process ends, however it ends, so none is ever stale."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metasae.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where two processes on one folder are not kept apart
    fcntl = None


@contextmanager
def locked(path: Path, advice: str, taken: Callable[[str], None], unlockable: Callable[[str], None]) -> Iterator[None]:
    """Holds the file at `path`, made with its folder where there is none; it stays.

    taken: told who holds it; where it returns, the lock is waited for. unlockable: told why the file system keeps no locks. advice: what
    to do where the folder cannot be written, which raises UserError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}; {advice}") from None
    with file:
        if fcntl is not None:
            _acquire(file, taken, unlockable)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _acquire(file, taken: Callable[[str], None], unlockable: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        taken(file.read() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        unlockable(error.strerror)
