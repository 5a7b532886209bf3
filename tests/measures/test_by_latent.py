import json

import numpy as np
import pytest
from fakes import random_sae, random_split

from metasae.errors import UserError
from metasae.measures.firing.by_latent import by_latent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings, fire
from metasae.measures.firing.store import open_firings, write_firings


def firings_of(dense):
    """Firings of a dense matrix [T, n]."""
    dense = np.asarray(dense, np.float32)
    rows, columns = np.nonzero(dense)
    place = np.arange(len(dense), dtype=np.int32)
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(1))]).astype(np.int64)
    return Firings(indptr, columns.astype(np.int32), dense[rows, columns], dense.shape[1], place, place, place)


def check(view, dense):
    """Against a loop over latents."""
    assert view.indptr.dtype == np.int64 and view.tokens.dtype == np.int32 and view.values.dtype == np.float32
    assert (view.n_latents, view.n_tokens) == (dense.shape[1], dense.shape[0])
    assert view.counts().tolist() == (dense > 0).sum(0).tolist()
    for i in range(dense.shape[1]):
        tokens, values = view.latent(i)
        assert tokens.tolist() == np.flatnonzero(dense[:, i]).tolist()
        assert values.tolist() == dense[dense[:, i] > 0, i].tolist()


@pytest.mark.parametrize("chunk", [1, 5, 64, 10**6])
@pytest.mark.parametrize(
    "shape, density", [((40, 9), 0.3), ((200, 3), 1.0), ((1, 50), 0.5), ((60, 1), 0.5), ((30, 20), 0.0), ((0, 4), 0.5)]
)
def test_every_latent_has_its_own_firings(shape, density, chunk):
    rng = np.random.default_rng(0)
    dense = (rng.random(shape) * (rng.random(shape) < density)).astype(np.float32)
    check(by_latent(firings_of(dense), chunk), dense)


def test_by_hand():
    view = by_latent(firings_of([[0, 2, 0], [3, 1, 0], [0, 4, 0]]), chunk=2)
    assert (view.indptr.tolist(), view.tokens.tolist(), view.values.tolist()) == (
        [0, 1, 4, 4],
        [1, 0, 1, 2],
        [3, 2, 1, 4],
    )
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="from 0 to 2"):
            view.latent(wrong)


@pytest.mark.parametrize("chunk", [16, 10**6])
@pytest.mark.parametrize("n_tokens, threshold", [(61, 0.4), (61, 1e9), (0, 0.0)])
def test_on_disk_it_is_the_same(n_tokens, threshold, chunk, tmp_path):
    sae, split = random_sae(threshold=threshold), random_split(n_tokens)
    write_firings(sae, split, tmp_path / "f")
    expected, written = by_latent(fire(sae, split)), write_by_latent(tmp_path / "f", chunk)
    for view in (written, open_by_latent(tmp_path / "f")):
        for name in ("indptr", "tokens", "values"):
            np.testing.assert_array_equal(getattr(view, name), getattr(expected, name))
            assert (
                getattr(view, name).dtype == getattr(expected, name).dtype and not getattr(view, name).flags.writeable
            )
        assert view.n_tokens == n_tokens
    open_firings(tmp_path / "f")


def test_it_goes_with_the_firings_it_was_made_from(tmp_path):
    sae, split = random_sae(threshold=0.4), random_split(61)
    write_firings(sae, split, tmp_path / "f")
    with pytest.raises(UserError, match="write it first"):
        open_by_latent(tmp_path / "f")
    write_by_latent(tmp_path / "f")
    sae.threshold += 1
    write_firings(sae, split, tmp_path / "g")
    (tmp_path / "f" / "by_latent").rename(tmp_path / "g" / "by_latent")
    with pytest.raises(UserError, match="made from other firings; delete the folder"):
        open_by_latent(tmp_path / "g")
    write_by_latent(tmp_path / "g")
    write_firings(sae, random_split(30), tmp_path / "g")
    assert not (tmp_path / "g" / "by_latent").exists()


def test_damage(tmp_path):
    write_firings(random_sae(threshold=0.4), random_split(61), tmp_path / "f")
    write_by_latent(tmp_path / "f")
    index = json.loads((tmp_path / "f" / "by_latent" / "index.json").read_text())
    (tmp_path / "f" / "by_latent" / "tokens.bin").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"tokens.bin has 4 bytes"):
        open_by_latent(tmp_path / "f")
    index["arrays"]["tokens"].update(shape=[1], bytes=4)
    (tmp_path / "f" / "by_latent" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="do not fit each other"):
        open_by_latent(tmp_path / "f")
    with pytest.raises(UserError, match="no firing store"):
        write_by_latent(tmp_path / "nothing")
