import numpy as np
import pytest
import torch
from fakes import random_sae, random_split

from metasae.measures.firing import firings as module
from metasae.measures.firing.firings import fire, fired_pieces
from metasae.progress.progress import SILENT


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_firings_are_the_dense_activations(normalize, batch):
    sae, split = random_sae(normalize=normalize, threshold=0.4), random_split(61)
    firings = fire(sae, split, batch)
    dense = sae.encode(split.x).numpy()
    np.testing.assert_allclose(firings.csr.toarray(), dense, rtol=1e-4, atol=1e-6)
    assert firings.indptr.dtype == np.int64 and firings.indices.dtype == np.int32 and firings.values.dtype == np.float32
    assert firings.counts().tolist() == (dense > 0).sum(0).tolist() and firings.counts().dtype == np.int64
    assert firings.counts() / len(dense) == pytest.approx((dense > 0).mean(0))
    assert firings.l0 == pytest.approx((dense > 0).sum() / 61)
    assert firings.documents is split.documents and firings.positions is split.positions


def test_indices_rise_within_a_token():
    firings = fire(random_sae(threshold=0.0), random_split(40), 8)
    for start, end in zip(firings.indptr[:-1], firings.indptr[1:], strict=True):
        assert np.all(np.diff(firings.indices[start:end]) > 0)


def test_nothing_fires():
    firings = fire(random_sae(threshold=1e9), random_split(10), 4)
    assert firings.indptr.tolist() == [0] * 11 and len(firings.values) == 0 and firings.l0 == 0
    assert firings.counts().tolist() == [0] * 24


def test_no_tokens():
    firings = fire(random_sae(threshold=0.0), random_split(0), 4)
    assert firings.n_tokens == 0 and firings.l0 == 0 and firings.csr.shape == (0, 24)


def test_uncalibrated_is_an_error():
    with pytest.raises(ValueError, match="no threshold"):
        fire(random_sae(), random_split(3))


def test_the_sae_is_left_alone():
    sae = random_sae(threshold=0.3)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    fire(sae, random_split(9))
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_pieces_are_the_parts_of_the_whole():
    sae, split = random_sae(threshold=0.3), random_split(50)
    whole, pieces = fire(sae, split, 50), list(fired_pieces(sae, split, 16, SILENT))
    assert [len(piece["indptr"]) for piece in pieces if "indptr" in piece] == [1, 16, 16, 16, 2]
    for name in ("indptr", "indices", "documents", "tokens", "positions"):
        parts = [piece[name] for piece in pieces if name in piece]
        assert np.concatenate(parts).tolist() == getattr(whole, name).tolist()
    values = np.concatenate([piece["values"] for piece in pieces if "values" in piece])
    np.testing.assert_allclose(values, whole.values, rtol=1e-5)


def test_counts_in_parts(monkeypatch):
    firings = fire(random_sae(threshold=0.3), random_split(50))
    whole = firings.counts()
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert firings.counts().tolist() == whole.tolist() == np.bincount(firings.indices, minlength=24).tolist()
