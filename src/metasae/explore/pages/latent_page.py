"""One latent, and rows of latents, as the pages show them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metasae.explore.pages import searching
from metasae.explore.store import edge_blobs, token_blobs, window_blobs
from metasae.explore.store.schema import SCALARS, key_of, unzipped
from metasae.explore.store.stored_text import folded

if TYPE_CHECKING:
    from metasae.explore.pages.queries import Explorer, SaeFacts

NUMBERS = ", ".join(f"l.{name}" for name in SCALARS)
SIBLINGS = 10


def rows_of(explorer: "Explorer", keys: Sequence[int], labels: Mapping[int, str] | None = None) -> list[dict]:
    """The rows of latents of one SAE, in the order of `keys`. labels: latent -> label; None reads them."""
    wanted = json.dumps(list(keys))
    sql = f"""SELECT l.key, {NUMBERS}, l.top_tokens, e.text FROM latents l LEFT JOIN explanations e ON e.key = l.key
        WHERE l.key IN (SELECT value FROM json_each(?))"""
    rows = {}
    for key, *numbers, tokens, said in explorer.ask(sql, (wanted,)):
        rows[key] = {
            **explorer.named(key),
            **dict(zip(SCALARS, numbers, strict=True)),
            "top_tokens": json.loads(tokens),
            "explanation": said,
        }
    if not rows:
        return []
    name = next(iter(rows.values()))["sae"]
    held = explorer.labels_of_latents(name) if labels is None else labels
    for row in rows.values():
        row["label"] = held.get(row["latent"])
    scores = (
        """SELECT latent, score, part, value FROM scores WHERE sae = ? AND latent IN (SELECT value FROM json_each(?))"""
    )
    facts = explorer.saes[name]
    for latent, score, part, value in explorer.ask(
        scores, (facts.id, json.dumps([row["latent"] for row in rows.values()]))
    ):
        rows[key_of(facts.id, latent)][f"interp.{score}.{part}"] = value
    return [rows[key] for key in keys]


def add_found(explorer: "Explorer", facts: "SaeFacts", rows: list[dict], search: str) -> None:
    """Gives each row `found`: the token that a search found it by, where that is not among the few named; else None."""
    low = searching.token_range(search)["low"]
    keys = {key_of(facts.id, row["latent"]): row for row in rows}
    for row in rows:
        row["found"] = None
    if facts.text is None:
        return
    text = explorer.text(facts.text)
    for key, data in explorer.ask(
        "SELECT key, data FROM tokens WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),)
    ):
        strings = [text.string_of(entry) for entry in token_blobs.unpack(data)[0][: token_blobs.SEARCHED]]
        beginning = [string for string in strings if folded(string).startswith(low)]
        if beginning and not set(beginning) & set(keys[key]["top_tokens"]):
            keys[key]["found"] = beginning[0]


def latent(explorer: "Explorer", facts: "SaeFacts", number: int) -> dict:
    key = key_of(facts.id, number)
    row = rows_of(explorer, [key])[0]
    edges = explorer.ask("SELECT kind, other, data FROM edges WHERE key = ?", (key,))
    near = {(kind, other): edge_blobs.unpack(data) for kind, other, data in edges}
    meta = _meta(explorer, facts, near.pop(("meta", facts.id), ([], [])))
    shown = {key_of(other, latent) for (_, other), (latents, _) in near.items() for latent in latents}
    shown |= {key_of(facts.id, sibling) for _, _, siblings in meta for sibling, _ in siblings}
    short = short_of(explorer, shown)
    said = explorer.ask("SELECT text, judge FROM explanations WHERE key = ?", (key,))
    scores = explorer.ask(
        "SELECT score, part, value, chance FROM scores WHERE sae = ? AND latent = ? ORDER BY score, part",
        (facts.id, number),
    )
    senses = explorer.ask("SELECT word, sense, recall, share, f1 FROM senses WHERE key = ? ORDER BY f1 DESC", (key,))
    replies = explorer.ask("SELECT data FROM replies WHERE key = ?", (key,))
    logits = explorer.ask("SELECT data FROM logits WHERE key = ?", (key,))
    splits = explorer.ask(
        "SELECT m.split FROM split_members m JOIN splits s ON s.id = m.split WHERE m.key = ? ORDER BY s.score DESC",
        (key,),
    )
    target = f"{facts.name}:{number}"
    return {
        "sae": facts.name,
        "latent": number,
        "scalars": {
            **{name: value for name, value in row.items() if name not in ("sae", "latent")},
            "n_tokens": facts.n_tokens,
        },
        "max": row["max"],
        "windows": windows_of(explorer, facts, key),
        "tokens": _tokens(explorer, facts, key, row["firings"]),
        "histogram": _histogram(explorer, key, row["threshold"]),
        "neighbours": _neighbours(explorer, facts, near, short),
        "matches": _matches(explorer, near),
        "meta": [
            {
                "meta_latent": meta_latent,
                "weight": weight,
                "siblings": [
                    {"latent": i, "weight": w, "top_tokens": short[key_of(facts.id, i)]["top_tokens"]}
                    for i, w in siblings
                ],
            }
            for meta_latent, weight, siblings in meta
        ],
        "senses": [dict(zip(("word", "sense", "recall", "share", "f1"), each, strict=True)) for each in senses],
        "explanation": {"text": said[0][0], "judge": said[0][1]} if said else None,
        "scores": [dict(zip(("score", "part", "value", "chance"), each, strict=True)) for each in scores],
        "replies": json.loads(unzipped(replies[0][0])) if replies else [],
        "logits": json.loads(logits[0][0]) if logits else None,
        "splits": [split for (split,) in splits],
        "label": row["label"],
        "labels": explorer.sayings_of("latent", target),
    }


def short_of(explorer: "Explorer", keys: Iterable[int]) -> dict[int, dict]:
    """key -> {"explanation", "top_tokens"}, for lists of neighbours."""
    sql = """SELECT l.key, l.top_tokens, e.text FROM latents l LEFT JOIN explanations e ON e.key = l.key
        WHERE l.key IN (SELECT value FROM json_each(?))"""
    return {
        key: {"explanation": said, "top_tokens": json.loads(tokens)}
        for key, tokens, said in explorer.ask(sql, (json.dumps(list(keys)),))
    }


def windows_of(explorer: "Explorer", facts: "SaeFacts", key: int) -> list[dict]:
    rows = explorer.ask("SELECT data FROM windows WHERE key = ?", (key,))
    if not rows:
        return []
    text, found = explorer.text(facts.text), []
    for window in window_blobs.unpack(rows[0][0]):
        document, position = text.where(window.start)
        strings = text.strings(window.start, window.start + window.length)
        found.append(
            {
                "decile": window.decile, "document": document, "start": position, "place": window.start, "peak": window.peak,
                "tokens": strings, "values": window.values,
            }
        )  # fmt: skip
    return found


def _tokens(explorer: "Explorer", facts: "SaeFacts", key: int, firings: int | None) -> list[dict]:
    rows = explorer.ask("SELECT data FROM tokens WHERE key = ?", (key,))
    if not rows:
        return []
    entries, fired = token_blobs.unpack(rows[0][0])
    sql = "SELECT entry, token, count, string FROM vocabulary WHERE text = ? AND entry IN (SELECT value FROM json_each(?))"
    held = {entry: rest for entry, *rest in explorer.ask(sql, (facts.text, json.dumps(entries)))}
    found = []
    for entry, on in zip(entries, fired, strict=True):
        token, count, string = held[entry]
        share = on / firings
        lift = window_blobs.short(share * facts.n_tokens / count)
        found.append(
            {"token": string, "id": token, "count": count, "with": on, "lift": lift, "share": window_blobs.short(share)}
        )
    return found


def _histogram(explorer: "Explorer", key: int, threshold: float | None) -> dict | None:
    rows = explorer.ask("SELECT low, high, counts FROM histograms WHERE key = ?", (key,))
    if not rows:
        return None
    low, high, counts = rows[0]
    edges = token_blobs.edges_of(np.array([low]), np.array([high]))[0]
    return {"edges": edges.tolist(), "counts": np.frombuffer(unzipped(counts), "<u4").tolist(), "threshold": threshold}


def _neighbours(explorer: "Explorer", facts: "SaeFacts", near: Mapping, short: Mapping[int, dict]) -> dict:
    def listed(kind: str, other: int) -> list[dict]:
        latents, values = near.get((kind, other), ([], []))
        name, pairs = explorer.by_id[other].name, zip(latents, values, strict=True)
        return [{"sae": name, "latent": i, "value": value, **short[key_of(other, i)]} for i, value in pairs]

    others = sorted({other for kind, other in near if other != facts.id and kind in ("phi", "cosine")})
    return {
        **{kind: listed(kind, facts.id) for kind in ("phi", "cosine", "encoder_cosine")},
        "other": {
            explorer.by_id[other].name: {kind: listed(kind, other) for kind in ("phi", "cosine")} for other in others
        },
    }


def _matches(explorer: "Explorer", near: Mapping) -> list[dict]:
    """how: `match`, one to one, or `nearest`, which several latents may share."""
    return [
        {"sae": explorer.by_id[other].name, "latent": latents[0], "cosine": values[0], "how": kind}
        for (kind, other), (latents, values) in sorted(near.items(), key=lambda each: each[0][1])
        if kind in ("match", "nearest")
    ]


def _meta(
    explorer: "Explorer", facts: "SaeFacts", own: tuple[list[int], list[float]]
) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """(meta-latent, weight, the latents with the largest weight on it) of each that builds the row."""
    sql = "SELECT meta_latent, data FROM meta_latents WHERE sae = ? AND meta_latent IN (SELECT value FROM json_each(?))"
    held = {
        meta_latent: edge_blobs.unpack(data) for meta_latent, data in explorer.ask(sql, (facts.id, json.dumps(own[0])))
    }
    return [
        (i, weight, [(j, w) for j, w in zip(*held[i], strict=True)][:SIBLINGS]) for i, weight in zip(*own, strict=True)
    ]
