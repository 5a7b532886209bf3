"""Which latents fire on which tokens, and how strongly: the raw material of every measure.

`fire` holds the firings in memory; `metasae.measures.firing.store` streams the same to disk, for texts that do not fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from metasae.measures.firing.screen import Screen
from metasae.progress.progress import SILENT, Progress

# Entries looked at in one go, so that nothing is held in memory twice where the arrays are memory-maps.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Firings:
    """The non-zero latent activations of T tokens, in compressed rows: token t has entries indptr[t] to indptr[t + 1].

    indptr: int64 [T + 1]. indices: int32 [nnz], latents, rising within a token. values: float32 [nnz], above 0.
    documents, tokens, positions: int32 [T], where each token stands and its id in the vocabulary. The arrays may be
    read-only memory-maps.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    n_latents: int
    documents: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray

    @property
    def n_tokens(self) -> int:
        return len(self.indptr) - 1

    @property
    def l0(self) -> float:
        """Mean number of active latents per token."""
        return len(self.indices) / self.n_tokens if self.n_tokens else 0.0

    def counts(self) -> np.ndarray:
        """How many tokens each latent fires on: int64 [n]."""
        total = np.zeros(self.n_latents, np.int64)
        for start in range(0, len(self.indices), _CHUNK):
            total += np.bincount(self.indices[start : start + _CHUNK], minlength=self.n_latents)
        return total

    def rates(self) -> np.ndarray:
        """Share of the tokens each latent fires on: float64 [n]."""
        return self.counts() / max(self.n_tokens, 1)

    @property
    def csr(self):
        """The activations as scipy.sparse.csr_array [T, n]; shares memory with this object."""
        from scipy.sparse import csr_array

        return csr_array((self.values, self.indices, self.indptr), shape=(self.n_tokens, self.n_latents))


def fire(sae, split, batch: int = 2048, progress: Progress = SILENT) -> Firings:
    """Runs the SAE at its calibrated threshold over all tokens of `split`, in order.

    The rule holds for fp32 pre-activations; see `screen.py`. Memory: 8 bytes per firing, and one dense [batch, n] block.
    Raises ValueError when the SAE has no threshold.
    """
    per_token, indices, values = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for counts, latents, activations in fired_blocks(sae, split, batch, progress):
        per_token.append(counts)
        indices.append(latents)
        values.append(activations)
    return Firings(
        indptr=np.cumsum(np.concatenate(per_token), dtype=np.int64),
        indices=np.concatenate(indices),
        values=np.concatenate(values),
        n_latents=sae.n_latents,
        documents=np.asarray(split.documents),
        tokens=np.asarray(split.tokens),
        positions=np.asarray(split.positions),
    )


@torch.no_grad()
def fired_blocks(
    sae, split, batch: int = 2048, progress: Progress = SILENT
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Block by block of the split: firings per token int64 [b], their latents int32 [m], their activations float32 [m].

    Entries are in the order of tokens and, within a token, of latents. Raises ValueError when the SAE has no threshold.
    """
    if sae.threshold is None:
        raise ValueError("this SAE has no threshold yet: calibrate it first (metasae.measures.firing.calibrate)")
    screen = Screen(sae, sae.threshold)
    with progress.task("finding what fires where", split.n_tokens) as task:
        for block in split.blocks(batch):
            kept = screen.above(sae.normalise(block.to(sae.W_dec.device, torch.float32))[0])
            yield (
                np.diff(kept.offsets.cpu().numpy()).astype(np.int64),
                kept.latents.cpu().numpy(),
                kept.values.cpu().numpy(),
            )
            task.advance(len(block))
