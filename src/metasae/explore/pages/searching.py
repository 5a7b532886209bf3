"""Searching: the latents whose explanation has some words, or whose top tokens begin with a text.

The table `top_tokens` holds, of each token of the vocabulary and each SAE, the latents that have it among their first SEARCHED tokens,
as int32, those with the most firings first. So what a common token finds, all latents perhaps, comes as one value and not as rows.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from metasae.explore.store.columns import Columns
from metasae.explore.store.schema import LATENTS_OF_SAE, key_of
from metasae.explore.store.stored_text import folded, readable

LONGEST_SEARCH = 500
Ask = Callable[..., list[tuple]]

_BY_TOKEN = """SELECT group_concat(hex(t.data), '') FROM vocabulary v
    CROSS JOIN top_tokens t ON t.text = v.text AND t.entry = v.entry AND t.sae = :sae
    WHERE v.text = :text AND v.folded >= :low AND v.folded < :high"""
_BY_WORDS = """SELECT group_concat(rowid - :first, ' ') FROM explanation_words
    WHERE explanation_words MATCH :words AND rowid BETWEEN :first AND :last"""
# the few that are shown are cut off before their texts are looked up
_BEST = """SELECT e.key, e.text FROM
        (SELECT rowid AS key, rank FROM explanation_words WHERE explanation_words MATCH :words ORDER BY rank, rowid LIMIT :limit) w
    CROSS JOIN explanations e ON e.key = w.key ORDER BY w.rank, e.key"""
# short tokens first; each of those that are taken is a top token of some latent, so that no more of them are needed than rows
_TOKENS = """SELECT v.text, v.entry, v.string FROM texts x CROSS JOIN vocabulary v ON v.text = x.id AND v.folded >= :low AND v.folded < :high
    WHERE EXISTS (SELECT 1 FROM top_tokens t WHERE t.text = v.text AND t.entry = v.entry)
    ORDER BY length(v.folded), v.folded, v.entry, v.text LIMIT :limit"""


def write_top_tokens(store, text: int, sae: int, entries: np.ndarray, latents: np.ndarray, firings: np.ndarray) -> None:
    """entries, latents int [m]: each pair of a token of the vocabulary and a latent that has it among its first. firings: int [n] of the SAE."""
    order = np.lexsort((latents, -firings[latents], entries))
    names, first, sizes = np.unique(entries[order], return_index=True, return_counts=True)
    latents = latents[order].astype("<i4")
    places = zip(names.tolist(), first.tolist(), sizes.tolist(), strict=True)
    rows = ((text, entry, sae, latents[begin : begin + size].tobytes()) for entry, begin, size in places)
    store.executemany("INSERT INTO top_tokens VALUES (?, ?, ?, ?)", rows)


def found_in(ask: Ask, sae: int, n: int, text: int | None, search: str) -> np.ndarray:
    """bool [n]: the latents of an SAE, on evaluation text number `text`, that a search finds."""
    found = np.zeros(n, bool)
    ((by_token,),) = ask(_BY_TOKEN, {"sae": sae, "text": text, **token_range(search)})
    found[np.frombuffer(bytes.fromhex(by_token or ""), "<i4")] = True
    if words := words_query(search):
        ((by_words,),) = ask(_BY_WORDS, {"words": words, "first": key_of(sae, 0), "last": key_of(sae + 1, 0) - 1})
        found[np.fromstring(by_words or "", np.int64, sep=" ")] = True
    return found


def best(ask: Ask, columns_of: Mapping[int, Columns], search: str, limit: int) -> list[tuple[int, str, str]]:
    """Up to `limit` of (key, `explanation` or `token`, the text that was found) of any SAE: explanations by their rank, then tokens, short
    ones first, of each the latents with the most firings. Ties to the lower key.

    columns_of: number of an SAE -> its columns.
    """
    words = words_query(search)
    found = [(key, "explanation", said) for key, said in ask(_BEST, {"words": words, "limit": limit})] if words else []
    for rows in _by_tokens(ask, columns_of, search, limit) if len(found) < limit else ():
        found += rows
        if len(found) >= limit:
            break
    return found[:limit]


def _by_tokens(
    ask: Ask, columns_of: Mapping[int, Columns], search: str, limit: int
) -> Iterator[list[tuple[int, str, str]]]:
    """Of one token after the other its latents, up to `limit`."""
    sql = "SELECT sae, substr(data, 1, :bytes) FROM top_tokens WHERE text = :text AND entry = :entry"
    for text, entry, string in ask(_TOKENS, {**token_range(search), "limit": limit}):
        firings, keys = [], []
        for sae, data in ask(sql, {"text": text, "entry": entry, "bytes": 4 * limit}):
            latents = np.frombuffer(data, "<i4")
            firings.append(columns_of[sae].column("firings")[latents])
            keys.append(latents.astype(np.int64) + sae * LATENTS_OF_SAE)
        firings, keys = np.concatenate(firings), np.concatenate(keys)
        yield [(key, "token", string) for key in keys[np.lexsort((keys, -firings))][:limit].tolist()]


def token_range(search: str) -> dict[str, str]:
    """The tokens that begin with what is searched for, as the ends of a range."""
    wanted = folded(readable(search[:LONGEST_SEARCH]))
    # nothing comes after the last character of all
    return {"low": wanted, "high": wanted + "\U0010ffff"} if wanted else {"low": "\U0010ffff", "high": ""}


def words_query(search: str) -> str | None:
    """All the words, the last one perhaps not typed to its end, in FTS5's language; None where there is no word to look for.

    Each word stands in quotes, so that none is taken for an operator.
    """
    words = [
        word.replace('"', '""')
        for word in readable(search[:LONGEST_SEARCH]).replace("\0", " ").split()
        if any(each.isalnum() for each in word)
    ]
    return " ".join(f'"{word}"' for word in words) + "*" if words else None
