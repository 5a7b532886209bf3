"""One trained SAE as auto-interp sees it: its windows, which latents are looked at, and whom they are matched with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metasae.errors import UserError
from metasae.interp.coverage import Coverage, LatentWindows, activating_windows, with_silent
from metasae.interp.result import main_tokens
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import open_firings
from metasae.measures.rows.seeds import match
from metasae.progress.progress import Progress
from metasae.sae.sae import SAE

NEIGHBOURS = 5
# Tokens of a latent looked at in one go.
CHUNK = 1 << 16


@dataclass(frozen=True)
class Subject:
    """arm, seed, folder: an arm folder of a run. activating: windows of every covered latent, without silent ones."""

    arm: str
    seed: int
    folder: Path
    firings: Firings
    view: ByLatent
    activating: dict[int, LatentWindows]
    coverage: Coverage

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    def sample(self, count: int, seed: int) -> list[int]:
        """Up to `count` covered latents, each alike likely, in random order."""
        return np.random.default_rng([seed, self.seed]).permutation(sorted(self.activating))[:count].tolist()

    def windows(
        self, latents: list[int], text: Text, spec: WindowSpec, seed: int, progress: Progress
    ) -> list[LatentWindows]:
        """The windows of these latents, silent ones included."""
        found = []
        with progress.task("silent windows", len(latents), "latents") as task:
            for latent, near in zip(latents, self.neighbours(latents), strict=True):
                found.append(with_silent(text, self.view, self.activating[latent], near, spec, seed))
                task.advance(1)
        return found

    def neighbours(self, latents: list[int]) -> np.ndarray:
        """int64 [m, 5]: the latents with the largest phi with each, -1 for none."""
        counts, found = self.view.counts(), np.full((len(latents), NEIGHBOURS), -1)
        for row, latent in enumerate(latents):
            best = nearest(self.firings, self.view.latent(latent)[0], counts, latent)
            found[row, : len(best)] = best
        return found

    def clusters(self, latents: list[int]) -> np.ndarray:
        return main_tokens(self.view, np.asarray(self.firings.tokens), latents)


def nearest(firings: Firings, tokens: np.ndarray, counts: np.ndarray, latent: int) -> np.ndarray:
    """int64 [up to 5]: the latents with the largest phi with one that fires on these tokens, largest first, ties to the lower latent.

    Counts alone: as `top_partners`, which looks at all latents at once, and so quick for some of many. counts: int64 [n], tokens each
    latent fires on. What fires nowhere or on every token has no phi.
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


def open_subject(
    arm: str, seed: int, folder: Path, text: Text, spec: WindowSpec, draw_seed: int, progress: Progress
) -> Subject:
    """Raises UserError for an arm without firings, or with those of other text."""
    firings, view = view_of(folder, text, progress)
    return Subject(arm, seed, folder, firings, view, *activating_windows(text, view, spec, draw_seed, progress))


def view_of(folder: Path, text: Text, progress: Progress) -> tuple[Firings, ByLatent]:
    """An arm's firings, and the same in the order of latents, which is sorted once and kept beside them. Raises as `open_subject`."""
    if not (folder / "firings").is_dir():
        raise UserError(f"{folder} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    firings = open_firings(folder / "firings")
    if not np.array_equal(firings.tokens, text.tokens):
        raise UserError(
            f"the firings of {folder} belong to other text than the first arm's; measure the arms again alike"
        )
    try:
        view = open_by_latent(folder / "firings")
    except UserError:
        view = write_by_latent(folder / "firings", progress=progress)
    # memory-maps as plain arrays: many small slices are cut from them
    return firings, ByLatent(*(np.asarray(array) for array in (view.indptr, view.tokens, view.values)), view.n_tokens)


def matched_latents(one: tuple[Path, ByLatent], other: tuple[Path, ByLatent]) -> dict[int, int]:
    """Live latent of `one` -> the live latent of `other` it is matched with, by decoder cosine, one to one. Each: arm folder and firings."""
    (rows, live), (other_rows, other_live) = (_live_rows(*each) for each in (one, other))
    partner = match(rows, other_rows).partner
    return {int(live[i]): int(other_live[partner[i]]) for i in range(len(live)) if partner[i] >= 0}


def _live_rows(folder: Path, view: ByLatent) -> tuple[torch.Tensor, np.ndarray]:
    live = np.flatnonzero(view.counts())
    return SAE.load(folder / "primary").W_dec.detach()[torch.from_numpy(live)], live
