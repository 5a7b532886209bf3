"""Steering with matched latents of two SAEs: which of them is the blunter tool, over a sample of latents (see `side_effects`)."""

from dataclasses import dataclass

import numpy as np

from metasae.measures.effect.side_effects import PairedSideEffects, compare_side_effects, side_effects
from metasae.measures.firing.firings import Firings
from metasae.measures.rows.seeds import match
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE


@dataclass(frozen=True)
class Steering:
    """What side effects are measured with. host: the model. latents: matched pairs drawn. context: tokens of a window of the text.

    pairs: windows per latent, each with a silent one; the model runs 12 windows for each. seed: of the draw.
    """

    host: object
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
    """int64 [m, 2], m <= count: latents of a with their partners in b, drawn from the live latents matched one to one by decoder cosine."""
    import torch

    live_a, live_b = (np.flatnonzero(side.firings.counts() > 0) for side in (a, b))
    if not len(live_a) or not len(live_b):
        return np.zeros((0, 2), np.int64)
    rows = [side.sae.W_dec.detach()[torch.from_numpy(live)] for side, live in ((a, live_a), (b, live_b))]
    partner = match(*rows).partner
    found = np.flatnonzero(partner >= 0)
    drawn = np.sort(np.random.default_rng(seed).permutation(found)[:count])
    return np.stack([live_a[drawn], live_b[partner[drawn]]], axis=1).astype(np.int64)


def matched_side_effects(a: Side, b: Side, how: Steering, progress: Progress = SILENT) -> PairedSideEffects:
    """Side effects of `how.latents` matched pairs. Raises what `side_effects` raises."""
    pairs = draw_matched(a, b, how.latents, how.seed)
    found = [
        side_effects(
            how.host, side.sae, side.firings, pairs[:, column], how.context, how.pairs, how.seed, progress=progress
        )
        for column, side in enumerate((a, b))
    ]
    return compare_side_effects(*found, pairs, a.firings, b.firings)
