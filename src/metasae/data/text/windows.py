"""Cuts documents into token windows, and gives a harvest its windows of each split in pools, with a cursor that can be
saved.

A window never crosses documents, and no token of a document is lost or seen twice.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from metasae.data.text import text as texts
from metasae.data.text.plain import MARK, OPTIONS, Plain
from metasae.data.text.records import Document, TokenIds, content_of, kind_of
from metasae.data.text.templates import as_text, known_ids
from metasae.encodings import readable
from metasae.errors import Dropped, UserError
from metasae.recipe import recipe

BATCH_CHARACTERS = 1_000_000
Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """The special tokens round every window: BOS for causal models, [CLS] and [SEP] for encoders.

    Empty where the model has none. unwanted: where windows are without BOS, the special tokens that documents may
    already have at their beginning.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    unwanted: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer, causal: bool, bos: bool | str = "auto") -> "Frame":
        """The frame of a tokenizer's model. bos: `model.bos` of a recipe. Raises UserError for a BOS that the tokenizer
        does not have, and for a value other than auto with an encoder.
        """
        if bos != "auto" and not causal:
            raise UserError(
                "model.bos is for causal models, and windows of an encoder already have [CLS] and [SEP]; "
                "set model.bos=auto"
            )
        first = tokenizer.bos_token_id if causal else tokenizer.cls_token_id
        last = None if causal else tokenizer.sep_token_id
        if bos is True and first is None:
            raise UserError("model.bos=true, and the tokenizer has no BOS token; set model.bos=auto")
        start = () if first is None else (first,)
        return cls((), unwanted=start) if bos is False else cls(start, () if last is None else (last,))

    def room(self, context: int) -> int:
        """The document's own tokens that fit into a window of `context` tokens."""
        room = context - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise UserError(
                f"text.context = {context} leaves no room beside the special tokens; set text.context=16 or more"
            )
        return room

    def taken_off(self, ids: list[int]) -> list[int]:
        """Ids without the special tokens that they already have at their ends, which would otherwise be there twice."""
        first, end, last, start = 0, len(ids), len(self.suffix), self.prefix or self.unwanted
        while start and tuple(ids[first : first + len(start)]) == start:
            first += len(start)
        while last and end - last >= first and tuple(ids[end - last : end]) == self.suffix:
            end -= last
        return ids[first:end]


@dataclass(frozen=True)
class Window:
    """`tokens` int32 [t]: the document's own tokens from position `start` on. `document`: its number in the source.
    `counted` bool [t]: those that are measured; None: all.
    """

    tokens: np.ndarray
    document: int
    start: int
    counted: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


# (split, window, the row of its first token in its split) of the windows of a pool.
Pool = list[tuple[str, Window, int]]


def cut(tokens: np.ndarray, document: int, room: int) -> Iterator[Window]:
    """Consecutive windows of `room` tokens; the last one is shorter. tokens int32 [t]."""
    for start in range(0, len(tokens), room):
        yield Window(tokens[start : start + room], document, start)


def tokenise(
    tokenizer, numbered: Iterable[tuple[int, Document]], frame: Frame, plain: Plain | None = None
) -> Iterator[tuple[int, Document, np.ndarray]]:
    """(number, document) -> (number, document, tokens int32 [t]) without the frame's tokens, many documents to a call.

    Chats are written with the tokenizer's chat template, token ids are taken as they are. Special tokens that a text or
    a message names are plain text; plain: reads them, and counts the texts. Raises UserError for a tokenizer without a
    template, a chat that its template refuses, and ids that the tokenizer does not know.
    """
    plain = plain or Plain(tokenizer)
    most = cache(lambda: max(tokenizer.get_vocab().values()))
    for batch in grouped(numbered, lambda entry: len(entry[1]), BATCH_CHARACTERS, rest=True):
        strings = [as_text(plain, document) for _, document in batch if not isinstance(document, TokenIds)]
        encoded = iter(plain.ids(strings))
        for number, document in batch:
            if isinstance(document, str):
                ids = next(encoded)
            elif isinstance(document, TokenIds):
                ids = frame.taken_off(known_ids(document, most()))
            else:
                ids = frame.taken_off(next(encoded))
            yield number, document, np.asarray(ids, dtype=np.int32)


