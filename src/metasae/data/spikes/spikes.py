"""Spike-ins on activations: x' = x + sum_j s_j(t) g_j.

s_j is a pure function of the seed and of the token's id, document and position. So spike-ins need no storage, and every
process adds the same to a token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metasae.data.spikes.draw import TOPICS, Spike

# A strength differs from the spike-in's amplitude by at most this share of it.
SPREAD = 0.25
# splitmix64 (Steele, Lea and Flood 2014): one round mixes 64 bits well
_STEP, _MULTIPLY = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class SpikeSet:
    """m spike-ins with their directions: unit rows, float32 [m, d]."""

    def __init__(self, spikes: Sequence[Spike], directions: np.ndarray, seed: int):
        self.spikes, self.directions, self.seed = list(spikes), directions, seed
        self._groups = np.array([spike.group for spike in self.spikes], np.int64)
        self._keep = np.array([spike.keep for spike in self.spikes])
        self._amplitudes = np.array([spike.amplitude for spike in self.spikes])
        self._in_topic = np.zeros((len(self.spikes), TOPICS), bool)
        of_type: dict[int, list[int]] = {}
        for place, spike in enumerate(self.spikes):
            self._in_topic[place, list(spike.topics)] = True
            for token in spike.types:
                of_type.setdefault(token, []).append(place)
        # [V, s]: the spike-ins of each token id, -1 where there are fewer
        self._of_type = np.full(
            (max(of_type, default=-1) + 2, max(map(len, of_type.values()), default=1)), -1, np.int64
        )
        for token, places in of_type.items():
            self._of_type[token, : len(places)] = places

    def __len__(self) -> int:
        return len(self.spikes)

    def strengths(self, tokens: np.ndarray, documents: np.ndarray, positions: np.ndarray):
        """s: csr float32 [T, m]. tokens, documents, positions: int [T]."""
        from scipy.sparse import csr_array

        tokens, documents, positions = (np.asarray(column, np.int64) for column in (tokens, documents, positions))
        # the last row is that of tokens without spike-ins
        candidates = self._of_type[np.where(tokens < len(self._of_type), tokens, -1)]
        rows, slots = np.nonzero(candidates >= 0)
        places = candidates[rows, slots]
        document, position = documents[rows], positions[rows]
        topic = _hashed(self.seed, 0, document, 0) % np.uint64(TOPICS)
        on = self._in_topic[places, topic.astype(np.int64)]
        on &= _uniform(self.seed, 1 + self._groups[places], document, position) < self._keep[places]
        rows, places, document, position = rows[on], places[on], document[on], position[on]
        spread = 2 * _uniform(self.seed, -1 - places, document, position) - 1
        values = (self._amplitudes[places] * (1 + SPREAD * spread)).astype(np.float32)
        return csr_array((values, (rows, places)), shape=(len(tokens), len(self)))

    def add(self, x_TD: Tensor, tokens: np.ndarray, documents: np.ndarray, positions: np.ndarray) -> Tensor:
        """x [T, d] with the spike-ins of its tokens, in x's dtype; x itself where there are none."""
        strengths = self.strengths(tokens, documents, positions)
        if not strengths.nnz:
            return x_TD
        return x_TD + torch.from_numpy(strengths @ self.directions).to(x_TD)


def _hashed(seed: int, what: np.ndarray | int, document: np.ndarray, position: np.ndarray | int) -> np.ndarray:
    """64 mixed bits of four whole numbers: uint64, as `document`."""
    state = np.zeros(len(document), np.uint64)
    for number in (seed, what, document, position):
        state = (state ^ np.asarray(number, np.int64).astype(np.uint64)) + _STEP
        for multiplier, shift in zip(_MULTIPLY, (30, 27), strict=True):
            state = (state ^ (state >> np.uint64(shift))) * multiplier
        state ^= state >> np.uint64(31)
    return state


def _uniform(seed: int, what: np.ndarray, document: np.ndarray, position: np.ndarray) -> np.ndarray:
    """float64 in [0, 1)."""
    return (_hashed(seed, what, document, position) >> np.uint64(11)) * 2.0**-53
