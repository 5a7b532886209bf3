"""The table of an SAE's latents: which of them pass, in which order."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metasae.explore.schema import SCALARS
from metasae.explore.stored_text import folded, readable

MOST = 500
TEXTS = {"latent": "latent", "top_tokens": "tokens it fires on most", "explanation": "explanation", "label": "label"}
LONGEST_SEARCH = 500
Ask = Callable[..., list[tuple]]


@dataclass(frozen=True)
class Filters:
    """search: words of an explanation, or the beginning of a top token. min_rate, max_rate: of firing. label: as it counts. dead: silent ones too."""

    search: str | None = None
    min_rate: float | None = None
    max_rate: float | None = None
    label: str | None = None
    dead: bool = False


def columns_of(scores: list[tuple[str, str]]) -> list[dict]:
    numbers = {"latent": "latent", **SCALARS, **{f"interp.{score}.{part}": f"{score}, {part}" for score, part in scores}}
    found = [{"key": key, "label": label, "kind": "number"} for key, label in numbers.items()]
    return found + [{"key": key, "label": label, "kind": "text"} for key, label in TEXTS.items() if key != "latent"]


def keys_of(
    ask: Ask, sae: int, text: int | None, scores: list[tuple[str, str]], sort: str, descending: bool, filters: Filters, labels: Mapping[int, str]
) -> list[int]:
    """The keys of all latents that pass, in order. Latents without the number sorted by come last, equals in their own order.

    labels: latent -> label. Raises ValueError for a column that is not there.
    """
    order, join, values = _order(sort, scores, labels)
    where, filtered = _where(filters, sae, text, labels)
    direction = "DESC" if descending else "ASC"
    sql = f"SELECT l.key FROM latents l {join} WHERE {where} ORDER BY {order} {direction} NULLS LAST, l.latent"
    return [key for (key,) in ask(sql, {**filtered, **values})]


def _order(sort: str, scores: list[tuple[str, str]], labels: Mapping[int, str]) -> tuple[str, str, dict]:
    """(expression to sort by, joins, parameters). Names of columns come from our own lists alone."""
    if sort in SCALARS or sort in ("latent", "top_tokens"):
        return f"l.{sort}", "", {}
    if sort == "explanation":
        return "e.text", "LEFT JOIN explanations e ON e.key = l.key", {}
    if sort == "label":
        held = json.dumps([[latent, label] for latent, label in labels.items()])
        sql = "LEFT JOIN (SELECT json_extract(value, '$[0]') AS latent, json_extract(value, '$[1]') AS label FROM json_each(:labels)) b"
        return "b.label", f"{sql} ON b.latent = l.latent", {"labels": held}
    for score, part in scores:
        if sort == f"interp.{score}.{part}":
            on = "s.sae = l.sae AND s.score = :score AND s.part = :part AND s.latent = l.latent"
            return "s.value", f"LEFT JOIN scores s ON {on}", {"score": score, "part": part}
    raise ValueError(f"no column '{sort}' to sort by; known: {', '.join(column['key'] for column in columns_of(scores))}")


def _where(filters: Filters, sae: int, text: int | None, labels: Mapping[int, str]) -> tuple[str, dict]:
    clauses, values = ["l.sae = :sae"], {"sae": sae}
    if not filters.dead:
        clauses.append("l.firings IS NOT 0")
    for name, comparison in (("min_rate", ">="), ("max_rate", "<=")):
        if getattr(filters, name) is not None:
            clauses.append(f"l.rate {comparison} :{name}")
            values[name] = getattr(filters, name)
    if filters.label:
        clauses.append("l.latent IN (SELECT value FROM json_each(:labelled))")
        values["labelled"] = json.dumps([latent for latent, label in labels.items() if label == filters.label])
    if filters.search:
        clauses.append(f"l.key IN ({_KEYS_BY_TOKEN}" + (f" UNION {_KEYS_BY_WORDS})" if (words := words_query(filters.search)) else ")"))
        values |= {"text": text, **token_range(filters.search), **({"words": words} if words else {})}
    return " AND ".join(clauses), values


_KEYS_BY_TOKEN = """SELECT t.key FROM vocabulary v CROSS JOIN top_tokens t ON t.text = v.text AND t.entry = v.entry
    WHERE v.text = :text AND v.folded >= :low AND v.folded < :high"""
_KEYS_BY_WORDS = "SELECT rowid FROM explanation_words WHERE explanation_words MATCH :words"


def token_range(search: str) -> dict[str, str]:
    """The tokens that begin with what is searched for, as the ends of a range."""
    wanted = folded(readable(search[:LONGEST_SEARCH]))
    # nothing comes after the last character of all
    return {"low": wanted, "high": wanted + "\U0010ffff"} if wanted else {"low": "\U0010ffff", "high": ""}


def words_query(search: str) -> str | None:
    """All the words, the last one perhaps not typed to its end, in FTS5's language; None where there is no word to look for.

    Each word stands in quotes, so that none is taken for an operator.
    """
    words = [word.replace('"', '""') for word in readable(search[:LONGEST_SEARCH]).replace("\0", " ").split() if any(each.isalnum() for each in word)]
    return " ".join(f'"{word}"' for word in words) + "*" if words else None
