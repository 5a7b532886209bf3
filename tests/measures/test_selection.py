import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae, random_split

from metasae.errors import UserError
from metasae.measures.firing import selection
from metasae.measures.firing.selection import BatchSelection, count_firings, largest
from metasae.sae.kernels import reference
from metasae.sae.sae import SAE, SAEConfig


def identity_sae(n, k=1):
    """An SAE whose pre-activations are its inputs."""
    sae = SAE(SAEConfig(d_in=n, d_sae=n, k=k))
    sae.W_enc.copy_(torch.eye(n))
    return sae


def plain(sae, split, k, batch):
    """BatchTopK by one stable sort of every dense block."""
    counts, lowest = np.zeros(sae.n_latents, np.int64), np.full(sae.n_latents, np.inf, np.float32)
    for block in split.blocks(batch):
        kept, _ = reference.select(sae.pre_activations(sae.normalise(block)[0]), round(k * len(block)))
        for latent, value in zip(kept.latents.tolist(), kept.values.numpy(), strict=True):
            counts[latent] += 1
            lowest[latent] = min(lowest[latent], value)
    return counts, lowest


def selected(sae, split, k, batch):
    chosen = BatchSelection(sae, k)
    for block in split.blocks(batch):
        chosen.add(block)
    return chosen


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("k, batch", [(1, 7), (4, 33), (2.5, 1), (4, 1000)])
def test_selection_is_batch_topk(normalize, k, batch):
    sae, split = random_sae(normalize=normalize), random_split(200)
    chosen = selected(sae, split, k, batch)
    counts, lowest = plain(sae, split, k, batch)
    assert chosen.counts.tolist() == counts.tolist() and chosen.counts.dtype == np.int64
    np.testing.assert_allclose(chosen.lowest, lowest, rtol=1e-5)
    assert chosen.counts.sum() == sum(round(k * len(block)) for block in split.blocks(batch))


@pytest.mark.parametrize("batch", [50, 300])
def test_a_sparse_selection_among_many_latents(batch):
    sae, split = random_sae(32, 600, k=3), random_split(900, d=32)
    counts, lowest = plain(sae, split, 3, batch)
    chosen = selected(sae, split, 3, batch)
    assert chosen.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(chosen.lowest, lowest, rtol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.9, 3.0])
def test_the_cut_decides_nothing(margin, monkeypatch):
    # each block is a tenth of the one before, so that a cut from the last block is far too high
    sae, split = random_sae(k=4), random_split(120)
    sae.b_enc.zero_(), sae.b_dec.zero_()
    split.x *= 10.0 ** -(torch.arange(120) // 20)[:, None]
    monkeypatch.setattr(selection, "CUT_MARGIN", margin)
    assert selected(sae, split, 4, 20).counts.tolist() == plain(sae, split, 4, 20)[0].tolist()


def test_ties_go_to_the_lower_index_and_only_positive_entries_count():
    x = [[1.0, 2.0, 1.0], [1.0, -1.0, 0.0]]
    assert selected(identity_sae(3), FakeSplit(x), 1, 2).counts.tolist() == [1, 1, 0]
    assert selected(identity_sae(3), FakeSplit(x), 3, 2).counts.tolist() == [2, 1, 1]
    chosen = selected(identity_sae(3), FakeSplit([[-1.0, 0.0, -2.0]]), 2, 2)
    assert chosen.counts.tolist() == [0, 0, 0] and np.isinf(chosen.lowest).all() and chosen.cut == 0


def test_all_entries_from_the_limit_on_come_back():
    sae, split = random_sae(32, 600, k=3), random_split(200, d=32)
    chosen = BatchSelection(sae, 3)
    for block in split.blocks(50):
        values = chosen.add(block, limit=1.0)[1]
        pre = sae.pre_activations(block).numpy()
        np.testing.assert_allclose(np.sort(values[values > 1.0]), np.sort(pre[pre > 1.0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 1, 3, 5, 8, 20])
def test_largest_is_a_stable_sort(keep):
    rng = np.random.default_rng(keep)
    for _ in range(50):
        values = rng.integers(-2, 4, 8).astype(np.float32)
        order = np.argsort(-values, kind="stable")[:keep]
        assert sorted(np.flatnonzero(largest(values, keep))) == sorted(place for place in order if values[place] > 0)
    assert largest(np.zeros(0, np.float32), keep).tolist() == []


def test_counted_firings_are_those_of_the_dense_activations():
    sae, split = random_sae(normalize="token", threshold=0.4), random_split(61)
    dense = sae.encode(split.x) > 0
    assert count_firings(sae, sae.threshold, split, 7).tolist() == dense.sum(0).tolist()
    assert count_firings(sae, 1e9, split, 7).tolist() == [0] * 24
    assert count_firings(sae, 0.4, random_split(0)).tolist() == [0] * 24


def test_numbers_that_are_not_finite_are_refused():
    split = random_split(4)
    split.x[2, 1] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        BatchSelection(random_sae(), 2).add(split.x)
