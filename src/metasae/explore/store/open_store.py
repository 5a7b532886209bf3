"""A store, open for reading: one connection per thread, and every question asked through one function."""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.explore.store.schema import FORMAT, LATENTS_OF_SAE, STORE, damaged
from metasae.explore.store.stored_text import StoredText

MMAP_BYTES = 1 << 28


@dataclass(frozen=True)
class SaeFacts:
    """One SAE of the store. id: its number. n: its latents. text: the number of its evaluation text, of n_tokens."""

    id: int
    name: str
    n: int
    text: int | None
    n_tokens: int | None
    weights: str
    has_firings: bool


class OpenStore:
    """RUN/explore.sqlite and which SAEs it is of. May be asked from any thread."""

    def __init__(self, run_folder: Path):
        """Raises UserError when there is no store, one of another version, or a damaged one."""
        self.run_folder, self.path = run_folder, run_folder / STORE
        if not self.path.is_file():
            raise UserError(f"{run_folder} has no {STORE}; build it with `metasae explore {run_folder}`")
        self._local = threading.local()
        ((version,),) = self.ask("PRAGMA user_version")
        if version != FORMAT:
            raise UserError(
                f"{self.path} is of version {version}, not {FORMAT}; delete it and build it again with "
                "`metasae explore`"
            )
        rows = self.ask("SELECT id, name, n, text, n_tokens, weights, has_firings FROM saes ORDER BY id")
        self.by_id = {row[0]: SaeFacts(*row[:-1], bool(row[-1])) for row in rows}
        self.saes = {facts.name: facts for facts in self.by_id.values()}
        self.text = lru_cache(maxsize=None)(lambda number: StoredText(self.ask, number))

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

    def sae(self, name: str) -> SaeFacts:
        """Raises KeyError for an SAE that is not there."""
        if not isinstance(name, str) or name not in self.saes:
            raise KeyError(f"no SAE '{name}' in this run; known: {', '.join(self.saes)}")
        return self.saes[name]

    def check(self, sae: str, latent: int) -> int:
        """The latent. Raises KeyError where there is no such one."""
        if isinstance(latent, bool) or not isinstance(latent, (int, np.integer)) or not 0 <= latent < self.sae(sae).n:
            raise KeyError(f"no latent {latent} in {sae}; they go from 0 to {self.sae(sae).n - 1}")
        return int(latent)

    def named(self, key: int) -> dict:
        """{"sae", "latent"} of a key."""
        sae, latent = divmod(key, LATENTS_OF_SAE)
        return {"sae": self.by_id[sae].name, "latent": latent}

    def sides_of(self, split: str) -> list[SaeFacts]:
        """The parent's and the children's SAE; [] for a split that is not there."""
        sql = "SELECT p.parent, p.child FROM splits s JOIN pairs p ON p.name = s.pair WHERE s.id = ?"
        return [self.by_id[number] for sides in self.ask(sql, (split,)) for number in sides]

    def arm_folder(self, sae: SaeFacts) -> Path:
        return self.run_folder / "arms" / sae.name

    def has_firings(self, sae: SaeFacts) -> bool:
        """Whether its firings are still in the run folder."""
        return sae.has_firings and (self.arm_folder(sae) / "firings" / "by_latent").is_dir()
