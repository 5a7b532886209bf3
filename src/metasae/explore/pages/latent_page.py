"""One latent, and rows of latents, as the pages show them."""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from metasae.explore.pages.labels import Labels
from metasae.explore.pages.search import token_range
from metasae.explore.store import blobs
from metasae.explore.store.open_store import OpenStore, SaeFacts, folded
from metasae.explore.store.schema import SCALARS, key_of, unzipped

SIBLINGS = 10


def rows_of(store: OpenStore, facts: SaeFacts, latents: Sequence[int], labels: Mapping[int, str]) -> list[dict]:
    """The rows of latents of one SAE, in their order. labels: latent -> label."""
    numbers = ", ".join(f"l.{name}" for name in SCALARS)
    sql = f"""SELECT l.latent, {numbers}, l.top_tokens, e.text FROM latents l LEFT JOIN explanations e ON e.key = l.key
        WHERE l.key IN (SELECT value FROM json_each(?))"""
    rows = {}
    for latent, *scalars, tokens, explanation in store.ask(sql, (json.dumps([key_of(facts.id, i) for i in latents]),)):
        rows[latent] = {
            "sae": facts.name,
            "latent": latent,
            **dict(zip(SCALARS, scalars, strict=True)),
            "top_tokens": json.loads(tokens),
            "explanation": explanation,
            "label": labels.get(latent),
        }
    sql = """SELECT latent, score, part, value FROM scores
        WHERE sae = ? AND latent IN (SELECT value FROM json_each(?))"""
    for latent, score, part, value in store.ask(sql, (facts.id, json.dumps(latents))):
        rows[latent][f"interp.{score}.{part}"] = value
    return [rows[latent] for latent in latents]


def add_found(store: OpenStore, facts: SaeFacts, rows: list[dict], search: str) -> None:
    """Sets `found` in each row: the token by which a search found it, where top_tokens lacks that token; else None."""
    low = token_range(search)["low"]
    for row in rows:
        row["found"] = None
        for (data,) in store.ask("SELECT data FROM tokens WHERE key = ?", (key_of(facts.id, row["latent"]),)):
            vocabulary = store.text(facts.text).vocabulary
            strings = [vocabulary[entry] for entry in blobs.unpack_tokens(data)[0][: blobs.SEARCHED]]
            beginning = [string for string in strings if folded(string).startswith(low)]
            if beginning and not set(beginning) & set(row["top_tokens"]):
                row["found"] = beginning[0]


def latent_page(store: OpenStore, labels: Labels, facts: SaeFacts, number: int) -> dict:
    """Everything of one latent."""
    key = key_of(facts.id, number)
    (row,) = rows_of(store, facts, [number], labels.of_latents(facts.name))
    edges = store.ask("SELECT kind, other, data FROM edges WHERE key = ?", (key,))
    near = {(kind, other): blobs.unpack_edges(data) for kind, other, data in edges}
    meta = _meta(store, facts, near.pop(("meta", facts.id), ([], [])))
    shown = {key_of(other, latent) for (_, other), (latents, _) in near.items() for latent in latents}
    shown |= {key_of(facts.id, sibling["latent"]) for entry in meta for sibling in entry["siblings"]}
    short = short_of(store, shown)
    for entry in meta:
        for sibling in entry["siblings"]:
            sibling["top_tokens"] = short[key_of(facts.id, sibling["latent"])]["top_tokens"]
    explanation = _dicts(store, "text, judge", "explanations WHERE key = ?", key)
    replies = store.ask("SELECT data FROM replies WHERE key = ?", (key,))
    logits = store.ask("SELECT data FROM logits WHERE key = ?", (key,))
    splits = store.ask(
        "SELECT m.split FROM split_members m JOIN splits s ON s.id = m.split WHERE m.key = ? ORDER BY s.score DESC",
        (key,),
    )
    scores = "scores WHERE sae = ? AND latent = ? ORDER BY score, part"
    return {
        "sae": facts.name,
        "latent": number,
        "scalars": {
            **{name: value for name, value in row.items() if name not in ("sae", "latent")},
            "n_tokens": facts.n_tokens,
        },
        "max": row["max"],
        "windows": _windows(store, facts, key),
        "tokens": _tokens(store, facts, key, row["firings"]),
        "histogram": _histogram(store, key, row["threshold"]),
        "neighbours": _neighbours(store, facts, near, short),
        "matches": _matches(store, near),
        "meta": meta,
        "senses": _dicts(store, "word, sense, recall, share, f1", "senses WHERE key = ? ORDER BY f1 DESC", key),
        "explanation": explanation[0] if explanation else None,
        "scores": _dicts(store, "score, part, value, chance", scores, facts.id, number),
        "replies": json.loads(unzipped(replies[0][0])) if replies else [],
        "logits": json.loads(logits[0][0]) if logits else None,
        "splits": [split for (split,) in splits],
        "label": row["label"],
        "labels": labels.of("latent", f"{facts.name}:{number}"),
    }


