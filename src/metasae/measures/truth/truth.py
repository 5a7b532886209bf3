"""Compares a dictionary with a planted world: has it found the features, does it fire when they are on, and are its
rows single features?

Latents have decoder rows w_i [n, d] and firings; features have directions g_j [m, d] and true activations on the same
tokens. Only live latents (at least one firing) count, and dead ones are counted. Latents and features are matched one
to one so that the sum of |cos(w_i, g_j)| is largest; MCC is the mean of |cos| over the matched pairs. Sources: arXiv
2602.14687 (SynthSAEBench); arXiv 2409.14507 for absorption.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from metasae.data.split import Split
from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.cofiring.counts import live_latents
from metasae.measures.firing.firings import Firings

BLEND, PARTS = 1.5, 4
ALIGNED = 0.1
RELATED = 0.05
TILE = 256
NONE = -1


def as_firings(activations: csr_array, split: Split) -> Firings:
    """csr [T, n], positive, indices rising within a token -> Firings on the tokens of `split`."""
    return Firings(
        activations.indptr.astype(np.int64),
        activations.indices.astype(np.int32),
        activations.data.astype(np.float32),
        activations.shape[1],
        split.documents,
        split.tokens,
        split.positions,
    )


def measure_truth(
    rows: np.ndarray, firings: Firings, directions: np.ndarray, truth: Firings, parent: np.ndarray | None = None
) -> dict:
    """The `truth` part of a planted world's measures.

    mcc: mean |cos| of matched pairs. mcc_of_features: the same sum over all m features, an unmatched one counting 0.
    latent_max_cosine, feature_max_cosine: mean over live latents (features) of the largest cosine with any feature
    (live latent). uniqueness: number of different best features (by |cos|) per live latent. f1: mean over features that
    are ever on of the F1 of their matched latent's firing, 0 where unmatched; best_f1: of the best latent for each,
    chosen on these same tokens. blend_rate: share of live latents whose effective number of features exceeds BLEND; see
    `effective_numbers`. absorption: mean over parents of absorbed / active tokens. phi_error ...: see `phi_errors`.
    excluded: dead: latents that never fire; silent: features that are never on; unmatched: features without a latent;
    unexplained: live rows that no non-negative combination of features helps to build, which are not in blend_rate.
    None where a number does not exist.

    rows: [n, d], of the latents of `firings`. directions: [m, d], of the features of `truth`. Lengths do not matter.
    parent: int [m], a feature's parent or -1; None for a world without hierarchy. Holds one float64 [n, m] matrix.
    Raises ValueError when the shapes do not belong together.
    """
    if firings.n_tokens != truth.n_tokens or len(rows) != firings.n_latents or len(directions) != truth.n_latents:
        raise ValueError("rows, directions and both firings must be of the same dictionary, world and tokens")
    live = np.flatnonzero(firings.counts())
    w, g = unit(rows[live]), unit(directions)
    cosines = w @ g.T
    match = match_features(cosines)
    features = np.flatnonzero(match != NONE)
    sizes = np.abs(cosines[match[features], features])
    latent_of = np.full(len(g), NONE)
    latent_of[features] = live[match[features]]
    f1, best = firing_f1(firings, truth, latent_of)
    on = truth.counts() > 0
    parents = absorption(unit(rows), firings, g, truth, latent_of, parent) if parent is not None else {}
    absorbed = {str(p): carried / active for p, (carried, active) in parents.items()}
    numbers = effective_numbers(w, g)
    known = numbers[np.isfinite(numbers)]
    return {
        "mcc": _mean(sizes),
        "mcc_of_features": float(sizes.sum() / len(g)) if len(live) else None,
        "latent_max_cosine": _mean(cosines.max(axis=1)) if len(live) else None,
        "feature_max_cosine": _mean(cosines.max(axis=0)) if len(live) else None,
        "uniqueness": len(np.unique(np.abs(cosines).argmax(axis=1))) / len(live) if len(live) else None,
        "f1": _mean(f1[on]),
        "best_f1": _mean(best[on]),
        "blend_rate": _mean(known > BLEND),
        "effective_number": _mean(known),
        "absorption": _mean(list(absorbed.values())),
        "absorption_by_parent": absorbed,
        **phi_errors(firings, truth, latent_of),
        "n_live": len(live),
        "n_features": len(g),
        "excluded": {
            "dead": firings.n_latents - len(live),
            "silent": int(np.count_nonzero(~on)),
            "unmatched": len(g) - len(features),
            "unexplained": len(numbers) - len(known),
        },
    }


def match_features(cosines: np.ndarray) -> np.ndarray:
    """cos(w_i, g_j) [n, m] -> the latent of each feature, int64 [m], NONE for features left over; the sum of |cos| is
    largest (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    latents, features = linear_sum_assignment(-np.abs(cosines))
    match = np.full(cosines.shape[1], NONE, np.int64)
    match[features] = latents
    return match


def effective_numbers(rows: np.ndarray, directions: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """How many features each unit row is made of: (sum_j c_j^2)^2 / sum_j c_j^4, float64 [n]; NaN where every cosine is
    0 or below.

    c >= 0 minimises ||w - sum_j c_j g_j|| over the at most `parts` features that a greedy pursuit picks. Without that
    limit the many features of a world fit any noise in a row. Squares weigh parts by their energy: two parts make a
    blend (above 1.5) when the smaller has more than 0.52 of the larger's length.
    """
    from scipy.optimize import nnls

    numbers = np.full(len(rows), np.nan)
    for place, row in enumerate(rows):
        chosen, c, rest = [], np.zeros(0), row
        while len(chosen) < parts:
            towards = directions @ rest
            towards[chosen] = 0
            if towards.max() <= 1e-9:
                break
            chosen.append(int(towards.argmax()))
            basis = directions[chosen].T
            c = nnls(basis, row)[0]
            rest = row - basis @ c
        if chosen:
            numbers[place] = np.sum(c**2) ** 2 / np.sum(c**4)
    return numbers


def firing_f1(firings: Firings, truth: Firings, latent_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2 N_both / (N_latent + N_feature) of each feature with its latent (0 for NONE), and with its best latent.

    Both float64 [m].
    """
    both = (_patterns(truth) @ _patterns(firings).T).tocoo()
    total = truth.counts()[both.row] + firings.counts()[both.col]
    values = 2 * both.data / total
    best, own = np.zeros(truth.n_latents), np.zeros(truth.n_latents)
    np.maximum.at(best, both.row, values)
    matched = both.col == latent_of[both.row]
    own[both.row[matched]] = values[matched]
    return own, best


def absorption(
    rows: np.ndarray,
    firings: Firings,
    directions: np.ndarray,
    truth: Firings,
    latent_of: np.ndarray,
    parent: np.ndarray,
) -> dict[int, tuple[int, int]]:
    """Parent -> (tokens absorbed, tokens on which it is on). A token is absorbed where the parent is on, its latent is
    silent, and a child's latent fires that has taken in the parent's direction.

    A child's latent has taken it in where the least-squares fit w = a g_child + b g_parent has b > ALIGNED; rows and
    directions are unit. Parents that are never on or have no latent are left out.
    """
    fires, on = _patterns(firings), _patterns(truth)
    parents = {}
    for p in np.unique(parent[parent >= 0]):
        active = _tokens(on, p)
        if latent_of[p] == NONE or not len(active):
            continue
        children = [c for c in np.flatnonzero(parent == p) if latent_of[c] != NONE]
        carriers = [
            latent_of[c]
            for c in children
            if _share_of_parent(rows[latent_of[c]], directions[c], directions[p]) > ALIGNED
        ]
        silent = np.setdiff1d(active, _tokens(fires, latent_of[p]))
        carried = [np.isin(silent, _tokens(fires, latent)) for latent in carriers]
        absorbed = np.count_nonzero(np.any(carried, axis=0)) if carriers else 0
        parents[int(p)] = int(absorbed), len(active)
    return parents


def phi_errors(firings: Firings, truth: Firings, latent_of: np.ndarray) -> dict[str, float | int | None]:
    """phi of the two matched latents minus phi of the two features, over all pairs of features with latents.

    All four fire on some tokens but not on all. phi_error: mean |difference|; phi_bias: mean difference;
    phi_related_error, phi_related_bias: over the n_related pairs whose features have |phi| > RELATED. None where there
    are no pairs. Streamed in tiles.
    """
    total, n_latent, n_feature = truth.n_tokens, firings.counts(), truth.counts()
    features = live_latents(n_feature, total)
    features = features[np.isin(latent_of[features], live_latents(n_latent, total))]
    differences, related = [], []
    latent_tiles = _phi_rows(firings, latent_of[features], n_latent)
    for phi, true in zip(latent_tiles, _phi_rows(truth, features, n_feature), strict=True):
        differences.append(_sums(phi - true))
        related.append(_sums((phi - true)[np.abs(true) > RELATED]))
    (error, bias, n_pairs), (related_error, related_bias, n_related) = _means(differences), _means(related)
    return {
        "phi_error": error,
        "phi_bias": bias,
        "phi_related_error": related_error,
        "phi_related_bias": related_bias,
        "n_pairs": n_pairs,
        "n_related": n_related,
    }


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows to unit length, float64; a row of zeros stays."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _phi_rows(firings: Firings, columns: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """phi of the pairs i < j of the chosen columns, a tile of rows i at a time, flattened; column order kept."""
    patterns, counts = _patterns(firings)[columns], counts[columns]
    for start in range(0, len(columns), TILE):
        n11 = (patterns[start : start + TILE] @ patterns[start:].T).toarray()
        phi = phi_tile(n11, counts[start : start + TILE], counts[start:], firings.n_tokens)
        yield phi[np.arange(phi.shape[1])[None, :] > np.arange(phi.shape[0])[:, None]]


def _patterns(firings: Firings) -> csr_array:
    """Which tokens each latent fires on: csr int64 [n, T]."""
    ones = np.ones(len(firings.indices), np.int64)
    return csr_array((ones, firings.indices, firings.indptr), shape=(firings.n_tokens, firings.n_latents)).T.tocsr()


def _tokens(patterns: csr_array, row: int) -> np.ndarray:
    return patterns.indices[patterns.indptr[row] : patterns.indptr[row + 1]]


def _share_of_parent(row: np.ndarray, child: np.ndarray, parent: np.ndarray) -> float:
    return float(np.linalg.lstsq(np.stack([child, parent], axis=1), row, rcond=None)[0][1])


def _sums(differences: np.ndarray) -> tuple[float, float, int]:
    return float(np.abs(differences).sum()), float(differences.sum()), len(differences)


def _means(sums: list[tuple[float, float, int]]) -> tuple[float | None, float | None, int]:
    count = sum(number for *_, number in sums)
    return (sum(a for a, *_ in sums) / count, sum(b for _, b, _ in sums) / count, count) if count else (None, None, 0)


def _mean(values: Sequence | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
