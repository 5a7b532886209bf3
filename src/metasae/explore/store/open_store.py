"""A store, open for reading: one connection per thread, and one function for every query.

The evaluation text is stored once, in chunks, so that a window only needs its first token:

texts          stretches: runs of tokens of one document whose positions rise by one, int64 [3, s] of first token,
               document and position
text_chunks    entries: uint32 [CHUNK] into the vocabulary; strings: JSON of the chunk's own strings where some token
               reads differently from its id alone, as a part of a character does (`metasae.data.text.pieces`)
vocabulary     the ids that stand in the text, with their string and how often they stand there
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from metasae.data.text.pieces import REACH
from metasae.errors import UserError
from metasae.explore.store.schema import FORMAT, LATENTS_OF_SAE, STORE, damaged, unzipped

MMAP_BYTES = 1 << 28
CHUNK = 4096
# tokens int64 [m] of a split -> the text of each
StringsOf = Callable[[np.ndarray], list[str]]


def folded(text: str) -> str:
    """The form in which a token is searched: without the space before it, in lower case."""
    return text.strip().casefold()


def stretches_of(documents: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """documents, positions int [T] -> int64 [3, s]: first token, document and position of each run without a break."""
    if not len(documents):
        return np.zeros((3, 0), np.int64)
    breaks = (np.diff(documents) != 0) | (np.diff(positions) != 1)
    first = np.concatenate([[0], np.flatnonzero(breaks) + 1]).astype(np.int64)
    return np.stack([first, documents[first], positions[first]]).astype(np.int64)


class StoredText:
    """Reads a text of the store. ask(sql, parameters) -> rows. Chunks that were read are kept, up to 16 MB."""

    def __init__(self, ask: Callable, number: int):
        self._ask, self.number = ask, number
        ((self.n_tokens, packed),) = ask("SELECT n_tokens, stretches FROM texts WHERE id = ?", (number,))
        self.first, self.document, self.position = np.frombuffer(unzipped(packed), "<i8").reshape(3, -1)
        self.vocabulary = dict(ask("SELECT entry, string FROM vocabulary WHERE text = ?", (number,)))
        self._chunk = lru_cache(maxsize=1024)(self._read_chunk)

    def strings(self, start: int, end: int) -> list[str]:
        """The pieces of text of tokens start to end - 1; joined they are the text.

        A character of several tokens stands with the last of them, and the others are empty. Where the window ends in
        the middle of one, it stands with the window's last token.
        """
        shown = self.pieces(start, end)
        last = end - 1
        # a token that has no text and a name is a part of a character
        if shown and not shown[-1] and self.names(last, end):
            after = self.pieces(end, min(end + REACH, self.stretch(last)[1]))
            shown[-1] = next((piece[0] for piece in after if piece), "")
        return shown

    def names(self, start: int, end: int) -> dict[int, str]:
        """Place in the window -> what the token there is called alone, of tokens start to end - 1 whose piece of the
        text is another.
        """
        named = [self.vocabulary[entry] for entry in self.entries_at(np.arange(start, end)).tolist()]
        pairs = enumerate(zip(named, self.pieces(start, end), strict=True))
        return {place: name for place, (name, piece) in pairs if name != piece}

    def pieces(self, start: int, end: int) -> list[str]:
        """The text of each of the tokens start to end - 1, a character with the last of its tokens."""
        strings = []
        for chunk in range(start // CHUNK, (max(end, start + 1) - 1) // CHUNK + 1):
            entries, own = self._chunk(chunk)
            here = slice(max(start - chunk * CHUNK, 0), min(end - chunk * CHUNK, CHUNK))
            strings += own[here] if own is not None else [self.vocabulary[entry] for entry in entries[here].tolist()]
        return strings

    def entries_at(self, places: np.ndarray) -> np.ndarray:
        """The vocabulary's entries at any tokens, int64 [m], rising."""
        entries = np.empty(len(places), np.int64)
        chunks = np.asarray(places) // CHUNK
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            entries[here] = self._chunk(chunk)[0][places[here] - chunk * CHUNK]
        return entries

    def stretch(self, place: int) -> tuple[int, int]:
        """First token and end of the stretch of text round a token."""
        number = self._stretch(place)
        end = int(self.first[number + 1]) if number + 1 < len(self.first) else self.n_tokens
        return int(self.first[number]), end

    def document_round(self, place: int) -> tuple[int, int]:
        """First token and end of the document round a token: the neighbouring stretches of the same document."""
        number = self._stretch(place)
        others = np.flatnonzero(self.document != self.document[number])
        before, after = others[others < number], others[others > number]
        begin = int(self.first[before[-1] + 1]) if len(before) else 0
        return begin, int(self.first[after[0]]) if len(after) else self.n_tokens

    def where(self, place: int) -> tuple[int, int]:
        """(document, position in it) of a token."""
        number = self._stretch(place)
        return int(self.document[number]), int(self.position[number] + place - self.first[number])

    def _stretch(self, place: int) -> int:
        return int(np.searchsorted(self.first, place, side="right")) - 1

    def _read_chunk(self, chunk: int) -> tuple[np.ndarray, list[str] | None]:
        ((entries, strings),) = self._ask(
            "SELECT entries, strings FROM text_chunks WHERE text = ? AND chunk = ?", (self.number, chunk)
        )
        own = None if strings is None else json.loads(unzipped(strings))
        return np.frombuffer(unzipped(entries), "<u4"), own


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
    """RUN/explore.sqlite and its SAEs. Any thread may query it."""

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
        """The facts of an SAE. Raises KeyError for an unknown name."""
        if not isinstance(name, str) or name not in self.saes:
            raise KeyError(f"no SAE '{name}' in this run; known: {', '.join(self.saes)}")
        return self.saes[name]

    def check(self, sae: str, latent: int) -> int:
        """The latent itself. Raises KeyError where the SAE has no such latent."""
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
