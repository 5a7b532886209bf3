"""Which latents have enough windows, and the windows of those that are looked at.

A latent is covered when both sides have as many activating windows as the spec wants. What fires rarely, in few documents or on
repeated text is not covered; how many are is reported by firing rate, as scores speak of covered latents only.
"""

from dataclasses import dataclass

import numpy as np

from metasae.interp.draws import KINDS, Windows, contents_of, draw_activating, draw_silent, peaks_of
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress

DECILES = 10


@dataclass(frozen=True)
class LatentWindows:
    """Of one latent. train, score: activating windows of the two sides. silent: kind -> windows of the scoring side."""

    latent: int
    train: Windows
    score: Windows
    silent: dict[str, Windows]


@dataclass(frozen=True)
class Coverage:
    """live: latents that fire at all. covered: bool [n]. too_few_train, too_few_score: live latents that lack windows on that side.

    deciles: live latents ordered by firing rate and cut into equal parts: per part the lowest and highest rate, live, covered.
    """

    n_latents: int
    live: int
    covered: np.ndarray
    too_few_train: int
    too_few_score: int
    deciles: tuple[dict, ...]

    def as_dict(self) -> dict:
        return {
            "n_latents": self.n_latents,
            "live": self.live,
            "covered": int(self.covered.sum()),
            "share_covered": float(self.covered.sum() / self.live) if self.live else None,
            "too_few_train": self.too_few_train,
            "too_few_score": self.too_few_score,
            "by_firing_rate": list(self.deciles),
        }


def activating_windows(
    text: Text, view: ByLatent, spec: WindowSpec, seed: int, progress: Progress = SILENT
) -> tuple[dict[int, LatentWindows], Coverage]:
    """The activating windows of every covered latent, without silent ones yet, and the coverage."""
    counts = view.counts()
    live = np.flatnonzero(counts)
    found, short = {}, {True: 0, False: 0}
    with progress.task("windows", len(live), "latents") as task:
        for latent in live.tolist():
            windows = latent_windows(text, view, latent, spec, seed)
            enough = len(windows.train) == spec.train, len(windows.score) == spec.score
            short[False] += not enough[0]
            short[True] += not enough[1]
            if all(enough):
                found[latent] = windows
            task.advance(1)
    covered = np.zeros(view.n_latents, bool)
    covered[list(found)] = True
    return found, Coverage(
        view.n_latents, len(live), covered, short[False], short[True], _deciles(counts, live, covered, view.n_tokens)
    )


def with_silent(
    text: Text, view: ByLatent, windows: LatentWindows, neighbours: np.ndarray, spec: WindowSpec, seed: int
) -> LatentWindows:
    """The same with silent windows of every kind; a kind of which there are fewer than spec.silent holds as many as were found.

    neighbours: int [p], the latents with the largest phi with this one, -1 for none.
    """
    latent = windows.latent
    seen = contents_of(text, windows.train) | contents_of(text, windows.score)
    silent = {}
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng([seed, latent, number])
        silent[kind] = draw_silent(
            text, kind, latent, view, windows.score, neighbours[neighbours >= 0], spec, rng, seen
        )
    return LatentWindows(latent, windows.train, windows.score, silent)


def latent_windows(text: Text, view: ByLatent, latent: int, spec: WindowSpec, seed: int) -> LatentWindows:
    rng, seen = np.random.default_rng([seed, latent]), set()
    peaks = peaks_of(text, *view.latent(latent), spec)
    train = draw_activating(text, peaks, False, spec.train, spec, rng, seen)
    return LatentWindows(latent, train, draw_activating(text, peaks, True, spec.score, spec, rng, seen), {})


def _deciles(counts: np.ndarray, live: np.ndarray, covered: np.ndarray, n_tokens: int) -> tuple[dict, ...]:
    ordered = live[np.argsort(counts[live], kind="stable")]
    return tuple(
        {
            "lowest_rate": float(counts[part[0]] / n_tokens),
            "highest_rate": float(counts[part[-1]] / n_tokens),
            "live": len(part),
            "covered": int(covered[part].sum()),
        }
        for part in np.array_split(ordered, DECILES)
        if len(part)
    )
