"""What the model reads in a harvest: documents -> windows of each split, in pools, with a cursor that can be saved."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from metasae.data.text import text as texts
from metasae.data.text.windows import Frame, Window, cut, grouped, tokenise
from metasae.errors import UserError
from metasae.recipe import recipe

Pool = list[tuple[str, Window]]


@dataclass(frozen=True)
class Cursor:
    """A place between two windows.

    found: tokens given so far of each split. document: the number of the last document used (-1: none yet); given:
    its tokens given so far. filled: the number of the document that filled a split, for splits that are full. digest:
    of the documents used.
    """

    found: dict[str, int]
    document: int = -1
    given: int = 0
    filled: dict[str, int] = field(default_factory=dict)
    digest: str = ""


class Feed:
    """Documents -> (split, window) up to wanted[split] tokens of each split; documents of full splits are skipped.

    start: where an earlier feed of the same documents stopped; then the windows are those that it had not given yet.
    """

    def __init__(self, tokenizer, frame: Frame, text: recipe.Text, wanted: dict[str, int], start: Cursor | None = None):
        self.tokenizer, self.text, self.wanted = tokenizer, text, wanted
        self.room = frame.room(text.context)
        self.start = start or Cursor(dict.fromkeys(wanted, 0))
        self.found, self.filled = dict(self.start.found), dict(self.start.filled)
        self.n_documents = 0
        self._document, self._given = self.start.document, self.start.given
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def cursor(self) -> Cursor:
        return Cursor(dict(self.found), self._document, self._given, dict(self.filled), self._digest.hexdigest())

    def windows(self, source: Iterable[str]) -> Iterator[tuple[str, Window]]:
        """Raises UserError when the documents are not those that `start` was made from."""
        for number, document, ids in tokenise(self.tokenizer, self._needed(source)):
            split = texts.split_of(document, self.text)
            if number != self.start.document:
                if self.found[split] >= self.wanted[split]:
                    continue  # it filled up while this document waited for the tokenizer
                self._use(document)
                self._document, self._given = number, 0
            given = self._given
            for window in cut(ids[: self.wanted[split] - self.found[split] + given], number, self.room):
                if window.start < given:
                    continue
                self.found[split] += len(window)
                self._given = window.start + len(window)
                if self.found[split] == self.wanted[split]:
                    self.filled[split] = number
                yield split, window

    def pools(self, source: Iterable[str], size: int) -> Iterator[tuple[Pool, Cursor]]:
        """Windows in pools of `size` tokens or little more, each with the cursor behind it."""
        for pool in grouped(self.windows(source), lambda entry: len(entry[1]), size):
            yield pool, self.cursor

    def _needed(self, source: Iterable[str]) -> Iterator[tuple[int, str]]:
        number = -1
        for number, document in enumerate(source):
            split = texts.split_of(document, self.text)
            if number <= self.start.document:
                if split in self.wanted and number <= self.start.filled.get(split, math.inf):
                    self._use(document)
                if number < self.start.document:
                    continue
                self._check()
                yield number, document
            elif all(self.found[name] >= count for name, count in self.wanted.items()):
                return
            elif split in self.wanted and self.found[split] < self.wanted[split]:
                yield number, document
        if number < self.start.document:
            self._check()

    def _use(self, document: str) -> None:
        self._digest.update(document.encode("utf-8", errors="surrogatepass"))
        self._digest.update(b"\0")
        self.n_documents += 1

    def _check(self) -> None:
        if self._digest.hexdigest() != self.start.digest:
            raise UserError(
                f"text.source '{self.text.source}' has changed since the harvest was interrupted; "
                "delete its cache folder and run again"
            )
