"""Turns a record of a table or a file into a document: text, a chat or token ids, by the type of its value.

No model is needed here; `metasae.data.text.windows.tokenise` makes tokens of every kind.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from metasae.encodings import readable
from metasae.errors import UserError, nearest

# The default of text.column, and the columns of chats and token ids that are read where the default is missing.
COLUMN = "text"
OTHER_COLUMNS = ("messages", "conversations", "input_ids")
# ShareGPT's names of those who speak
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Chat:
    """A conversation. messages: {role, content} each. where: its record, for errors."""

    messages: tuple[dict[str, str], ...]
    where: str = field(compare=False)
    kind = "chats"

    @cached_property
    def content(self) -> bytes:
        """Canonical JSON: the same for the same messages, in whichever layout they were written."""
        return json.dumps(self.messages, sort_keys=True, separators=(",", ":")).encode()

    def __len__(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True, eq=False)
class TokenIds:
    """A document that is tokenised already. ids: int64 [t], none negative. where: its record, for errors."""

    ids: np.ndarray
    where: str
    kind = "token ids"

    @property
    def content(self) -> bytes:
        return self.ids.astype("<i8").tobytes()

    def __len__(self) -> int:
        return len(self.ids)


Document = str | Chat | TokenIds


def content_of(document: Document) -> bytes:
    """The content that decides a document's split, and by which a changed document is noticed."""
    return document.encode("utf-8", errors="surrogatepass") if isinstance(document, str) else document.content


def kind_of(document: Document) -> str:
    return "text" if isinstance(document, str) else document.kind


def column_of(names: Iterable[str], wanted: str, where) -> str:
    """The column that documents are read from: `wanted`, or the only one of OTHER_COLUMNS where that is the default and
    is not there.

    Raises UserError that names the nearest column, or those to choose from.
    """
    names = list(names)
    others = [name for name in OTHER_COLUMNS if name in names] if wanted == COLUMN else []
    if wanted in names:
        return wanted
    if len(others) > 1:
        choice = ", ".join(f"text.column={name}" for name in others)
        raise UserError(f"{where} has no column '{wanted}' but several others that can be read; set one of: {choice}")
    if not others:
        raise UserError(f"{where} has no column '{wanted}'{nearest(wanted, names)}; set text.column")
    return others[0]


def document_of(record, wanted: str, where: str) -> Document:
    """The document of one record, "" where it is empty. where: the record in words, for errors.

    Raises UserError where there is no such column, and where its value is no text, no messages and no token ids.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, not a string or a table of columns")
    column = column_of(record, wanted, where)
    value = record[column]
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return _chat(value, where)
    if isinstance(value, list) and not any(isinstance(entry, str | dict) for entry in value):
        return _token_ids(value, where)
    if isinstance(value, str) and column != wanted:
        raise UserError(f"column '{column}' of {where} holds text, not messages or ids; set text.column={column}")
    if not isinstance(value, str | None):
        names = [name for name, other in record.items() if isinstance(other, str)]
        choice = f" to one of: {', '.join(names)}" if names else ""
        holds = f"{type(value).__name__}, not text, messages or token ids"
        raise UserError(f"column '{column}' of {where} holds {holds}; set text.column{choice}")
    return value or ""


def _chat(messages: list[dict], where: str) -> Chat | str:
    turns = tuple(_message(message, number, where) for number, message in enumerate(messages, 1))
    return Chat(turns, where) if any(turn["content"].strip() for turn in turns) else ""


def _message(message: dict, number: int, where: str) -> dict[str, str]:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(content, list):
        # parts: text, images ...; a language model reads the text
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(role, str) or not isinstance(content, str):
        lacks = "role" if not isinstance(role, str) else "content"
        raise UserError(f"message {number} of {where} has no {lacks} that is text; mend the record or leave it out")
    return {"role": _ROLES.get(role, readable(role)), "content": readable(content.replace("\0", ""))}


def _token_ids(values: list, where: str) -> TokenIds | str:
    if any(isinstance(value, list) for value in values):
        raise UserError(f"{where} holds several sequences of token ids; give each a record of its own")
    wrong = next((value for value in values if type(value) is not int or not 0 <= value < 1 << 31), None)
    if wrong is not None or None in values:
        raise UserError(f"{where} holds {wrong}, which is no token id; ids are whole numbers from 0 on")
    return TokenIds(np.array(values, dtype=np.int64), where) if values else ""
