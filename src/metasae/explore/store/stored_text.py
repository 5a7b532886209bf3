"""The evaluation text in the store: every token once, in chunks, so that a window needs no more than where it begins.

texts          stretches: runs of tokens of one document whose positions rise by one, int64 [3, s] of first token,
               document and position
text_chunks    entries: uint32 [CHUNK] into the vocabulary; strings: JSON of the chunk's own strings where tokens of one
               id read differently
vocabulary     the ids that stand in the text, with their string and how often they stand there
"""

import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from metasae.explore.store.schema import unzipped

CHUNK = 4096
# tokens int64 [m] of a split -> the text of each
StringsOf = Callable[[np.ndarray], list[str]]


def readable(text: str) -> str:
    """The text as UTF-8 can hold it: surrogate pairs are joined, a lone surrogate is shown as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def folded(text: str) -> str:
    """By what a token is searched: without the space before it, in small letters."""
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
        self._strings = dict(ask("SELECT entry, string FROM vocabulary WHERE text = ?", (number,)))
        self._chunk = lru_cache(maxsize=1024)(self._read_chunk)

    def strings(self, start: int, end: int) -> list[str]:
        """The text of tokens start to end - 1."""
        strings = []
        for chunk in range(start // CHUNK, (max(end, start + 1) - 1) // CHUNK + 1):
            entries, own = self._chunk(chunk)
            here = slice(max(start - chunk * CHUNK, 0), min(end - chunk * CHUNK, CHUNK))
            strings += own[here] if own is not None else [self._strings[entry] for entry in entries[here].tolist()]
        return strings

    def entries_at(self, places: np.ndarray) -> np.ndarray:
        """The vocabulary's entries at any tokens, int64 [m], rising."""
        entries = np.empty(len(places), np.int64)
        chunks = np.asarray(places) // CHUNK
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            entries[here] = self._chunk(chunk)[0][places[here] - chunk * CHUNK]
        return entries

    def string_of(self, entry: int) -> str:
        return self._strings[entry]

    def stretch(self, place: int) -> tuple[int, int]:
        """First token and end of the stretch of text round a token."""
        number = self._stretch(place)
        end = int(self.first[number + 1]) if number + 1 < len(self.first) else self.n_tokens
        return int(self.first[number]), end

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
