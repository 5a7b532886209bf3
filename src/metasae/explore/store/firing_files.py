"""The firings of a run's arms by latent, read without torch, so that a page is served in milliseconds after a start in one second."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from metasae.measures.firing.arrays import Kind, open_arrays, read_index

# as in metasae.measures.firing.by_latent, which loads torch; a test holds them equal
VIEW = Kind("firing store by latent", 1, {"indptr": "<i8", "tokens": "<i4", "values": "<f4"})


class FiringFiles:
    """latent -> (tokens int32 [c] rising, values float32 [c]) of one SAE, mapped from disk. counts: int64 [n]."""

    def __init__(self, arm_folder: Path):
        """Raises UserError when the folder has no firings by latent, or damaged ones."""
        folder = arm_folder / "firings" / "by_latent"
        arrays = open_arrays(folder, VIEW, read_index(folder, VIEW))
        self.indptr = np.asarray(arrays["indptr"])
        # memory-maps as plain arrays: many small slices are cut from them
        self.tokens, self.values = np.asarray(arrays["tokens"]), np.asarray(arrays["values"])

    @property
    def n_latents(self) -> int:
        return len(self.indptr) - 1

    def counts(self) -> np.ndarray:
        return np.diff(self.indptr)

    def latent(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        entries = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.tokens[entries], self.values[entries]


@lru_cache(maxsize=64)
def open_firing_files(arm_folder: Path) -> FiringFiles:
    return FiringFiles(arm_folder)
