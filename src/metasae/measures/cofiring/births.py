"""What became of an arm's births, on held-out text at the SAE's final thresholds.

A birth splits a latent i during training (`metasae.train.moves.births`): one half stays in i's place, the parent; the
other, the newborn, takes the place j of the least useful latent. Over T held-out tokens, of which N_i have latent i on:

    rate = N_j / T      parent_rate = N_i / T      with_parent = N_ij / N_i

A later birth may take the place j or i again. Then the newborn is gone (`replaced_at` is that birth's step), and
`with_parent` is null, as one of the two latents is another one now. `alive`: N_j > 0 and not replaced.
"""

import numpy as np

from metasae.measures.cofiring.counts import TILE, CoFirings
from metasae.measures.firing.firings import Firings


def fate_of_births(births: dict, firings: Firings) -> dict:
    """How many births were made, how many newborns are alive, and medians over births; a median over none is None.

    births: as births.json has them ({stopped_at, records}). firings: of the trained SAE. Keys: made, alive, replaced,
    median_saved (error saved in the next window over error promised), median_rate and median_with_parent (of the
    newborns alive), stopped_at (the step after which no more were made, as those before had saved nothing; None: they
    went on to their last time), fates (one dictionary a birth, see above).
    """
    records = births["records"]
    fates = _fates(records, firings)
    alive = [fate for fate in fates if fate["alive"]]
    saved = [record["saved"] / record["promised"] for record in records if record["saved"] is not None]
    return {
        "made": len(records),
        "alive": len(alive),
        "replaced": sum(fate["replaced_at"] is not None for fate in fates),
        "median_saved": _median(saved),
        "median_rate": _median([fate["rate"] for fate in alive]),
        "median_with_parent": _median([fate["with_parent"] for fate in alive if fate["with_parent"] is not None]),
        "stopped_at": births["stopped_at"],
        "fates": fates,
    }


def _fates(records: list[dict], firings: Firings) -> list[dict]:
    """Of each birth, in their order: rate, parent_rate, with_parent, alive, replaced_at."""
    counts, tokens, fates = firings.counts(), firings.n_tokens, []
    # latent -> the step of the next birth that takes its place; the last births first
    taken: dict[int, int] = {}
    for record, both in reversed(list(zip(records, _together(records, firings), strict=True))):
        i, j = record["parent"], record["child"]
        is_same_pair = i not in taken and j not in taken
        fate = {
            "rate": int(counts[j]) / tokens,
            "parent_rate": int(counts[i]) / tokens,
            "with_parent": both / int(counts[i]) if is_same_pair and counts[i] else None,
            "alive": bool(counts[j]) and j not in taken,
            "replaced_at": taken.get(j),
        }
        fates.append(fate)
        taken[j] = record["step"]
    return fates[::-1]


def _together(records: list[dict], firings: Firings) -> list[int]:
    """N_ij of each birth."""
    if not records:
        return []
    parents, rows = np.unique([record["parent"] for record in records], return_inverse=True)
    children, columns = np.unique([record["child"] for record in records], return_inverse=True)
    counts, together = CoFirings(firings, parents, firings, children), np.zeros(len(records), np.int64)
    for start in range(0, len(parents), TILE):
        tile = counts.tile(start, TILE)
        here = (rows >= start) & (rows < start + TILE)
        together[here] = tile[rows[here] - start, columns[here]]
    return together.tolist()


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