def prompt_ids(tokenizer, prompt: str, frame: Frame) -> list[int]:
    """The ids of a text that a user typed, without the frame's tokens, even where the user typed those. Other special
    tokens that the user typed are read as special tokens, as in a chat that was written out.
    """
    return frame.taken_off(tokenizer(readable(prompt.replace(MARK, "")), **OPTIONS)["input_ids"])


def grouped(
    items: Iterable[Item], size_of: Callable[[Item], int], size: int, rest: bool = False
) -> Iterator[list[Item]]:
    """Consecutive items in groups of `size` together, or a little more; the last group is smaller.

    rest: where the source breaks off (Dropped), the items before it are given as the last group, and then the error is
    raised.
    """
    group, reached, dropped = [], 0, None
    try:
        for item in items:
            group.append(item)
            reached += size_of(item)
            if reached >= size:
                yield group
                group, reached = [], 0
    except Dropped as error:
        if not rest:
            raise
        dropped = error
    if group:
        yield group
    if dropped:
        raise dropped


def pad(windows: list[Window], frame: Frame, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows padded on the right -> (ids int64 [b, t], mask int64 [b, t], own bool [b, t]).

    `own` leaves special tokens, padding and what is not counted out.
    """
    before, after = len(frame.prefix), len(frame.suffix)
    lengths = np.array([len(window) for window in windows])
    width = int(lengths.max()) + before + after
    ids = np.full((len(windows), width), pad_id, dtype=np.int64)
    ids[:, :before] = frame.prefix
    for row, window in enumerate(windows):
        ids[row, before : before + len(window)] = window.tokens
        ids[row, before + len(window) : before + len(window) + after] = frame.suffix
    columns = np.arange(width)[None, :]
    mask = columns < (lengths + before + after)[:, None]
    own = (columns >= before) & (columns < (lengths + before)[:, None])
    for row, window in enumerate(windows):
        if window.counted is not None:
            own[row, before : before + len(window)] &= window.counted
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(own)


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
        self.frame, self.room = frame, frame.room(text.context)
        self.start = start or Cursor(dict.fromkeys(wanted, 0))
        self.found, self.filled = dict(self.start.found), dict(self.start.filled)
        self.plain = Plain(tokenizer)
        # kind -> documents used of that kind
        self.kinds: Counter[str] = Counter()
        self._document, self._given = self.start.document, self.start.given
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def cursor(self) -> Cursor:
        return Cursor(dict(self.found), self._document, self._given, dict(self.filled), self._digest.hexdigest())

    def windows(self, source: Iterable[Document]) -> Iterator[tuple[str, Window, int]]:
        """(split, window, the row of its first token in its split).

        Raises UserError when the documents are not those that `start` was made from.
        """
        for number, document, ids in tokenise(self.tokenizer, self._needed(source), self.frame, self.plain):
            split = texts.split_of(document, self.text)
            if number != self.start.document:
                if self.found[split] >= self.wanted[split]:
                    continue  # the split filled up while this document waited for the tokenizer
                self._use(document)
                self._document, self._given = number, 0
            given = self._given
            for window in cut(ids[: self.wanted[split] - self.found[split] + given], number, self.room):
                if window.start < given:
                    continue
                row = self.found[split]
                self.found[split] += len(window)
                self._given = window.start + len(window)
                if self.found[split] == self.wanted[split]:
                    self.filled[split] = number
                yield split, window, row

    def pools(self, source: Iterable[Document], size: int) -> Iterator[tuple[Pool, Cursor]]:
        """Windows in pools of `size` tokens or little more, each with the cursor after it."""
        for pool in grouped(self.windows(source), lambda entry: len(entry[1]), size):
            yield pool, self.cursor

    def _needed(self, source: Iterable[Document]) -> Iterator[tuple[int, Document]]:
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

    def _use(self, document: Document) -> None:
        self._digest.update(content_of(document))
        self._digest.update(b"\0")
        self.kinds[kind_of(document)] += 1

    def _check(self) -> None:
        if self._digest.hexdigest() != self.start.digest:
            raise UserError(
                f"text.source '{self.text.source}' has changed since the harvest was interrupted; "
                "delete its cache folder and run again"
            )
