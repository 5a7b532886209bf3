"""Lock files, so that one process at a time works on a run folder, a cache or a sweep's files.

The operating system releases a lock when the process that holds it ends for any reason, so a lock is never left behind.
The holder's name is in `<name>.holder` beside the lock file, for the message to a second process.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from metasae.errors import UserError
from metasae.progress.progress import SILENT, Progress

RUN_LOCK, HARVEST_LOCK = "run.lock", "harvest.lock"
# The errors of a file system without locks.
_NO_LOCKS = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)


def alone_on(folder: Path, progress: Progress = SILENT) -> AbstractContextManager[bool]:
    """Holds the lock of a run folder during the block; creates the folder if there is none.

    Raises UserError if another process holds the lock or the folder cannot be written.
    """

    def refuse(holder: str) -> NoReturn:
        raise UserError(f"{holder} is working on {folder}; wait until it ends, or choose another --out")

    def warn(why: str) -> None:
        progress.say(f"{folder} cannot be locked ({why}); do not start a second run that writes to it")

    return locked(folder / RUN_LOCK, "choose another --out", refuse, warn)


def harvesting_into(folder: Path, progress: Progress) -> AbstractContextManager[bool]:
    """Holds the lock of a cache folder during the block; creates the folder if there is none. Waits while another
    process holds the lock, and says so.

    Raises UserError if the folder cannot be written.
    """

    def say_who(holder: str) -> None:
        progress.say(f"{holder} is harvesting into {folder}; waiting for it")

    def warn(why: str) -> None:
        progress.say(f"{folder} cannot be locked ({why}); do not start a second run that harvests into it")

    return locked(folder / HARVEST_LOCK, "choose another harvest.cache or --out", say_who, warn)


@contextmanager
def locked(
    path: Path,
    advice: str,
    taken: Callable[[str], None] = lambda holder: None,
    unlockable: Callable[[str], None] = lambda why: None,
    wait: bool = True,
) -> Iterator[bool]:
    """Holds the lock file at `path` during the block; creates the file and its folder if needed.

    Yields whether the lock is held: False only if `wait` is False and another process holds it. taken: called with the
    holder's name before waiting for the lock; it may raise. unlockable: called with the reason if the file system has
    no locks; unless it raises, the block then runs without a lock. advice: the end of the UserError that is raised if
    the folder cannot be written.
    """
    lock, name = FileLock(path), path.with_name(f"{path.name}.holder")
    if not _is_free(lock, path, advice, unlockable):
        if not wait:
            yield False
            return
        taken(_read(name))
        lock.acquire()
    try:
        with suppress(OSError):
            name.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield True
    finally:
        name.unlink(missing_ok=True)
        lock.release()


def _is_free(lock: FileLock, path: Path, advice: str, unlockable: Callable[[str], None]) -> bool:
    """Takes the lock if it is free; False if another process holds it. True also if the file system has no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError as error:
        unlockable(str(error))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"cannot write {path.parent}: {error.strerror}; {advice}") from None
        unlockable(error.strerror or str(error))
    return True


def _read(name: Path) -> str:
    with suppress(OSError):
        return name.read_text(encoding="utf-8") or "another process"
    return "another process"
