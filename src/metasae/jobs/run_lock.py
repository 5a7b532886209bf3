"""One process at a time on a run folder."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

from metasae.errors import UserError
from metasae.locks import locked
from metasae.progress.progress import SILENT, Progress

LOCK = "run.lock"


def alone_on(folder: Path, progress: Progress = SILENT) -> AbstractContextManager[None]:
    """Holds a run folder, which is made where there is none, for as long as the block lasts.

    Raises UserError where another process holds it, and where the folder cannot be written.
    """

    def refuse(holder: str) -> NoReturn:
        raise UserError(f"{holder} works on {folder}; wait until it ends, or choose another --out")

    unlockable = lambda why: progress.say(f"{folder} cannot be locked ({why}); let no second run write to it meanwhile")
    return locked(folder / LOCK, "choose another --out", refuse, unlockable)


@contextmanager
def first_alone_on(folder: Path, progress: Progress = SILENT) -> Iterator[None]:
    """`alone_on` for the first process of a job with several (torchrun); the others work under its lock."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with alone_on(folder, progress):
        yield
