"""Lock files: one process at a time on a run folder and on a cache.

The operating system lets go of a lock when the process that holds it ends, however it ends, so no lock is ever stale.
The holder's name lies beside the lock file, in `<name>.holder`, so that a second process can say who works there.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

from filelock import FileLock, Timeout

from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress

RUN_LOCK, HARVEST_LOCK = "run.lock", "harvest.lock"
# What a file system without locks answers.
_NO_LOCKS = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)


def alone_on(folder: Path, progress: Progress = SILENT) -> AbstractContextManager[None]:
    """Holds a run folder, which is made where there is none, for as long as the block lasts.

    Raises UserError where another process holds it, and where the folder cannot be written.
    """
    return _locked(folder / RUN_LOCK, progress, "write to", "choose another --out", waits=False)


def harvesting_into(folder: Path, progress: Progress) -> AbstractContextManager[None]:
    """Holds a cache folder, which is made where there is none; says so and waits where another process holds it.

    Raises UserError when the folder cannot be written.
    """
    return _locked(folder / HARVEST_LOCK, progress, "harvest into", "choose another harvest.cache or --out", waits=True)


@contextmanager
def _locked(path: Path, progress: Progress, what: str, advice: str, waits: bool) -> Iterator[None]:
    """Holds the lock file at `path`; where the file system keeps no locks, it says so and goes on without.

    what: the work in the folder; advice: what to do where it cannot be written. waits: for another process that holds
    the lock, which is refused otherwise.
    """
    lock, name, folder = FileLock(path), path.with_name(f"{path.name}.holder"), path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = "another process"
        with suppress(OSError):
            holder = name.read_text(encoding="utf-8") or holder
        if not waits:
            raise UserError(f"{holder} works on {folder}; wait until it ends, or {advice}") from None
        progress.say(f"{holder} harvests into {folder}; waiting for it")
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise UserError(f"cannot write {folder}: {why}; {advice}") from None
        progress.say(f"{folder} cannot be locked ({why}); let no second run {what} it meanwhile")
    try:
        with suppress(OSError):
            name.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        name.unlink(missing_ok=True)
        lock.release()
