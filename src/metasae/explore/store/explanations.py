"""What judges and sense-tagged words say of latents: scores from interp.json, explanations from there or from replies.

RUN/replies.sqlite knows questions, not latents. Which questions were asked of a latent follows from the conditions in
interp.json (windows and seed), so they are asked again, of the store instead of the judge.
"""

import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.schema import LATENTS_OF_SAE, key_of, keys_of
from metasae.explore.store.stored_text import readable
from metasae.interp import prompts
from metasae.interp.choice import READ
from metasae.interp.draws import latent_windows, with_silent
from metasae.interp.reader import Reader
from metasae.interp.replies import Ask, Reply
from metasae.interp.subject import NEIGHBOURS
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent

REPLIES = "replies.sqlite"


class Judged:
    """One SAE's latents and the replies of a run."""

    def __init__(self, path: Path, interp: Mapping, text: Text, view: ByLatent):
        """text: with the seed that interp.json names. Raises UserError for a file that is no store of replies."""
        conditions = interp["conditions"]
        self.spec, self.seed = WindowSpec(**conditions["windows"]), conditions["seed"]
        self.path, self.text, self.view = path, text, view
        self._store = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        self.models = [model for (model,) in self._ask("SELECT DISTINCT model FROM replies ORDER BY model")]

    def explanation(self, latent: int) -> tuple[str, str] | None:
        """(what was said, by whom); None where nobody explained it, or not so that it could be read."""
        windows = latent_windows(self.text, self.view, latent, self.spec, self.seed)
        ask = prompts.explain(prompts.shown(self.text, windows.train, self.view, latent))
        for model in self.models:
            said = prompts.field_of(self.reply(ask, model), "explanation")
            if isinstance(said, str) and said.strip():
                return " ".join(said.split()), model
        return None

    def replies(self, latent: int, keys: Sequence[str], model: str, neighbours: np.ndarray) -> list[dict]:
        """{"score", "question", "reply"} of each question that was asked for these scores of a latent.

        neighbours: the closest latents by phi.
        """
        windows = latent_windows(self.text, self.view, latent, self.spec, self.seed)
        windows = with_silent(self.text, self.view, windows, neighbours, self.spec, self.seed)
        replies = []
        for key in keys:
            asker = _FromStore(self, model)
            Reader(asker, self.text, self.spec, self.seed).scorer(key)(self.view, [windows], None)
            replies += [
                {"score": key, "question": readable(ask.user), "reply": readable(reply.text)}
                for ask, reply in asker.asked
                if reply is not None and not ask.repeat and ask.system != prompts.EXPLAIN
            ]
        return replies

    def reply(self, ask: Ask, model: str) -> Reply | None:
        rows = self._ask("SELECT text FROM replies WHERE key = ?", ask.key(model))
        return Reply(rows[0][0]) if rows else None

    def _ask(self, sql: str, *parameters: str) -> list[tuple]:
        try:
            return self._store.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path} is no store of replies ({error}); move it away or delete it, then build again"
            ) from None


class _FromStore:
    """In the place of an asker: answers from the store, and keeps what it was asked."""

    def __init__(self, judged: Judged, model: str):
        self._judged, self._model = judged, model
        self.asked: list[tuple[Ask, Reply | None]] = []

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        replies = [self._judged.reply(ask, self._model) for ask in asks]
        self.asked += zip(asks, replies, strict=True)
        return replies


def write_scores(store: sqlite3.Connection, sae: int, interp: Mapping) -> None:
    """Every latent's own numbers; a score that a latent lacks is absent."""
    chance = {score: entry.get("chance") for score, entry in interp.get("scores", {}).items()}
    rows = [
        (sae, score, part, int(latent), value, chance.get(score))
        for latent, entry in interp.get("latents", {}).items()
        for score, parts in entry.items()
        if isinstance(parts, dict)
        for part, value in parts.items()
        if value is not None
    ]
    store.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows)


def write_senses(store: sqlite3.Connection, number: int, measures: Mapping) -> None:
    """The senses of which a latent is the best detector."""
    words = (measures.get("senses") or {}).get("words", {})
    rows = [
        (key_of(number, best["latent"]), word, sense, best["recall"], best["precision"], best["f1"])
        for word, entry in words.items()
        for sense, best in entry.get("detectors", {}).items()
    ]
    store.executemany("INSERT INTO senses VALUES (?, ?, ?, ?, ?, ?)", rows)


def write_explanations(
    store: sqlite3.Connection, sae: int, interp: Mapping, judged: Callable[[], Judged | None]
) -> None:
    """judged: gives what was asked and said, where interp.json does not say it.

    A latent that several judges explained keeps the first by name.
    """
    entries = {int(latent): entry for latent, entry in interp.get("latents", {}).items()}
    said = {i: (entry["explanation"], entry.get("judge")) for i, entry in entries.items() if entry.get("explanation")}
    if not said and (asked := judged()) is not None:
        said = {latent: answer for latent in entries if (answer := asked.explanation(latent)) is not None}
    rows = [(key_of(sae, latent), readable(text), judge) for latent, (text, judge) in said.items()]
    store.executemany("INSERT INTO explanations VALUES (?, ?, ?)", rows)


def write_replies(store: sqlite3.Connection, sae: int, interp: Mapping, judged: Callable[[], Judged | None]) -> None:
    """Of every explained latent what the judge was asked for its scores, and what it said."""
    keys = [key for key in READ if key in interp.get("scores", {})]
    asked = judged() if keys else None
    if asked is None:
        return
    explained = """SELECT x.key, x.judge, e.data FROM explanations x
        LEFT JOIN edges e ON e.key = x.key AND e.kind = 'phi' AND e.other = ? WHERE x.key BETWEEN ? AND ?"""
    for key, judge, near in store.execute(explained, (sae, *keys_of(sae))).fetchall():
        neighbours = np.array(unpack_edges(near)[0] if near else [], np.int64)
        replies = asked.replies(key % LATENTS_OF_SAE, keys, judge, neighbours[:NEIGHBOURS])
        if replies:
            packed = zlib.compress(json.dumps(replies).encode(), 6)
            store.execute("INSERT INTO replies VALUES (?, ?)", (key, packed))
