"""Compares the side effects of steering with matched latents of two SAEs, over a sample of latents (see
`side_effects`).

For a latent i and its counterpart j in another SAE, spill is what steering with i also moves where the concept of j is
absent:

    spill_i = sum of D_t(clean, x - z w_i) over the firings t of i where j is silent / the same over all firings t of i
    apart_i = number of the firings t of i where j is silent / number of the firings of i

A latent that fires more widely than its counterpart spills more; spill / apart corrects for that. It is near 1 where
the output moves as much on text that only i fires on as on the rest, as with a blend, and well below 1 where i fires
there only weakly.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from metasae.data.model.host import Host
from metasae.measures.cofiring.counts import ratio
from metasae.measures.effect.side_effects import SideEffects, side_effects
from metasae.measures.firing.firings import Firings
from metasae.measures.rows.seeds import match
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE


@dataclass(frozen=True)
class Steering:
    """What side effects are measured with.

    host: the model. latents: matched pairs drawn. context: tokens of a window of the text.

    pairs: windows per latent, each with a silent one; the model runs 12 windows for each. seed: of the draw.
    """

    host: Host
    latents: int
    context: int
    pairs: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Side:
    """An SAE and its firings on the evaluation text."""

    sae: SAE
    firings: Firings


def draw_matched(a: Side, b: Side, count: int, seed: int = 0) -> np.ndarray:
    """int64 [m, 2], m <= count: latents of a with their partners in b, drawn from the live latents matched one to one
    by decoder cosine."""
    live_a, live_b = (np.flatnonzero(side.firings.counts() > 0) for side in (a, b))
    if not len(live_a) or not len(live_b):
        return np.zeros((0, 2), np.int64)
    rows = [side.sae.W_dec.detach()[torch.from_numpy(live)] for side, live in ((a, live_a), (b, live_b))]
    partner = match(*rows).partner
    matched = np.flatnonzero(partner >= 0)
    drawn = np.sort(np.random.default_rng(seed).permutation(matched)[:count])
    return np.stack([live_a[drawn], live_b[partner[drawn]]], axis=1).astype(np.int64)


def matched_side_effects(a: Side, b: Side, how: Steering, progress: Progress = SILENT) -> dict[str, float | int | None]:
    """Side effects of `how.latents` matched pairs; see `compare_side_effects`. Raises what `side_effects` raises."""
    pairs = draw_matched(a, b, how.latents, how.seed)
    effects = [
        side_effects(
            how.host, side.sae, side.firings, pairs[:, column], how.context, how.pairs, how.seed, progress=progress
        )
        for column, side in enumerate((a, b))
    ]
    return compare_side_effects(*effects, a.firings, b.firings)


def compare_side_effects(
    a: SideEffects, b: SideEffects, firings_a: Firings, firings_b: Firings
) -> dict[str, float | int | None]:
    """Compares the side effects of two SAEs on the same text. a, b: latent by latent of a with its partner in b; with
    the firings of all latents of both.

    bluntness_a, bluntness_b: geometric means; bluntness_percent: of a against b; share_sharper: share of the matches in
    which a has the lower one, ties half. spill, apart: means; a's where b's latent is silent, b's where a's is.
    n_bluntness, n_spill: matches with the number on both sides, out of n_matches. spill_per_firing: the mean spill over
    the mean of apart. None where no match has the number, and where nothing is apart.
    """
    bluntness = _with_both(a.bluntness, b.bluntness)
    spill = _with_both(*_spill(a, firings_b, b.latents), *_spill(b, firings_a, a.latents))
    spill_a, apart_a, spill_b, apart_b = map(_mean, spill)
    mean_a, mean_b = (_geometric_mean(values) for values in bluntness)
    n_bluntness = bluntness.shape[1]
    return {
        "bluntness_a": mean_a,
        "bluntness_b": mean_b,
        "bluntness_percent": 100 * (mean_a / mean_b - 1) if n_bluntness else None,
        "share_sharper": _mean((np.sign(bluntness[1] - bluntness[0]) + 1) / 2),
        "spill_a": spill_a,
        "spill_b": spill_b,
        "apart_a": apart_a,
        "apart_b": apart_b,
        "n_bluntness": n_bluntness,
        "n_spill": spill.shape[1],
        "n_matches": len(a.latents),
        "spill_per_firing_a": ratio(spill_a, apart_a),
        "spill_per_firing_b": ratio(spill_b, apart_b),
    }


def _spill(effects: SideEffects, firings: Firings, partners: np.ndarray) -> np.ndarray:
    """spill and apart of each latent against its partner: float64 [2, m], NaN where the latent moved nothing."""
    active = firings.csr[:, partners].tocsc()
    numbers = np.full((2, len(partners)), np.nan)
    for row in range(len(partners)):
        entries = slice(effects.moved.indptr[row], effects.moved.indptr[row + 1])
        moved, tokens = effects.moved.data[entries], effects.moved.indices[entries]
        absent = ~np.isin(tokens, active.indices[active.indptr[row] : active.indptr[row + 1]])
        if moved.sum() > 0:
            numbers[:, row] = moved[absent].sum() / moved.sum(), absent.mean()
    return numbers


def _with_both(*columns: np.ndarray) -> np.ndarray:
    """[columns, matches that have every number]."""
    stacked = np.stack(columns)
    return stacked[:, np.isfinite(stacked).all(axis=0)]


def _mean(values: np.ndarray) -> float | None:
    """values: finite."""
    return float(values.mean()) if len(values) else None


def _geometric_mean(values: np.ndarray) -> float | None:
    return math.exp(np.log(values).mean()) if len(values) else None
