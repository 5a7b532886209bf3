"""The store, open for reading: one connection per thread, and every question asked through one function."""

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from metasae.errors import UserError
from metasae.explore.store.schema import FORMAT, STORE, damaged, format_of

MMAP_BYTES = 1 << 28


class Reader:
    """RUN/explore.sqlite. `ask` may be called from any thread."""

    def __init__(self, run_folder: Path):
        """Raises UserError when there is no store, one of another version, or a damaged one."""
        self.path = run_folder / STORE
        if not self.path.is_file():
            raise UserError(f"{run_folder} has no {STORE}; build it with `metasae explore {run_folder}`")
        self._local = threading.local()
        try:
            found = format_of(self._connection)
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, error) from None
        if found != FORMAT:
            raise UserError(
                f"{self.path} is of version {found}, not {FORMAT}; delete it and build it again with `metasae explore`"
            )

    @property
    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            # the file is never written in place, so no reader needs a lock
            connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None
            )
            connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            self._local.connection = connection
        return self._local.connection

    def ask(self, sql: str, parameters: Sequence | dict = ()) -> list[tuple]:
        """All rows. Raises UserError when the file turns out to be damaged."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, error) from None
