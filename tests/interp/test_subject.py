"""The nearest latents of some against the pass over all of them."""

import numpy as np
import pytest
from worlds import random_firings, view_of

from metasae.interp import subject
from metasae.interp.subject import NEIGHBOURS, nearest
from metasae.measures.cofiring.partners import top_partners
from sparse_firings import firings_from


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [2, 9, 40])
@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_the_nearest_are_those_of_all_pairs(monkeypatch, seed, n, chunk):
    """A dead latent, one that is always on, tied ones and twins are among them."""
    monkeypatch.setattr(subject, "CHUNK", chunk)
    firings = random_firings(seed, n=max(n, 3))
    on = firings.csr.toarray()[:, : max(n, 3)] > 0
    on = np.concatenate([on, on[:, :2]], axis=1)
    firings = firings_from(on, np.ones(on.shape), firings.documents, firings.tokens, firings.positions)
    view, expected = view_of(firings), top_partners(firings, NEIGHBOURS).latents
    for latent in range(firings.n_latents):
        closest = nearest(firings, view.latent(latent)[0], view.counts(), latent)
        assert closest.tolist() == [other for other in expected[latent].tolist() if other >= 0]
