"""The search: it finds latents by words of their explanation, or by the beginning of a token that they fire on.

Every match has a number from 0 to 1 that says how specific the latent is to the search. The most specific latents come
first:

    token        F1 of the latent's firing as a detector of the token (`metasae.explore.store.blobs.token_f1`), times
                 the share of the token's letters that were searched for
    explanation  the share of the explanation's words that were searched for

The table `top_tokens` holds, of each token of the vocabulary and each SAE, the latents that have it among their first
SEARCHED tokens, the most specific first. So all latents of a common token are read as one value. The
static pages rank by the same numbers (static/files.js).
"""

import re
from typing import NamedTuple

import numpy as np

from metasae.encodings import readable
from metasae.explore.store.blobs import SPECIFIC
from metasae.explore.store.open_store import OpenStore, SaeFacts, folded
from metasae.explore.store.schema import keys_of

LONGEST_SEARCH = 500
# The order of a list that is searched; no column has this name.
SPECIFIC_FIRST = "specific"
_BY_TOKEN = """SELECT v.string, v.folded, t.data FROM vocabulary v
    CROSS JOIN top_tokens t ON t.text = v.text AND t.entry = v.entry AND t.sae = :sae
    WHERE v.text = :text AND v.folded >= :low AND v.folded < :high ORDER BY v.entry"""
_BY_WORDS = """SELECT w.rowid - :first, e.text FROM explanation_words w CROSS JOIN explanations e ON e.key = w.rowid
    WHERE explanation_words MATCH :words AND w.rowid BETWEEN :first AND :last"""


class Match(NamedTuple):
    """A latent that was found. where: `token` or `explanation`. text: that token or explanation."""

    latent: int
    where: str
    text: str
    specific: float


def found_in(store: OpenStore, facts: SaeFacts, search: str) -> np.ndarray:
    """bool [n]: the latents of an SAE that a search finds."""
    passing = np.zeros(facts.n, bool)
    passing[[match.latent for match in matches_in(store, facts, search)]] = True
    return passing


def most_specific_first(store: OpenStore, facts: SaeFacts, search: str, latents: np.ndarray) -> np.ndarray:
    """latents int [m], which the search finds, in the order of `matches_in`."""
    order = np.array([match.latent for match in matches_in(store, facts, search)], latents.dtype)
    return order[np.isin(order, latents)]


def matches_in(store: OpenStore, facts: SaeFacts, search: str) -> list[Match]:
    """The matches in one SAE, the most specific first; equally specific ones by their number."""
    by_token = _by_token(store, facts, search)
    by_words = {match.latent: match for match in _by_words(store, facts, search)}
    best = [match for match in by_token if match.specific >= by_words.get(match.latent, match).specific]
    better = {match.latent for match in best}
    best += [match for latent, match in by_words.items() if latent not in better]
    return sorted(best, key=lambda match: (-match.specific, match.latent))


def _by_token(store: OpenStore, facts: SaeFacts, search: str) -> list[Match]:
    """Each latent once, by the token with the largest number; of equal ones by the token that is first in the text."""
    wanted = token_range(search)
    rows = store.ask(_BY_TOKEN, {"sae": facts.id, "text": facts.text, **wanted})
    if not rows:
        return []
    records = [np.frombuffer(data, SPECIFIC) for *_, data in rows]
    typed = [len(wanted["low"]) / len(word) for _, word, _ in rows]
    latents = np.concatenate([record["latent"] for record in records])
    specific = np.concatenate([record["f1"] * share for record, share in zip(records, typed, strict=True)])
    of = np.repeat(np.arange(len(rows)), [len(record) for record in records])
    order = np.lexsort((of, -specific, latents))
    _, first = np.unique(latents[order], return_index=True)
    best = order[first]
    columns = latents[best].tolist(), of[best].tolist(), specific[best].tolist()
    return [Match(latent, "token", rows[row][0], value) for latent, row, value in zip(*columns, strict=True)]


def _by_words(store: OpenStore, facts: SaeFacts, search: str) -> list[Match]:
    first, last = keys_of(facts.id)
    rows = store.ask(_BY_WORDS, {"words": _words_query(search), "first": first, "last": last})
    n_words = len(words(search))
    return [Match(latent, "explanation", text, min(1.0, n_words / max(1, len(words(text))))) for latent, text in rows]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def token_range(search: str) -> dict[str, str]:
    """The ends of the range of tokens that begin with the search."""
    wanted = folded(readable(search[:LONGEST_SEARCH]))
    # nothing comes after the last character of all
    return {"low": wanted, "high": wanted + "\U0010ffff"} if wanted else {"low": "\U0010ffff", "high": ""}


def _words_query(search: str) -> str:
    """The words as a query of FTS5; an empty phrase, which finds nothing, where there is no word.

    The last word may be unfinished. Each word is quoted, so that none is read as an operator.
    """
    words = readable(search[:LONGEST_SEARCH]).replace("\0", " ").replace('"', '""').split()
    quoted = [f'"{word}"' for word in words if any(map(str.isalnum, word))]
    return " ".join(quoted) + "*" if quoted else '""'
