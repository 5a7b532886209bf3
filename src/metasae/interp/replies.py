"""Keeps questions and judges' replies in an SQLite file, so that no reply is paid for twice.

A reply is found again by a digest of model, messages, sampling and schema. Every reply is committed when it arrives,
readable or not, but none that was cut off; a killed process loses only those that were on their way. A question that a
server refused, did not answer, or answered with a reply that was cut off is not kept, and is asked again. So is one
whose reply cannot be read; a better reply then replaces it.
"""

import hashlib
import json
import sqlite3
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from metasae.errors import UserError, nearest

_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, messages TEXT NOT NULL, sampling TEXT NOT NULL, schema TEXT NOT NULL,
    text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, logprobs TEXT)"""


@dataclass(frozen=True)
class Ask:
    """One question.

    system, user: the two messages. schema: JSON schema of the reply, an object. max_tokens: of the answer; a judge may
    be given more (`Limits.max_tokens`), and its replies are kept under the same key. repeat: 0, or the number of a
    repeat, which is asked again although the rest is the same. temperature: 0 for the likeliest reply.
    """

    system: str
    user: str
    schema: dict
    max_tokens: int = 256
    repeat: int = 0
    temperature: float = 0.0

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]

    @property
    def sampling(self) -> dict:
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, "repeat": self.repeat}

    def key(self, model: str) -> str:
        whole = json.dumps([model, self.messages, self.sampling, self.schema], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Reply:
    """text: as it came. Token counts as the judge gave them, None where it gave none.

    logprobs: (token, {alternative: log p}) per token. cut: it ended at its limit of tokens, so it is no answer.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: tuple[tuple[str, dict[str, float]], ...] | None = None
    cut: bool = False


class ReplyStore(AbstractContextManager):
    """Replies by key. Safe to use from several threads; close it, or use it as a context."""

    def __init__(self, path: str | Path):
        """Raises UserError for a file that is no store or cannot be written."""
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            # a write-ahead log: a commit is an append, and survives a killed process
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_TABLE)
            self._connection.execute("SELECT key, text, logprobs FROM replies LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self.path} cannot be used as a store of replies ({error}); choose another file or delete it"
            ) from None

    def get(self, key: str) -> Reply | None:
        query = "SELECT text, prompt_tokens, completion_tokens, logprobs FROM replies WHERE key = ?"
        with self._lock:
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        *said, logprobs = row
        return Reply(*said, None if logprobs is None else tuple(map(tuple, json.loads(logprobs))))

    def put(self, model: str, ask: Ask, reply: Reply, anew: bool = False) -> None:
        """Commits a reply; one that is there already stays, unless `anew`. Raises UserError when the disk is full."""
        asked = (model, *(json.dumps(part, sort_keys=True) for part in (ask.messages, ask.sampling, ask.schema)))
        # a lone surrogate, which SQLite cannot hold, is kept as a question mark
        text = reply.text.encode("utf-8", "replace").decode("utf-8")
        logprobs = None if reply.logprobs is None else json.dumps(reply.logprobs)
        row = (ask.key(model), *asked, text, reply.prompt_tokens, reply.completion_tokens, logprobs)
        try:
            with self._lock:
                way = "REPLACE" if anew else "IGNORE"
                self._connection.execute(f"INSERT OR {way} INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise UserError(
                f"cannot write {self.path}: {error}; free some space, then run again: "
                "no reply that is in it is asked for again"
            ) from None

    def models(self) -> list[str]:
        """The names of those whose replies are kept, in order."""
        with self._lock:
            return [row[0] for row in self._connection.execute("SELECT DISTINCT model FROM replies ORDER BY model")]

    def name_of(self, model: str) -> str:
        """The name under which a model's replies are kept.

        Raises UserError where there are none, or those of several judges.
        """
        names = self.models()
        matching = [model] if model in names else [name for name in names if name.startswith(f"{model} ")]
        if not matching:
            raise UserError(f"{self.path} has no replies of '{model}'{nearest(model, names)}")
        if len(matching) > 1:
            raise UserError(f"{self.path} has replies of {', '.join(matching)}; give one of them as --model")
        return matching[0]

    def __exit__(self, *_) -> None:
        self._connection.close()
