"""What judges and sense-tagged words say of latents: scores from interp.json, explanations from there or from the judge's replies."""

import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from metasae.explore.store import edge_blobs
from metasae.explore.store.judged import Judged
from metasae.explore.store.schema import key_of, place_of
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
        (key_of(number, found["latent"]), word, sense, found["recall"], found["precision"], found["f1"])
        for word, entry in words.items()
        for sense, found in entry.get("detectors", {}).items()
    ]
    store.executemany("INSERT INTO senses VALUES (?, ?, ?, ?, ?, ?)", rows)


def write_explanations(
    store: sqlite3.Connection, sae: int, interp: Mapping, judged: Callable[[], Judged | None]
) -> None:
    """judged: gives what was asked and said, where interp.json does not say it. A latent that several judges explained keeps the first by name."""
    held = interp.get("latents", {}).items()
    found = {
        int(latent): (entry["explanation"], entry.get("judge")) for latent, entry in held if entry.get("explanation")
    }
    if not found and (asked := judged()) is not None:
        found = {
            latent: said for latent in map(int, interp["latents"]) if (said := asked.explanation(latent)) is not None
        }
    rows = [(key_of(sae, latent), readable(text), judge) for latent, (text, judge) in found.items()]
    store.executemany("INSERT INTO explanations VALUES (?, ?, ?)", rows)


def write_replies(store: sqlite3.Connection, sae: int, interp: Mapping, judged: Callable[[], Judged | None]) -> None:
    """Of every explained latent what the judge was asked for its scores, and what it said."""
    keys = [key for key in READ if key in interp.get("scores", {})]
    asked = judged() if keys else None
    if asked is None:
        return
    explained = store.execute(
        "SELECT key, judge FROM explanations WHERE key BETWEEN ? AND ?", (key_of(sae, 0), key_of(sae + 1, 0) - 1)
    ).fetchall()
    for key, judge in explained:
        row = store.execute(
            "SELECT data FROM edges WHERE key = ? AND kind = 'phi' AND other = ?", (key, sae)
        ).fetchone()
        neighbours = np.array(edge_blobs.unpack(row[0])[0] if row else [], np.int64)
        found = asked.replies(place_of(key)[1], keys, judge, neighbours[:NEIGHBOURS])
        if found:
            store.execute("INSERT INTO replies VALUES (?, ?)", (key, zlib.compress(json.dumps(found).encode(), 6)))
