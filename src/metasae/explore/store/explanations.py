"""What judges and sense-tagged words say of latents: scores from interp.json, explanations from there or from the judge's replies."""

import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.judged import Judged
from metasae.explore.store.schema import LATENTS_OF_SAE, key_of, keys_of
from metasae.explore.store.stored_text import readable
from metasae.interp.choice import READ
from metasae.interp.subject import NEIGHBOURS


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
