"""Firing stores and phi over ranks beside those of one process: equal to the byte and to the bit."""

from functools import partial
from itertools import pairwise

import numpy as np
import torch

from metasae.measures.cofiring.cooccurrence import pair_statistics
from metasae.measures.firing.firings import document_blocks, fire
from metasae.measures.firing.store import open_firings, write_firings
from metasae.progress.progress import SILENT
from metasae.ranks.ranks import ALONE, RankPool, Ranks, deal, deals, stretch_of
from metasae.sae.sae import SAE, SAEConfig
from spawned import on_ranks

T, D, N, BATCH = 1037, 16, 40, 64


class Rows:
    """Random rows in documents of 20 tokens, in the guise of a split."""

    n_tokens, d = T, D

    def __init__(self):
        self.x = torch.randn(T, D, generator=torch.Generator().manual_seed(1)).bfloat16()
        self.documents, self.positions = (part.astype(np.int32) for part in divmod(np.arange(T), 20))
        self.tokens = (np.arange(T) % 7).astype(np.int32)

    def rows(self, indices):
        return self.x[torch.as_tensor(indices)]

    def blocks(self, size):
        return (block.float() for block in self.x.split(size))


def an_sae():
    sae = SAE(SAEConfig(D, N))
    sae.init_weights(torch.Generator().manual_seed(2))
    sae.threshold = torch.full((N,), 1.2)
    # one latent that never fires and one that always does
    sae.b_enc[3], sae.b_enc[5] = -1e3, 1e3
    return sae


def measured(ranks, folder):
    firings = write_firings(an_sae(), Rows(), folder, BATCH, SILENT, ranks)
    pairs = pair_statistics(firings, document_blocks(firings.documents), tile=3, pool=partial(RankPool, ranks))
    return pairs, vars(fire(an_sae(), Rows(), BATCH, SILENT, ranks))


def assert_equal(one, other, path=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    else:
        assert np.array_equal(one, other), path


def test_the_store_and_every_number_of_phi_are_those_of_one_process(tmp_path):
    alone, in_memory = measured(ALONE, tmp_path / "alone" / "firings")
    assert_equal(in_memory, vars(fire(an_sae(), Rows(), BATCH)))
    firings = open_firings(tmp_path / "alone" / "firings")
    assert_equal(alone, pair_statistics(firings, document_blocks(firings.documents), tile=3))
    assert alone["excluded"] == {"never": 1, "always": 1} and alone["n_pairs"] > 600
    for size in (2, 3):
        place = tmp_path / str(size) / "firings"
        # what a killed job of more ranks left
        (tmp_path / str(size) / ".firings.rank7").mkdir(parents=True)
        for pairs, firings in on_ranks(size, measured, place):
            assert_equal(alone, pairs)
            assert_equal(in_memory, firings)
        for path in (tmp_path / "alone" / "firings").iterdir():
            assert (place / path.name).read_bytes() == path.read_bytes(), path.name
        assert [path.name for path in place.parent.iterdir()] == ["firings"]


def test_stretches_hold_every_token_once_in_whole_batches():
    for n_tokens in (0, 1, 63, 64, 65, 1037):
        for size in (1, 2, 3, 20):
            stretches = [stretch_of(n_tokens, 64, Ranks(rank, size)) for rank in range(size)]
            assert stretches[0][0] == 0 and stretches[-1][1] == n_tokens
            assert all(stop == start for (_, stop), (start, _) in pairwise(stretches))
            assert all(start % 64 == 0 or start == n_tokens for start, _ in stretches)


def test_every_work_is_dealt_to_one_rank():
    names = ["a", "b", "c", "d", "e"]
    dealt = [deals(names, Ranks(rank, 3)) for rank in range(3)]
    assert dealt == [["a", "d"], ["b", "e"], ["c"]] and deals(names, ALONE) == names
    assert deal({"a": lambda: 1, "b": lambda: 2}, ALONE) == {"a": 1, "b": 2}
