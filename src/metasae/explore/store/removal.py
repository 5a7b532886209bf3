"""Taking the rows of a part out of the store, and what follows from all parts together."""

import sqlite3

from metasae.explore.store.schema import BASE, LATENTS_OF_SAE
from metasae.explore.store.split_rows import pair_name

# Tables by the part that writes them, with a key or with the number of an SAE.
_BY_KEY = {
    "sae": ("latents", "windows", "tokens", "histograms", "edges"),
    "interp": ("explanations", "senses", "replies"),
    "logits": ("logits",),
}
_BY_SAE = {"sae": ("meta_latents", "top_tokens"), "interp": ("scores",)}


def remove(store: sqlite3.Connection, name: str) -> None:
    """Takes the rows of a part out of the store. The number of an SAE stays its own."""
    kind, _, of = name.partition(":")
    if kind == "text":
        for (number,) in store.execute("SELECT id FROM texts WHERE digest = ?", (of,)).fetchall():
            for table in ("text_chunks", "vocabulary", "top_tokens"):
                store.execute(f"DELETE FROM {table} WHERE text = ?", (number,))
            store.execute("DELETE FROM texts WHERE id = ?", (number,))
        return
    numbers = [
        held[0]
        for each in of.split("|")
        if (held := store.execute("SELECT id FROM saes WHERE name = ?", (each,)).fetchone())
    ]
    ranges = [(number * LATENTS_OF_SAE, (number + 1) * LATENTS_OF_SAE - 1) for number in numbers]
    if kind in _BY_KEY and numbers:
        for table in _BY_KEY[kind]:
            store.execute(f"DELETE FROM {table} WHERE key BETWEEN ? AND ?", ranges[0])
        for table in _BY_SAE.get(kind, ()):
            store.execute(f"DELETE FROM {table} WHERE sae = ?", (numbers[0],))
    elif kind == "pair" and len(numbers) == 2:
        for place in (0, 1):
            store.execute(
                "DELETE FROM edges WHERE key BETWEEN ? AND ? AND other = ?", (*ranges[place], numbers[1 - place])
            )
    elif kind == "splits":
        pair = pair_name(*of.split("|"))
        store.execute("DELETE FROM split_members WHERE split IN (SELECT id FROM splits WHERE pair = ?)", (pair,))
        store.execute("DELETE FROM splits WHERE pair = ?", (pair,))
        store.execute("DELETE FROM pairs WHERE name = ?", (pair,))


def forget(store: sqlite3.Connection, name: str) -> None:
    """As `remove`, for a part that is wanted no more."""
    remove(store, name)
    kind, _, of = name.partition(":")
    if kind == "sae":
        store.execute("DELETE FROM saes WHERE name = ?", (of,))
    store.execute("DELETE FROM parts WHERE name = ?", (name,))


def finish(store: sqlite3.Connection) -> None:
    """What follows from all parts together: each latent's best split score, and the index of explanations."""
    # CROSS JOIN keeps this order: from a latent to its few splits
    best = "SELECT MAX(s.score) FROM splits s CROSS JOIN pairs p ON p.name = s.pair WHERE s.parent = latents.key AND p.kind <> ?"
    store.execute(f"UPDATE latents SET split_score = ({best})", (BASE,))
    store.execute("INSERT INTO explanation_words (explanation_words) VALUES ('rebuild')")
