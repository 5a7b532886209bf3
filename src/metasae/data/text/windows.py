"""Documents -> token windows. A window never crosses documents, and no token of a document is lost or seen twice."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from metasae.errors import UserError

BATCH_CHARACTERS = 1_000_000
Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """The special tokens round every window: BOS for causal models, [CLS] and [SEP] for encoders.

    Nothing where the model has none.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer, causal: bool) -> "Frame":
        first = tokenizer.bos_token_id if causal else tokenizer.cls_token_id
        last = None if causal else tokenizer.sep_token_id
        return cls(() if first is None else (first,), () if last is None else (last,))

    def room(self, context: int) -> int:
        """The document's own tokens that fit into a window of `context` tokens."""
        room = context - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise UserError(
                f"text.context = {context} leaves no room beside the special tokens; set text.context=16 or more"
            )
        return room


@dataclass(frozen=True)
class Window:
    """`tokens` int32 [t]: the document's own tokens from position `start` on. `document`: its number in the source."""

    tokens: np.ndarray
    document: int
    start: int

    def __len__(self) -> int:
        return len(self.tokens)


def cut(tokens: np.ndarray, document: int, room: int) -> Iterator[Window]:
    """Consecutive windows of `room` tokens; the last one is shorter. tokens int32 [t]."""
    for start in range(0, len(tokens), room):
        yield Window(tokens[start : start + room], document, start)


def tokenise(tokenizer, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number, document) -> (number, document, tokens int32 [t]) without special tokens, many documents to a call."""
    options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    options |= {"return_attention_mask": False, "return_token_type_ids": False}
    for batch in grouped(numbered, lambda entry: len(entry[1]), BATCH_CHARACTERS):
        encoded = tokenizer([document for _, document in batch], **options)["input_ids"]
        for (number, document), ids in zip(batch, encoded, strict=True):
            yield number, document, np.asarray(ids, dtype=np.int32)


def grouped(items: Iterable[Item], size_of: Callable[[Item], int], size: int) -> Iterator[list[Item]]:
    """Consecutive items in groups of `size` together, or a little more; the last group is smaller."""
    group, reached = [], 0
    for item in items:
        group.append(item)
        reached += size_of(item)
        if reached >= size:
            yield group
            group, reached = [], 0
    if group:
        yield group


def pad(windows: list[Window], frame: Frame, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows padded on the right -> (ids int64 [b, t], mask int64 [b, t], own bool [b, t]).

    `own` leaves special tokens and padding out.
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
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(own)
