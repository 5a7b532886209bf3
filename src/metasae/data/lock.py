"""One harvest into a folder at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metasae.errors import UserError
from metasae.progress import Progress

try:
    import fcntl
except ImportError:  # Windows, where two harvests into one folder are not kept apart
    fcntl = None

LOCK = "harvest.lock"


@contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Holds the folder, which is made where there is none; where another process holds it, says so and waits.

    The operating system lets go of the lock when a process ends, however it ends, so that no lock is ever stale. The file stays.
    Raises UserError when the folder cannot be written.
    """
    with _opened(folder) as file:
        if fcntl is not None:
            _acquire(file, folder, progress)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _opened(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOCK, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another harvest.cache or --out") from None


def _acquire(file, folder: Path, progress: Progress) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        progress.say(f"{file.read() or 'another process'} harvests into {folder}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        progress.say(f"{folder} cannot be locked ({error.strerror}); let no second run harvest into it meanwhile")
