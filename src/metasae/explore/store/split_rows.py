"""Split candidates between two SAEs, written into the store: every parent that has a split, with its children."""

import json
import sqlite3
from collections.abc import Mapping

from metasae.explore.store.schema import key_of
from metasae.measures.cofiring.splits import find_splits
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress

# What is said of all candidates of a pair together; the rest of a `Splits.as_dict()` is the candidates.
SUMMARY = (
    "n_parents",
    "too_rare",
    "n_above_0.1",
    "n_above_0.25",
    "share_above_0.1",
    "share_above_0.25",
    "mean_score",
    "mean_top",
)


def pair_name(parent: str, child: str) -> str:
    return f"{parent} -> {child}"


def all_splits(parents: Firings, children: Firings, progress: Progress = SILENT) -> dict:
    """`find_splits` with every candidate, as JSON has it."""
    found = find_splits(parents, children, progress=progress)
    return found.as_dict(len(found.ranked))


def write_splits(
    store: sqlite3.Connection, kind: str, names: tuple[str, str], saes: tuple[int, int], found: Mapping
) -> None:
    """names, saes: parent and child. found: as `all_splits`, or a part of across.json, which has the best candidates alone."""
    pair = pair_name(*names)
    summary = {key: found.get(key) for key in SUMMARY}
    store.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?)", (pair, kind, *saes, json.dumps(summary)))
    rows, members = [], []
    for split in found["ranked"]:
        name, parent = f"{names[0]}.{split['parent']}.{names[1]}", key_of(saes[0], split["parent"])
        columns = zip(split["children"], split["phi"], split["shares"], strict=True)
        children = [{"latent": latent, "phi": phi, "share": share} for latent, phi, share in columns]
        rows.append(
            (
                name,
                pair,
                parent,
                split["score"],
                split["coverage"],
                split["overlap"],
                split["firings"],
                json.dumps(children),
            )
        )
        members += [(key, name) for key in (parent, *(key_of(saes[1], child) for child in split["children"]))]
    store.executemany("INSERT INTO splits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    store.executemany("INSERT OR IGNORE INTO split_members VALUES (?, ?)", members)
