"""One trained SAE for auto-interp: its windows, the latents that are scored, and the latents that they are matched
with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from metasae.arms.folder import Arm
from metasae.errors import UserError
from metasae.interp.choice import INTRUDER, InterpSpec
from metasae.interp.draws import LatentWindows, activating_windows, with_silent
from metasae.interp.excerpts import Text
from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings
from metasae.measures.rows.seeds import match
from metasae.progress.progress import Progress

NEIGHBOURS = 5
# Tokens of a latent that are read at a time.
CHUNK = 1 << 16


class Base(NamedTuple):
    """The baseline SAE, whose latents an arm's latents are matched with. own: its sample."""

    arm: Arm
    view: ByLatent
    own: list[int]


@dataclass(frozen=True)
class Subject:
    """An arm with its firings and the m latents that are scored: its own sample, then partners of the baseline's that
    are not in it.

    view: the firings in the order of latents. n_own: how many are the sample. windows: of the m latents, silent ones
    included; [] where no score reads them. pairs: (latent of the base, latent of this SAE). base: None where there is
    none to be matched with.
    """

    arm: Arm
    view: ByLatent
    coverage: dict
    latents: list[int]
    n_own: int
    clusters: np.ndarray
    windows: list[LatentWindows]
    pairs: list[tuple[int, int]]
    base: Base | None
    matched: dict


def open_subject(arm: Arm, base: Base | None, text: Text, spec: InterpSpec, progress: Progress) -> Subject:
    """Draws the latents and windows of an arm.

    Raises UserError for an arm without firings, or with those of other text.
    """
    firings, view = open_view(arm, text, progress)
    activating, coverage = activating_windows(text, view, spec.window, spec.seed, progress)
    rng = np.random.default_rng([spec.seed, arm.seed])
    latents = rng.permutation(sorted(activating))[: spec.latents].tolist()
    n_own, pairs, matched = len(latents), [], {}
    if base is not None:
        partner = matched_latents(base, arm, view)
        pairs = [(latent, partner[latent]) for latent in base.own if partner.get(latent) in activating]
        without = sum(latent not in partner for latent in base.own)
        matched = {"wanted": len(base.own), "without_partner": without, "pairs": len(pairs)}
        sampled = set(latents)
        # one to one, so none comes twice
        latents += [other for _, other in pairs if other not in sampled]
    windows = []
    if set(spec.scores) != {INTRUDER}:
        counts = view.counts()
        with progress.task("drawing silent windows", len(latents), "latents") as task:
            for latent in latents:
                neighbours = nearest(firings, view.latent(latent)[0], counts, latent)
                windows.append(with_silent(text, view, activating[latent], neighbours, spec.window, spec.seed))
                task.advance(1)
    clusters = main_tokens(view, text.tokens, latents)
    return Subject(arm, view, coverage, latents, n_own, clusters, windows, pairs, base, matched)


def nearest(firings: Firings, tokens: np.ndarray, counts: np.ndarray, latent: int) -> np.ndarray:
    """int64 [up to 5]: the latents with the largest phi with one that fires on these tokens, largest first, ties to the
    lower latent.

    The result is that of `top_partners`, which looks at all latents at once; from counts alone this is quicker for a
    few of many latents. counts: int64 [n], tokens each latent fires on. What fires nowhere or on every token has no
    phi.
    """
    total = firings.n_tokens
    able = (counts > 0) & (counts < total)
    if not able[latent]:
        return np.zeros(0, np.int64)
    able[latent] = False
    others = np.flatnonzero(able)
    both = np.zeros(len(counts), np.int64)
    for start in range(0, len(tokens), CHUNK):
        both += np.bincount(_entries(firings, tokens[start : start + CHUNK]), minlength=len(counts))
    phi = phi_tile(both[None, others], counts[[latent]], counts[others], total)[0]
    return others[np.argsort(-phi, kind="stable")[:NEIGHBOURS]]


def _entries(firings: Firings, tokens: np.ndarray) -> np.ndarray:
    """int32: the latents that fire on each of these tokens, one after another."""
    starts, sizes = firings.indptr[tokens], firings.indptr[tokens + 1] - firings.indptr[tokens]
    shift = np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
    return np.asarray(firings.indices)[shift + np.arange(len(shift))]


def main_tokens(view: ByLatent, tokens: np.ndarray, latents: Sequence[int]) -> np.ndarray:
    """int64 [m]: the vocabulary id on which each latent fires most often, ties to the lower id; the clusters of the
    bootstrap.
    """
    return np.array([np.bincount(tokens[view.latent(int(latent))[0]]).argmax() for latent in latents], np.int64)


def open_view(arm: Arm, text: Text, progress: Progress) -> tuple[Firings, ByLatent]:
    """An arm's firings, and the same in the order of latents, which is sorted once and kept beside them.

    Raises as `open_subject`.
    """
    firings = arm.firings()
    if not np.array_equal(firings.tokens, text.tokens):
        raise UserError(
            f"the firings of {arm.folder} are on other text than the first arm's; measure both on the same text"
        )
    try:
        view = open_by_latent(arm.folder / "firings")
    except UserError:
        view = write_by_latent(arm.folder / "firings", progress=progress)
    # memory-maps as plain arrays: many small slices are cut from them
    return firings, ByLatent(*(np.asarray(array) for array in (view.indptr, view.tokens, view.values)), view.n_tokens)


def matched_latents(base: Base, arm: Arm, view: ByLatent) -> dict[int, int]:
    """Live latent of the base -> the live latent of the arm it is matched with, by decoder cosine, one to one."""
    rows, live = _live_rows(base.arm, base.view)
    other_rows, other_live = _live_rows(arm, view)
    partner = match(rows, other_rows).partner
    return {int(live[i]): int(other_live[partner[i]]) for i in range(len(live)) if partner[i] >= 0}


def _live_rows(arm: Arm, view: ByLatent) -> tuple[torch.Tensor, np.ndarray]:
    live = np.flatnonzero(view.counts())
    return arm.sae().W_dec.detach()[torch.from_numpy(live)], live
