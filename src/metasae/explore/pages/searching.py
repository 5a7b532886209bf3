"""Searching: the latents whose explanation has some words, or whose top tokens begin with a text.

The table `top_tokens` holds, of each token of the vocabulary and each SAE, the latents that have it among their first SEARCHED
tokens, as int32, those with the most firings first. So what a common token finds, all latents perhaps, comes as one value.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from metasae.explore.pages.latent_table import LatentTable
from metasae.explore.store.open_store import OpenStore, SaeFacts
from metasae.explore.store.schema import LATENTS_OF_SAE, keys_of
from metasae.explore.store.stored_text import folded, readable

LONGEST_SEARCH = 500

_BY_TOKEN = """SELECT t.data FROM vocabulary v
    CROSS JOIN top_tokens t ON t.text = v.text AND t.entry = v.entry AND t.sae = :sae
    WHERE v.text = :text AND v.folded >= :low AND v.folded < :high"""
_BY_WORDS = """SELECT rowid - :first FROM explanation_words
    WHERE explanation_words MATCH :words AND rowid BETWEEN :first AND :last"""
# the few that are shown are cut off before their texts are looked up
_BEST = """SELECT e.key, e.text FROM
        (SELECT rowid AS key, rank FROM explanation_words
        WHERE explanation_words MATCH :words ORDER BY rank, rowid LIMIT :limit) w
    CROSS JOIN explanations e ON e.key = w.key ORDER BY w.rank, e.key"""
# short tokens first; each of those that are taken is a top token of some latent, so that no more of them are needed than rows
_TOKENS = """SELECT v.text, v.entry, v.string FROM texts x
    CROSS JOIN vocabulary v ON v.text = x.id AND v.folded >= :low AND v.folded < :high
    WHERE EXISTS (SELECT 1 FROM top_tokens t WHERE t.text = v.text AND t.entry = v.entry)
    ORDER BY length(v.folded), v.folded, v.entry, v.text LIMIT :limit"""
_LATENTS = "SELECT sae, substr(data, 1, :bytes) FROM top_tokens WHERE text = :text AND entry = :entry"


def found_in(store: OpenStore, facts: SaeFacts, search: str) -> np.ndarray:
    """bool [n]: the latents of an SAE that a search finds."""
    found = np.zeros(facts.n, bool)
    by_token = store.ask(_BY_TOKEN, {"sae": facts.id, "text": facts.text, **token_range(search)})
    found[np.frombuffer(b"".join(data for (data,) in by_token), "<i4")] = True
    words = _words_query(search)
    if words:
        first, last = keys_of(facts.id)
        by_words = store.ask(_BY_WORDS, {"words": words, "first": first, "last": last})
        found[np.array(by_words, np.int64).reshape(-1)] = True
    return found


def best(store: OpenStore, tables: Mapping[int, LatentTable], search: str, limit: int) -> list[tuple[int, str, str]]:
    """Up to `limit` of (key, `explanation` or `token`, the text that was found) of any SAE.

    Explanations come first, by their rank, then tokens, short ones first, of each the latents with the most firings. Ties to
    the lower key. tables: by the number of the SAE.
    """
    words, best = _words_query(search), []
    if words:
        explained = store.ask(_BEST, {"words": words, "limit": limit})
        best = [(key, "explanation", text) for key, text in explained]
    if len(best) < limit:
        for rows in _by_tokens(store, tables, search, limit):
            best += rows
            if len(best) >= limit:
                break
    return best[:limit]


def _by_tokens(
    store: OpenStore, tables: Mapping[int, LatentTable], search: str, limit: int
) -> Iterator[list[tuple[int, str, str]]]:
    """Of one token after the other its latents, up to `limit`."""
    for text, entry, string in store.ask(_TOKENS, {**token_range(search), "limit": limit}):
        firings, keys = [], []
        for sae, data in store.ask(_LATENTS, {"text": text, "entry": entry, "bytes": 4 * limit}):
            latents = np.frombuffer(data, "<i4")
            firings.append(tables[sae].column("firings")[latents])
            keys.append(latents.astype(np.int64) + sae * LATENTS_OF_SAE)
        firings, keys = np.concatenate(firings), np.concatenate(keys)
        yield [(key, "token", string) for key in keys[np.lexsort((keys, -firings))][:limit].tolist()]


def token_range(search: str) -> dict[str, str]:
    """The tokens that begin with what is searched for, as the ends of a range."""
    wanted = folded(readable(search[:LONGEST_SEARCH]))
    # nothing comes after the last character of all
    return {"low": wanted, "high": wanted + "\U0010ffff"} if wanted else {"low": "\U0010ffff", "high": ""}


def _words_query(search: str) -> str | None:
    """All the words, the last one perhaps not typed to its end, in FTS5's language; None where there is no word to look for.

    Each word stands in quotes, so that none is taken for an operator.
    """
    words = readable(search[:LONGEST_SEARCH]).replace("\0", " ").replace('"', '""').split()
    quoted = [f'"{word}"' for word in words if any(map(str.isalnum, word))]
    return " ".join(quoted) + "*" if quoted else None