def short_of(store: OpenStore, keys: Iterable[int]) -> dict[int, dict]:
    """key -> {"explanation", "top_tokens"}, for lists of neighbours."""
    sql = """SELECT l.key, l.top_tokens, e.text FROM latents l LEFT JOIN explanations e ON e.key = l.key
        WHERE l.key IN (SELECT value FROM json_each(?))"""
    return {
        key: {"explanation": explanation, "top_tokens": json.loads(tokens)}
        for key, tokens, explanation in store.ask(sql, (json.dumps(list(keys)),))
    }


def _dicts(store: OpenStore, columns: str, of: str, *parameters: int) -> list[dict]:
    """Rows by column. of: the table and its conditions in SQL."""
    rows = store.ask(f"SELECT {columns} FROM {of}", parameters)
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]


def _windows(store: OpenStore, facts: SaeFacts, key: int) -> list[dict]:
    windows = []
    for (data,) in store.ask("SELECT data FROM windows WHERE key = ?", (key,)):
        text = store.text(facts.text)
        for decile, place, peak, values in blobs.unpack_windows(data):
            document, position = text.where(place)
            span = place, place + len(values)
            windows.append(
                {
                    "decile": decile, "document": document, "start": position, "place": place, "peak": peak,
                    "tokens": text.strings(*span), "names": text.names(*span), "values": values,
                }
            )  # fmt: skip
    return windows


def _tokens(store: OpenStore, facts: SaeFacts, key: int, firings: int | None) -> list[dict]:
    tokens = []
    for (data,) in store.ask("SELECT data FROM tokens WHERE key = ?", (key,)):
        entries, fired = blobs.unpack_tokens(data)
        sql = """SELECT entry, token, count, string FROM vocabulary
            WHERE text = ? AND entry IN (SELECT value FROM json_each(?))"""
        vocabulary = {entry: rest for entry, *rest in store.ask(sql, (facts.text, json.dumps(entries)))}
        for entry, on in zip(entries, fired, strict=True):
            token, count, string = vocabulary[entry]
            share = on / firings
            lift, share = blobs.short(share * facts.n_tokens / count), blobs.short(share)
            tokens.append({"token": string, "id": token, "count": count, "with": on, "lift": lift, "share": share})
    return tokens


def _histogram(store: OpenStore, key: int, threshold: float | None) -> dict | None:
    rows = store.ask("SELECT low, high, counts FROM histograms WHERE key = ?", (key,))
    if not rows:
        return None
    low, high, counts = rows[0]
    edges = blobs.edges_of(np.array([low]), np.array([high]))[0]
    return {"edges": edges.tolist(), "counts": np.frombuffer(unzipped(counts), "<u4").tolist(), "threshold": threshold}


def _neighbours(store: OpenStore, facts: SaeFacts, near: Mapping, short: Mapping[int, dict]) -> dict:
    def listed(kind: str, other: int) -> list[dict]:
        name, latents = store.by_id[other].name, zip(*near.get((kind, other), ([], [])), strict=True)
        return [{"sae": name, "latent": i, "value": value, **short[key_of(other, i)]} for i, value in latents]

    others = sorted({other for kind, other in near if other != facts.id and kind in ("phi", "cosine")})
    return {
        **{kind: listed(kind, facts.id) for kind in ("phi", "cosine", "encoder_cosine")},
        "other": {
            store.by_id[other].name: {kind: listed(kind, other) for kind in ("phi", "cosine")} for other in others
        },
    }


def _matches(store: OpenStore, near: Mapping) -> list[dict]:
    """how: `match`, one to one, or `nearest`, which several latents may share."""
    return [
        {"sae": store.by_id[other].name, "latent": latents[0], "cosine": values[0], "how": kind}
        for (kind, other), (latents, values) in sorted(near.items(), key=lambda entry: entry[0][1])
        if kind in ("match", "nearest")
    ]


def _meta(store: OpenStore, facts: SaeFacts, own: tuple[list[int], list[float]]) -> list[dict]:
    """The meta-latents that build the row, each with the latents that have the largest weight on it.

    own: the meta-latents, and the weight of each.
    """
    sql = "SELECT meta_latent, data FROM meta_latents WHERE sae = ? AND meta_latent IN (SELECT value FROM json_each(?))"
    rows = store.ask(sql, (facts.id, json.dumps(own[0])))
    siblings = {
        meta_latent: [{"latent": i, "weight": weight} for i, weight in zip(*blobs.unpack_edges(data), strict=True)]
        for meta_latent, data in rows
    }
    return [
        {"meta_latent": i, "weight": weight, "siblings": siblings[i][:SIBLINGS]} for i, weight in zip(*own, strict=True)
    ]
