"""Batches with spike-ins are the same to the bit on one rank and on two, from one draw."""

import hashlib

import numpy as np
import torch

from metasae.data.cache.stream import Stream
from metasae.data.split import Rows
from metasae.measures.truth.spikes import Spikes
from metasae.ranks.ranks import ALONE
from spawned import on_ranks

T, D = 4000, 24


def split():
    rng = np.random.default_rng(0)
    columns = (rng.integers(200, size=T), np.arange(T) // 50, np.arange(T) % 50)
    return Rows(torch.randn(T, D, generator=torch.Generator().manual_seed(0)), columns)


def digests(ranks=ALONE):
    """Of the draw, and of the batches with its spike-ins."""
    spikes = Spikes.of_split(split(), 12, 3, (0.3, 0.6), (0.005, 0.05))
    digest = hashlib.sha256(spikes.set.directions.tobytes())
    with Stream(spikes.spiked(split()), 256, 0, 0.5, ranks=ranks) as stream:
        for _ in range(20):
            digest.update(stream.next().numpy().tobytes())
    return digest.hexdigest()


def digests_on_ranks(ranks):
    return digests(ranks)


def test_two_ranks_meet_the_batches_of_one():
    assert set(on_ranks(2, digests_on_ranks)) == {digests()}
