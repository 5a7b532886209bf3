"""Spike-ins on held-out tokens: which are on where, how many a linear probe finds, and how many an SAE finds.

ceiling     F1 of a linear probe fitted on training tokens, its threshold from one half of the held-out documents,
            judged on the other
energy      mean ||sum_j s_j g_j||^2 over the variance of x
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from metasae.data.spikes.spiked import SpikedSplit
from metasae.measures.firing.firings import Firings, fire
from metasae.measures.truth.probe import column, halves_of, threshold_f1
from metasae.measures.truth.spike_scores import by_kind, mean_of, ones, score_spikes
from metasae.progress.progress import SILENT, Progress
from metasae.sae.sae import SAE

BATCH = 2048
# What has an interval: every score but the ceiling, which is the same for all arms.
_RESAMPLED = ("recovery_f1", "told_apart", "blend_rate", "absorption", "cosine", "phi_error")


@dataclass(frozen=True)
class SpikeTruth:
    """split: held-out tokens with their spike-ins. strengths: csr float32 [T, m]. ceiling: F1 of each, or None."""

    split: SpikedSplit
    strengths: csr_array
    added_energy: float
    ceiling: np.ndarray | None

    @classmethod
    def of(cls, split: SpikedSplit, probes: Tensor | None = None) -> "SpikeTruth":
        """The spike-ins in a split. probes: float32 [d, m], a detector of each spike-in; None leaves out the
        ceiling.
        """
        strengths = split.strengths()
        added = strengths @ split.spikes.directions
        energy = float(np.square(added, dtype=np.float64).sum()) / _spread(split)
        return cls(split, strengths, energy, None if probes is None else _ceiling(split, strengths, probes))

    def scores(self, fires: csr_array, rows: np.ndarray | None = None, blocks: np.ndarray | None = None) -> dict:
        """The scores of an SAE as measures.json has them.

        fires: [T, n], nonzero where a latent fires on the spiked tokens. rows: decoder rows [n, d], of any length.
        blocks: int [T], the block of each token, for `leave_one_out`.
        """
        if rows is not None:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        scores = self._on(slice(None), fires, rows)
        kinds = scores["by_kind"]
        ceilings = {} if self.ceiling is None else by_kind(self.split.spikes.spikes, self.ceiling)
        scores["by_kind"] = {kind: {"recovery_f1": kinds[kind], "ceiling_f1": ceilings.get(kind)} for kind in kinds}
        scores["ceiling_f1"] = None if self.ceiling is None else mean_of(self.ceiling)
        scores["added_energy"] = self.added_energy
        if blocks is not None:
            without = [self._on(blocks != block, fires, rows) for block in np.unique(blocks)]
            scores["leave_one_out"] = {key: [part[key] for part in without] for key in _RESAMPLED}
            for kind, entry in scores["by_kind"].items():
                entry["leave_one_out"] = {"recovery_f1": [part["by_kind"][kind] for part in without]}
        return scores

    def _on(self, chosen: np.ndarray | slice, fires: csr_array, rows: np.ndarray | None) -> dict:
        spikes, documents = self.split.spikes, np.asarray(self.split.documents)
        directions = None if rows is None else spikes.directions
        return score_spikes(spikes.spikes, self.strengths[chosen], fires[chosen], documents[chosen], directions, rows)


def measure_spikes(
    sae: SAE, truth: SpikeTruth, firings: Firings, blocks: np.ndarray | None, progress: Progress = SILENT
) -> dict:
    """The key `spikes` of measures.json. firings, blocks: on the same tokens without spike-ins.

    Beside the scores: l0, realised on the spiked tokens; loudness, the median amplitude of the spike-ins over the
    median strength of the SAE's own live latents, where inputs are not normalised per token; draw, the seed of the
    spike-ins.
    """
    spiked, rows = fire(sae, truth.split, BATCH, progress), sae.W_dec.detach().float().cpu().numpy()
    loudness = _loudness(truth, firings, rows) if sae.config.normalize == "none" else None
    scores = truth.scores(ones(spiked.csr), rows, blocks)
    return scores | {"l0": spiked.l0, "loudness": loudness, "draw": truth.split.spikes.seed}


def _loudness(truth: SpikeTruth, firings: Firings, rows: np.ndarray) -> float | None:
    counts = firings.counts()
    sums = np.bincount(firings.indices, weights=firings.values, minlength=firings.n_latents)
    live = counts > 0
    own = sums[live] / counts[live] * np.linalg.norm(rows[live], axis=1)
    amplitudes = [spike.amplitude for spike in truth.split.spikes.spikes]
    return float(np.median(amplitudes) / np.median(own)) if len(own) else None


def _spread(split: SpikedSplit) -> float:
    """sum over tokens of ||x - mean x||^2, without spike-ins."""
    total, square = 0.0, 0.0
    for block in split.split.blocks(BATCH):
        block = block.double()
        total, square = total + block.sum(0), square + float(block.square().sum())
    return max(square - float(torch.as_tensor(total).square().sum()) / max(split.n_tokens, 1), 1e-300)


def _ceiling(split: SpikedSplit, strengths: csr_array, probes: Tensor) -> np.ndarray:
    """[m]; NaN where a half of the documents has nothing on."""
    outputs = torch.cat([block @ probes for block in split.blocks(BATCH)]).numpy()
    second, on = halves_of(split.documents), strengths.tocsc()
    return np.array([threshold_f1(outputs[:, j], column(on, j) > 0, second) for j in range(len(split.spikes))])
