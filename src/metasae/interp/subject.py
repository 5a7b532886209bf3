"""One trained SAE as auto-interp sees it: its windows, which latents are looked at, and whom they are matched with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metasae.errors import UserError
from metasae.interp.coverage import Coverage, LatentWindows, activating_windows, with_silent
from metasae.interp.result import main_tokens
from metasae.interp.windows import Text, WindowSpec
from metasae.measures.cofiring.partners import top_partners
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import open_firings
from metasae.measures.rows.seeds import match
from metasae.progress import Progress
from metasae.sae.sae import SAE

NEIGHBOURS = 5


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

    def windows(self, latents: list[int], neighbours: np.ndarray, text: Text, spec: WindowSpec, seed: int, progress: Progress) -> list[LatentWindows]:
        """The windows of these latents, silent ones included. neighbours: int [n, p]."""
        found = []
        with progress.task("silent windows", len(latents), "latents") as task:
            for latent in latents:
                found.append(with_silent(text, self.view, self.activating[latent], neighbours[latent], spec, seed))
                task.advance(1)
        return found

    def neighbours(self, progress: Progress) -> np.ndarray:
        """int32 [n, 5]: the latents with the largest phi with each, -1 for none."""
        return top_partners(self.firings, NEIGHBOURS, progress=progress).latents

    def clusters(self, latents: list[int]) -> np.ndarray:
        return main_tokens(self.view, np.asarray(self.firings.tokens), latents)


def open_subject(arm: str, seed: int, folder: Path, text: Text, spec: WindowSpec, draw_seed: int, progress: Progress) -> Subject:
    """Raises UserError for an arm without firings, or with those of other text."""
    if not (folder / "firings").is_dir():
        raise UserError(f"{folder} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    firings = open_firings(folder / "firings")
    if not np.array_equal(firings.tokens, text.tokens):
        raise UserError(f"the firings of {folder} belong to other text than the first arm's; measure the arms again alike")
    view = _by_latent(folder / "firings", progress)
    return Subject(arm, seed, folder, firings, view, *activating_windows(text, view, spec, draw_seed, progress))


def _by_latent(folder: Path, progress: Progress) -> ByLatent:
    """The firings in the order of latents, sorted once and kept beside them."""
    try:
        view = open_by_latent(folder)
    except UserError:
        view = write_by_latent(folder, progress=progress)
    # memory-maps as plain arrays: many small slices are cut from them
    return ByLatent(*(np.asarray(array) for array in (view.indptr, view.tokens, view.values)), view.n_tokens)


def matched_latents(one: Subject, other: Subject) -> dict[int, int]:
    """Live latent of `one` -> the live latent of `other` it is matched with, by decoder cosine, one to one."""
    live, other_live = (np.flatnonzero(subject.view.counts()) for subject in (one, other))
    rows, other_rows = (
        SAE.load(subject.folder / "primary").W_dec.detach()[torch.from_numpy(which)] for subject, which in ((one, live), (other, other_live))
    )
    partner = match(rows, other_rows).partner
    return {int(live[i]): int(other_live[partner[i]]) for i in range(len(live)) if partner[i] >= 0}
