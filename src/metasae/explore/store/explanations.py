"""Explanations and scores of latents by judges and by sense-tagged words, and the replies that they come from.

RUN/replies.sqlite has replies by question, not by latent. The questions about a latent follow from the conditions in
interp.json (windows and seed), so they are made again, and answered by the store instead of the judge.
"""

import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from metasae.encodings import readable
from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.schema import LATENTS_OF_SAE, key_of, keys_of
from metasae.interp import prompts
from metasae.interp.draws import latent_windows, with_silent
from metasae.interp.excerpts import Text, WindowSpec
from metasae.interp.reader import Reader
from metasae.interp.replies import Ask, Reply, ReplyStore
from metasae.interp.subject import NEIGHBOURS
from metasae.measures.firing.by_latent import ByLatent

REPLIES = "replies.sqlite"


class StoredAnswers:
    """Takes the place of an asker: answers from the stored replies of a model, and keeps the questions."""

    def __init__(self, replies: ReplyStore):
        self._replies, self.model = replies, ""
        self.asked: list[tuple[Ask, Reply | None]] = []

    def ask(self, asks: Sequence[Ask]) -> list[Reply | None]:
        replies = [self._replies.get(ask.key(self.model)) for ask in asks]
        self.asked += zip(asks, replies, strict=True)
        return replies


def write_scores(store: sqlite3.Connection, sae: int, interp: Mapping) -> None:
    """Writes the scores of every latent; scores that a latent lacks are left out."""
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
    """Writes the senses of which a latent is the best detector."""
    words = (measures.get("senses") or {}).get("words", {})
    rows = [
        (key_of(number, best["latent"]), word, sense, best["recall"], best["precision"], best["f1"])
        for word, entry in words.items()
        for sense, best in entry.get("detectors", {}).items()
    ]
    store.executemany("INSERT INTO senses VALUES (?, ?, ?, ?, ?, ?)", rows)


def write_explanations(store: sqlite3.Connection, sae: int, interp: Mapping) -> None:
    """Writes every latent's explanation and its judge."""
    rows = [
        (key_of(sae, int(latent)), readable(entry["explanation"]), entry.get("judge"))
        for latent, entry in interp.get("latents", {}).items()
        if entry.get("explanation")
    ]
    store.executemany("INSERT INTO explanations VALUES (?, ?, ?)", rows)


def write_replies(
    store: sqlite3.Connection,
    sae: int,
    conditions: Mapping,
    keys: Sequence[str],
    asker: StoredAnswers,
    text: Text,
    view: ByLatent,
) -> None:
    """Writes, for every explained latent, the questions of its scores and the judge's replies.

    conditions: of interp.json. keys: of the scores. text: with the seed of the conditions.
    """
    spec, seed = WindowSpec(**conditions["windows"]), conditions["seed"]
    explained = """SELECT x.key, x.judge, e.data FROM explanations x
        LEFT JOIN edges e ON e.key = x.key AND e.kind = 'phi' AND e.other = ? WHERE x.key BETWEEN ? AND ?"""
    for key, judge, near in store.execute(explained, (sae, *keys_of(sae))).fetchall():
        neighbours = np.array(unpack_edges(near)[0] if near else [], np.int64)[:NEIGHBOURS]
        windows = latent_windows(text, view, key % LATENTS_OF_SAE, spec, seed)
        windows = with_silent(text, view, windows, neighbours, spec, seed)
        replies = []
        for score in keys:
            asker.model, asker.asked = judge, []
            Reader(asker, text, spec, seed).scorer(score)(view, [windows], None)
            replies += [
                {"score": score, "question": readable(ask.user), "reply": readable(reply.text)}
                for ask, reply in asker.asked
                if reply is not None and not ask.repeat and ask.system != prompts.EXPLAIN
            ]
        if replies:
            packed = zlib.compress(json.dumps(replies).encode(), 6)
            store.execute("INSERT INTO replies VALUES (?, ?)", (key, packed))
