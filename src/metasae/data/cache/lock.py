"""One harvest into a folder at a time."""

from contextlib import AbstractContextManager
from pathlib import Path

from metasae import locks
from metasae.progress.progress import Progress

LOCK = "harvest.lock"


def locked(folder: Path, progress: Progress) -> AbstractContextManager[None]:
    """Holds the folder, which is made where there is none; where another process holds it, says so and waits.

    Raises UserError when the folder cannot be written.
    """
    return locks.locked(
        folder / LOCK,
        "choose another harvest.cache or --out",
        lambda holder: progress.say(f"{holder} harvests into {folder}; waiting for it"),
        lambda why: progress.say(f"{folder} cannot be locked ({why}); let no second run harvest into it meanwhile"),
    )
