"""Builds RUN/explore.sqlite from a run folder, part by part.

A part is a text, an SAE, two SAEs held against each other, or the overview. Each is written in one transaction together with a
fingerprint of what it was made from: a build that was killed goes on with the next part, and one of a run that changed writes only
the parts that changed. The work is done in a file beside the store, which takes its place at the end.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metasae.errors import UserError
from metasae.explore.store.plan import Part, Plan
from metasae.explore.store.schema import FORMAT, STORE, create, format_of
from metasae.explore.store.window_blobs import WINDOWS
from metasae.progress.progress import SILENT, Progress

if TYPE_CHECKING:
    from metasae.explore.store.parts import Job
    from metasae.explore.store.text_rows import StringsOf

WORKING = f".{STORE}.part"
# Parts lean on those before them, so they are taken out in the opposite order.
_ORDER = ("overview", "logits", "interp", "splits", "pair", "sae", "text")


def build(
    run_folder: str | Path, progress: Progress = SILENT, *, windows: int = WINDOWS, strings: "StringsOf | None" = None
) -> Path:
    """Writes RUN/explore.sqlite and returns its path; what is there and unchanged stays.

    windows: shown of each latent, at most. strings: the text of tokens of the evaluation split; None asks the run's tokenizer.
    Labels lie in a file of their own and are not touched. Raises UserError for a folder that is no run, a damaged firing store, a
    tokenizer that cannot be had, and when the disk is full or cannot be written.
    """
    if windows < 1:
        raise UserError(f"the explorer shows at least 1 window per latent, not {windows}")
    run_folder = Path(run_folder)
    plan = Plan(run_folder, windows)
    target, working = run_folder / STORE, run_folder / WORKING
    wanted = plan.parts()
    try:
        if not working.exists() and _done(target) == {part.name: part.fingerprint for part in wanted}:
            return target
        # torch is imported where there is something to write, and not to find that there is nothing
        from metasae.explore.store.parts import Job

        with closing(_open_working(working, target, progress)) as store:
            _write(store, wanted, Job(plan, strings, progress), progress)
        os.replace(working, target)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(f"another process builds {target}; wait for it, then run again") from None
        raise UserError(
            f"cannot write {working} ({error}); free some space or delete the file, then run again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}); free some space, then run again") from None
    return target


def _write(store: sqlite3.Connection, wanted: list[Part], job: "Job", progress: Progress) -> None:
    from metasae.explore.store.removal import finish, forget, remove

    done = dict(store.execute("SELECT name, fingerprint FROM parts"))
    obsolete = sorted(
        done.keys() - {part.name for part in wanted}, key=lambda name: _ORDER.index(name.partition(":")[0])
    )
    with _transaction(store):
        for name in obsolete:
            forget(store, name)
    missing = [part for part in wanted if done.get(part.name) != part.fingerprint]
    with progress.task("preparing the explorer", len(missing), "parts") as task:
        for part in missing:
            begin = time.perf_counter()
            with _transaction(store):
                remove(store, part.name)
                job.write(part, store)
                store.execute(
                    "INSERT OR REPLACE INTO parts VALUES (?, ?, ?)",
                    (part.name, part.fingerprint, time.perf_counter() - begin),
                )
            task.advance(1)
    with _transaction(store):
        finish(store)


@contextmanager
def _transaction(store: sqlite3.Connection) -> Iterator[None]:
    store.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        store.execute("ROLLBACK")
        raise
    store.execute("COMMIT")


def _open_working(working: Path, target: Path, progress: Progress) -> sqlite3.Connection:
    """The file that is written to: what a killed build left, a copy of the finished store, or a new one."""
    if working.exists() and _done(working) is None:
        progress.say(f"{working} is damaged or of another version; it is built anew")
        working.unlink()
    if not working.exists() and _done(target) is not None:
        copy = working.with_name(f"{working.name}.copy")
        shutil.copyfile(target, copy)
        os.replace(copy, working)
    store = sqlite3.connect(working, isolation_level=None, timeout=1) if working.exists() else create(working)
    # a killed process loses nothing; after a power cut the file is built anew, as its parts follow from the run folder
    store.execute("PRAGMA synchronous = OFF")
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("PRAGMA cache_size = -65536")
    return store


def _done(path: Path) -> dict[str, str] | None:
    """The finished parts of a store; None where there is no whole store of this version."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=1)) as store:
            if format_of(store) != FORMAT or store.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                return None
            return dict(store.execute("SELECT name, fingerprint FROM parts"))
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise
        return None
    except sqlite3.DatabaseError:
        return None
