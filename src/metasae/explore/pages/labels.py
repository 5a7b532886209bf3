"""Labels that people give to latents and splits: RUN/labels.sqlite, which no build of the store changes.

Every label that was given is kept as a row. The last row of a target counts; an empty label there removes it. A row
holds the digest of the weights, so that a label does not pass to another SAE that is trained later under the same name.
"""

import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from functools import lru_cache

from metasae.encodings import readable
from metasae.errors import UserError, nearest
from metasae.explore.store.open_store import OpenStore

LABELS = ("sense split", "duplicate", "absorption", "junk", "keep", "unsure")
FILE = "labels.sqlite"
LONGEST_NOTE = 10_000
_TABLE = """CREATE TABLE IF NOT EXISTS labels (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, target TEXT NOT NULL,
    weights TEXT NOT NULL, label TEXT NOT NULL, note TEXT NOT NULL, said TEXT NOT NULL)"""
_COLUMNS = "kind, target, weights, label, note, said"
# the names of a row's columns on the pages
_KEYS = ("kind", "target", "weights", "label", "note", "when")


class Labels:
    """The labels given to the latents and splits of one store."""

    def __init__(self, store: OpenStore):
        self._store, self._path = store, store.run_folder / FILE
        self._weights = lru_cache(maxsize=None)(self._find_weights)

    def add(self, kind: str, target: str, label: str | None, note: str = "") -> None:
        """Adds a label. label: one of LABELS; "" or None removes the label.

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
        """Every label ever given, in order, with the `sae` and `latent` or the `id` of its target."""
        sayings = []
        for saying in self._read():
            target: dict = {"sae": None, "latent": None, "id": saying["target"]}
            if saying["kind"] == "latent":
                sae, _, latent = saying["target"].rpartition(":")
                target = {"sae": sae, "latent": int(latent), "id": None}
            sayings.append({**target, **saying})
        return sayings

    def of_latents(self, sae: str) -> dict[int, str]:
        """latent of one SAE -> its current label."""
        targets = [(*target.rpartition(":"), label) for target, label in self.current("latent").items()]
        return {int(latent): label for name, _, latent, label in targets if name == sae}

    def of(self, kind: str, target: str) -> list[dict]:
        """Every label ever given to a target: label, note, when."""
        sayings = [saying for saying in self._read(kind, target) if not saying["stale"]]
        return [
            {"label": saying["label"] or None, "note": saying["note"], "when": saying["when"]} for saying in sayings
        ]

    def current(self, kind: str) -> dict[str, str]:
        """target -> its current label, of latents or of splits; targets whose label was removed are absent."""
        last = {saying["target"]: saying["label"] for saying in self._read(kind) if not saying["stale"]}
        return {target: label for target, label in last.items() if label}

    def _read(self, kind: str | None = None, target: str | None = None) -> list[dict]:
        """Rows in order: all, of one kind, or of one target. stale: given to an SAE that is no longer in the run.

        kind: latent or split. target: `solo-s0:17`, or the id of a split. label: "" removes it. Raises UserError for
        a damaged file.
        """
        if not self._path.is_file():
            return []
        where = "kind = ifnull(?, kind) AND target = ifnull(?, target)"
        try:
            with closing(sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as file:
                rows = file.execute(f"SELECT {_COLUMNS} FROM labels WHERE {where} ORDER BY number", (kind, target))
                sayings = [dict(zip(_KEYS, row, strict=True)) for row in rows]
        except sqlite3.DatabaseError as error:
            if "no such table" in str(error):
                return []
            raise UserError(f"{self._path} is damaged or cannot be read ({error}); move it away") from None
        for saying in sayings:
            saying["stale"] = self._weights(saying["kind"], saying["target"]) != saying["weights"]
        return sayings

    def _find_weights(self, kind: str, target: str) -> str:
        """The digest of the weights of the SAEs that a target belongs to; "" where there is no such target."""
        names = [self._store.saes.get(target.rpartition(":")[0])]
        if kind == "split":
            names = self._store.sides_of(target)
        return "+".join(facts.weights for facts in names if facts)
