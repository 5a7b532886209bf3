"""What people say of latents and splits: RUN/labels.sqlite, which no build touches.

Every saying is kept; the last one counts, and an empty one takes the label away. A saying remembers the weights it was
about, so that it does not pass to another SAE that is later trained under the same name.
"""

import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import lru_cache

from metasae.errors import UserError, nearest
from metasae.explore.store.open_store import OpenStore
from metasae.explore.store.stored_text import readable

LABELS = ("sense split", "duplicate", "absorption", "junk", "keep", "unsure")
FILE = "labels.sqlite"
LONGEST_NOTE = 10_000
_TABLE = """CREATE TABLE IF NOT EXISTS labels (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, target TEXT NOT NULL,
    weights TEXT NOT NULL, label TEXT NOT NULL, note TEXT NOT NULL, said TEXT NOT NULL)"""
_COLUMNS = "kind, target, weights, label, note, said"


@dataclass(frozen=True)
class Saying:
    """kind: latent or split.

    target: `solo-s0:17`, or the id of a split. weights: of the SAEs it is about. label: "" takes it away.
    """

    kind: str
    target: str
    weights: str
    label: str
    note: str
    when: str


class Labels:
    """The sayings about the SAEs of one store."""

    def __init__(self, store: OpenStore):
        self._store, self._path = store, store.run_folder / FILE
        self._weights = lru_cache(maxsize=None)(self._find_weights)

    def add(self, kind: str, target: str, label: str | None, note: str = "") -> None:
        """Adds a saying. label: one of LABELS; "" or None takes the label away.

        Raises KeyError for a target that is not there, UserError for an unknown label, for a note too long, and where
        the file cannot be written.
        """
        label, weights = label or "", self._weights(kind, target)
        if not weights:
            raise KeyError(f"no {kind} '{target}' in this run")
        if label and label not in LABELS:
            raise UserError(f"no label '{label}'{nearest(str(label), LABELS)}")
        if len(note) > LONGEST_NOTE:
            raise UserError(f"a note has at most {LONGEST_NOTE:,} characters, not {len(note):,}")
        row = (kind, target, weights, label, readable(note), datetime.now(timezone.utc).isoformat(timespec="seconds"))
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as file, file:
                file.execute(_TABLE)
                file.execute(f"INSERT INTO labels ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise UserError(
                f"cannot write {self._path} ({error}); free some space, or move the file away if it is damaged"
            ) from None

    def all(self) -> list[dict]:
        """Every saying in its order. stale: about weights that are no longer in the run."""
        sayings = []
        for saying in self._read():
            target: dict = {"sae": None, "latent": None, "id": saying.target}
            if saying.kind == "latent":
                sae, _, latent = saying.target.rpartition(":")
                target = {"sae": sae, "latent": int(latent), "id": None}
            sayings.append({**target, **asdict(saying), "stale": not self._holds(saying)})
        return sayings

    def of_latents(self, sae: str) -> dict[int, str]:
        """latent -> the label that counts, of one SAE."""
        targets = [(*target.rpartition(":"), label) for target, label in self.current("latent").items()]
        return {int(latent): label for name, _, latent, label in targets if name == sae}

    def of(self, kind: str, target: str) -> list[dict]:
        """Every saying about a target: label, note, when."""
        sayings = [saying for saying in self._read(kind, target) if self._holds(saying)]
        return [{"label": saying.label or None, "note": saying.note, "when": saying.when} for saying in sayings]

    def current(self, kind: str) -> dict[str, str]:
        """target -> the label that counts, of latents or of splits; targets whose label was taken away are absent."""
        last = {saying.target: saying.label for saying in self._read(kind) if self._holds(saying)}
        return {target: label for target, label in last.items() if label}

    def _read(self, kind: str | None = None, target: str | None = None) -> list[Saying]:
        """Sayings in their order: all, of one kind, or of one target. Raises UserError for a damaged file."""
        if not self._path.is_file():
            return []
        where = "kind = ifnull(?, kind) AND target = ifnull(?, target)"
        try:
            with closing(sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as file:
                rows = file.execute(f"SELECT {_COLUMNS} FROM labels WHERE {where} ORDER BY number", (kind, target))
                return [Saying(*row) for row in rows]
        except sqlite3.DatabaseError as error:
            if "no such table" in str(error):
                return []
            raise UserError(f"{self._path} is damaged or cannot be read ({error}); move it away") from None

    def _holds(self, saying: Saying) -> bool:
        """Whether what a saying is about is still in the run."""
        return self._weights(saying.kind, saying.target) == saying.weights

    def _find_weights(self, kind: str, target: str) -> str:
        """Of the SAEs that a target is of; "" where there is no such target."""
        names = [self._store.saes.get(target.rpartition(":")[0])]
        if kind == "split":
            names = self._store.sides_of(target)
        return "+".join(facts.weights for facts in names if facts)
