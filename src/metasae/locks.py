"""Lock files: one process at a time on a run folder, on a cache and on a sweep's files.

The operating system lets go of a lock when the process that holds it ends, however it ends, so no lock is ever stale.
The holder's name lies beside the lock file, in `<name>.holder`, so that a second process can say who works there.
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
# What a file system without locks answers.
_NO_LOCKS = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)


def alone_on(folder: Path, progress: Progress = SILENT) -> AbstractContextManager[bool]:
    """Holds a run folder, which is made where there is none, for as long as the block lasts.

    Raises UserError where another process holds it, and where the folder cannot be written.
    """

    def refuse(holder: str) -> NoReturn:
        raise UserError(f"{holder} works on {folder}; wait until it ends, or choose another --out")

    def warn(why: str) -> None:
        progress.say(f"{folder} cannot be locked ({why}); let no second run write to it meanwhile")

    return locked(folder / RUN_LOCK, "choose another --out", refuse, warn)


def harvesting_into(folder: Path, progress: Progress) -> AbstractContextManager[bool]:
    """Holds a cache folder, which is made where there is none; says so and waits where another process holds it.

    Raises UserError when the folder cannot be written.
    """

    def say_who(holder: str) -> None:
        progress.say(f"{holder} harvests into {folder}; waiting for it")

    def warn(why: str) -> None:
        progress.say(f"{folder} cannot be locked ({why}); let no second run harvest into it meanwhile")

    return locked(folder / HARVEST_LOCK, "choose another harvest.cache or --out", say_who, warn)


@contextmanager
def locked(
    path: Path,
    advice: str,
    taken: Callable[[str], None] = lambda holder: None,
    unlockable: Callable[[str], None] = lambda why: None,
    wait: bool = True,
) -> Iterator[bool]:
    """Holds the lock file at `path`, which is made with its folder where there is none.

    Gives whether it is held: False only where `wait` is False and another process holds it. taken: called with the
    holder before the lock is waited for; it may raise. unlockable: called with the reason where the file system keeps
    no locks; the block then runs without one, unless it raises. advice: what to do where the folder cannot be
    written, which raises UserError.
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
    """Takes the lock where nobody holds it; False where another process does."""
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
