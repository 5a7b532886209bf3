"""The cosine of each latent with its match in another arm; the pages call those with the lowest the most changed.

An arm is compared with the baseline of its seed. The baseline is compared with the subject (joint), or else with the
first other arm of its seed that has other weights.
"""

import sqlite3

from metasae.explore.store.blobs import unpack_edges
from metasae.explore.store.schema import keys_of
from metasae.recipe.registry import SUBJECT

_SAES = "SELECT id, arm, seed, weights FROM saes"
_EDGES = "SELECT key, data FROM edges WHERE kind IN ('match', 'nearest') AND other = ? AND key BETWEEN ? AND ?"


def write_match_cosines(store: sqlite3.Connection, baseline: str) -> None:
    """Fills the column match_cosine of the table latents; NULL where an SAE has no partner or a latent no match.

    Above the size up to which rows are matched one to one, the nearest row takes the place of the match.
    """
    store.execute("UPDATE latents SET match_cosine = NULL")
    for sae, other in partners(store.execute(_SAES).fetchall(), baseline).items():
        edges = store.execute(_EDGES, (other, *keys_of(sae))).fetchall()
        rows = [(unpack_edges(data)[1][0], key) for key, data in edges]
        store.executemany("UPDATE latents SET match_cosine = ? WHERE key = ?", rows)


def partners(saes: list[tuple[int, str, int, str]], baseline: str) -> dict[int, int]:
    """SAE -> the SAE it is compared with. saes: (number, arm, seed, digest of the weights)."""
    partner = {}
    for number, arm, seed, weights in saes:
        others = [sae for sae in saes if sae[2] == seed and sae[1] != arm and sae[3] != weights]
        if arm != baseline:
            others = [sae for sae in others if sae[1] == baseline]
        if others:
            partner[number] = min(others, key=lambda sae: (sae[1] != SUBJECT, sae[0]))[0]
    return partner
