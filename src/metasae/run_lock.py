"""One process at a time on a run folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metasae.errors import UserError
from metasae.progress import SILENT, Progress

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not kept apart
    fcntl = None

LOCK = "run.lock"


@contextmanager
def alone_on(folder: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Holds a run folder, which is made where there is none, for as long as the block lasts.

    The operating system lets go of the lock when a process ends, however it ends, so that no lock is ever stale. The file stays.
    Raises UserError where another process holds it, and where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from None
    with file:
        if fcntl is not None:
            _acquire(file, folder, progress)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _acquire(file, folder: Path, progress: Progress) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(f"{file.read() or 'another process'} works on {folder}; wait until it ends, or choose another --out") from None
    except OSError as error:
        progress.say(f"{folder} cannot be locked ({error.strerror}); let no second run write to it meanwhile")


@contextmanager
def first_alone_on(folder: Path, progress: Progress = SILENT) -> Iterator[None]:
    """`alone_on` for the first process of a job with several (torchrun); the others work under its lock."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with alone_on(folder, progress):
        yield
