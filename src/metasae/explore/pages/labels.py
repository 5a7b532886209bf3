"""What people say of latents and splits: RUN/labels.sqlite, which no build touches.

Every saying is kept; the last one counts, and an empty one takes the label away. A saying remembers the weights it was about, so that it
does not pass to another SAE that is later trained under the same name.
"""

import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from metasae.errors import UserError, nearest
from metasae.explore.store.stored_text import readable

LABELS = ("sense split", "duplicate", "absorption", "junk", "keep", "unsure")
FILE = "labels.sqlite"
LONGEST_NOTE = 10_000
_TABLE = """CREATE TABLE IF NOT EXISTS labels (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, target TEXT NOT NULL, weights TEXT NOT NULL,
    label TEXT NOT NULL, note TEXT NOT NULL, said TEXT NOT NULL)"""
_COLUMNS = "kind, target, weights, label, note, said"


@dataclass(frozen=True)
class Saying:
    """kind: latent or split. target: `solo-s0:17`, or the id of a split. weights: of the SAEs it is about. label: "" takes it away."""

    kind: str
    target: str
    weights: str
    label: str
    note: str
    when: str

    def as_dict(self) -> dict:
        return asdict(self)


def add(run_folder: Path, kind: str, target: str, weights: str, label: str | None, note: str = "") -> Saying:
    """Raises UserError for an unknown label, a note too long, and when the file cannot be written."""
    label = label or ""
    if label and label not in LABELS:
        raise UserError(f"no label '{label}'{nearest(str(label), LABELS)}")
    if len(note) > LONGEST_NOTE:
        raise UserError(f"a note has at most {LONGEST_NOTE:,} characters, not {len(note):,}")
    saying = Saying(
        kind, target, weights, label, readable(note), datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    path = run_folder / FILE
    try:
        with closing(sqlite3.connect(path, timeout=30)) as store, store:
            store.execute(_TABLE)
            store.execute(f"INSERT INTO labels ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", tuple(asdict(saying).values()))
    except sqlite3.Error as error:
        raise UserError(
            f"cannot write {path} ({error}); free some space, or move the file away if it is damaged"
        ) from None
    return saying


def read(run_folder: Path, kind: str | None = None, target: str | None = None) -> list[Saying]:
    """Sayings in their order: all, of one kind, or of one target. Raises UserError for a damaged file."""
    path = run_folder / FILE
    if not path.is_file():
        return []
    where = [(column, value) for column, value in (("kind", kind), ("target", target)) if value is not None]
    clause = " AND ".join(f"{column} = ?" for column, _ in where) or "1"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as store:
            rows = store.execute(
                f"SELECT {_COLUMNS} FROM labels WHERE {clause} ORDER BY number", [value for _, value in where]
            ).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise UserError(f"cannot read {path} ({error}); move the file away if it is damaged") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}); move it away") from None
    return [Saying(*row) for row in rows]


def current(sayings: list[Saying]) -> dict[str, str]:
    """target -> the label that counts; those whose label was taken away are absent."""
    last = {saying.target: saying.label for saying in sayings}
    return {target: label for target, label in last.items() if label}
