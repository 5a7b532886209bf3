"""Each rank reads its share of a batch, and all have the batch that one process reads, to the bit."""

import numpy as np
import pytest
import torch

from metasae.data.cache.stream import Stream, indices_of
from metasae.errors import UserError
from metasae.ranks.ranks import Ranks
from spawned import on_ranks

T, D = 50, 6


class Split:
    name, folder, n_tokens, d = "train", "a folder", T, D

    def __init__(self, dtype):
        self.x = torch.randn(T, D, generator=torch.Generator().manual_seed(4)).to(dtype)
        self.read = 0

    def rows(self, indices):
        self.read += len(indices)
        return self.x[indices]

    def refuse_bad(self, indices, block):
        raise UserError(f"token {indices[int(torch.nonzero(~torch.isfinite(block).all(1))[0])]} is bad")


def batches(ranks, dtype, batch, scale, position):
    split = Split(dtype)
    with Stream(split, batch, 3, scale, ranks=ranks) as source:
        source.seek(position)
        rows = [source.next().numpy() for _ in range(6)]
    return rows, split.read


def all_batches(ranks):
    return {case: batches(ranks, *case) for case in CASES}


# 2 rows on 3 ranks leave one rank without any; a batch of 20 spans two epochs of 50
CASES = [(torch.bfloat16, 20, 1.7, 0), (torch.float32, 7, 1.0, 4), (torch.bfloat16, 2, 0.3, 11)]


@pytest.mark.parametrize("size", [2, 3])
def test_batches_are_those_of_one_process(size):
    told = on_ranks(size, all_batches)
    for case in CASES:
        dtype, batch, scale, position = case
        stream = Stream(Split(dtype), batch, 3, scale)
        stream.seek(position)
        wanted = [stream.next().numpy() for _ in range(6)]
        for rank in told:
            assert np.array_equal(rank[case][0], wanted)
        assert sum(rank[case][1] for rank in told) == 6 * batch


def test_a_bad_row_is_named_as_with_one_process():
    split, bad = Split(torch.float32), int(next(indices_of(T, 6, 3, 0))[4])
    split.x[bad] = torch.nan
    with (
        Stream(split, 6, 3, ranks=Ranks(1, 2)) as stream,
        pytest.raises(UserError, match=f"token {bad} is bad"),
    ):
        stream.next()
