"""The document-shift null: |phi| when one latent of every pair is read from other documents.

The firings of the second latent are rotated by s tokens, where s is the start of a document: token t is paired with
token t + s (mod T). Every rate stays exactly the same, and so does the way each latent clusters within its documents;
only the effect of reading the same text is removed. Unlike the fixed marginals, this null keeps bursts, and it does not
keep tokens on which everything fires.
"""

import math
from dataclasses import replace
from statistics import stdev

import numpy as np

from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.cofiring.counts import COLUMNS, TILE, CoFirings, excluded, live_latents, n_pairs_of
from metasae.measures.firing.firings import Firings, run_starts
from metasae.progress.progress import SILENT, Progress, Task
from metasae.ranks.lanes import side_by_side


def document_shifts(documents: np.ndarray) -> np.ndarray:
    """The starts of documents, int64, by which a text can be rotated so that no token is paired with one of its own
    document.

    documents: int [T], each document's tokens in one stretch. A document longer than half the text leaves no shift.
    """
    starts = run_starts(documents)
    longest = np.diff(np.append(starts, len(documents))).max(initial=0)
    return starts[(starts >= longest) & (starts <= len(documents) - longest)]


def shift_null(
    firings: Firings,
    mean_abs_phi: float | None,
    seed: int,
    shifts: int = 3,
    tile: int = TILE,
    progress: Progress = SILENT,
) -> dict:
    """The document-shift null of `firings`, over all pairs of latents that fire on some tokens but not on all.

    null_abs_phi: mean |phi| over pairs and shifts. excess_abs_phi: the pairs' own mean |phi| minus it. values: mean
    |phi| of each shift. spread: their standard deviation; None for fewer than two. shifts: in tokens. n_possible: how
    many shifts there are. The first two are None where there is no pair or no shift.

    mean_abs_phi: of the pairs as they are (`cooccurrence.pair_statistics`). Shifts are drawn by `seed` without
    repetition, as many as there are up to `shifts`. Each pair counts twice per shift, once with either latent rotated.
    """
    counts, total = firings.counts(), firings.n_tokens
    latents = live_latents(counts, total)
    possible = document_shifts(firings.documents)
    drawn = np.random.default_rng(seed).choice(possible, min(shifts, len(possible)), replace=False).tolist()
    values = []
    if len(latents) > 1:
        with progress.task("co-firing by chance, documents shifted", len(drawn) * len(latents), "latents") as task:
            values = [_mean_abs_phi(firings, shift, latents, counts[latents], tile, task) for shift in drawn]
    null = math.fsum(values) / len(values) if values else None
    return {
        "excess_abs_phi": None if null is None or mean_abs_phi is None else mean_abs_phi - null,
        "null_abs_phi": null,
        "values": values,
        "spread": stdev(values) if len(values) > 1 else None,
        "shifts": drawn,
        "n_possible": len(possible),
        "n_documents": len(run_starts(firings.documents)),
        "n_pairs": n_pairs_of(len(latents)),
        "excluded": excluded(counts, total),
    }


def _mean_abs_phi(firings: Firings, shift: int, latents: np.ndarray, fired: np.ndarray, tile: int, task: Task) -> float:
    """Mean |phi| over all ordered pairs, the second latent read `shift` tokens further on."""
    total = firings.n_tokens
    # the rotated text has two stretches: the tokens whose partner is later in the text, and those whose partner is at
    # its beginning
    before = CoFirings(_stretch(firings, 0, total - shift), latents, _stretch(firings, shift, total), latents)
    after = CoFirings(_stretch(firings, total - shift, total), latents, _stretch(firings, 0, shift), latents)

    def sum_of(start: int) -> float:
        task.advance(min(tile, len(latents) - start))
        n11 = before.tile(start, tile) + after.tile(start, tile)
        sums = []
        for first in range(0, n11.shape[1], COLUMNS):
            columns = slice(first, first + COLUMNS)
            phi = np.abs(phi_tile(n11[:, columns], fired[start : start + tile], fired[columns], total))
            sums.append(float(phi.sum()) - float(np.trace(phi, start - first)))
        return math.fsum(sums)

    sums = side_by_side(sum_of, range(0, len(latents), tile))
    return math.fsum(sums) / (len(latents) * (len(latents) - 1))


def _stretch(firings: Firings, first: int, last: int) -> Firings:
    """The firings of tokens first to last - 1; shares the memory of all that is large."""
    indptr = firings.indptr[first : last + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    return replace(
        firings,
        indptr=indptr - indptr[0],
        indices=firings.indices[entries],
        values=firings.values[entries],
        documents=firings.documents[first:last],
        tokens=firings.tokens[first:last],
        positions=firings.positions[first:last],
    )
