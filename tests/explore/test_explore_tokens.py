"""Token tables and histograms of latents, against counting one by one."""

from collections import Counter

import numpy as np
import pytest
from explored import of_latent, random_firings

from metasae.explore.store import blobs
from metasae.explore.store.firing_rows import extremes, ranges
from metasae.measures.firing.by_latent import by_latent


@pytest.mark.parametrize("count", [1, 3, 30])
def test_top_tokens_equal_counting(count):
    firings = random_firings(1)
    view = by_latent(firings)
    latent = np.repeat(np.arange(view.n_latents), view.counts())
    tables = blobs.top_tokens(latent, firings.tokens[view.tokens], view.n_latents, 11, count)
    for i, (entries, fired) in enumerate(tables):
        counted = Counter(firings.tokens[of_latent(firings, i)[0]].tolist())
        assert (
            list(zip(entries.tolist(), fired.tolist(), strict=True))
            == sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:count]
        )


def test_a_token_table_survives_packing():
    assert blobs.unpack_tokens(blobs.pack_tokens(np.array([5, 1]), np.array([9, 4_000_000_000]))) == (
        [5, 1],
        [9, 4_000_000_000],
    )
    assert blobs.unpack_tokens(blobs.pack_tokens(np.zeros(0, int), np.zeros(0, int))) == ([], [])


def test_histograms_equal_numpy_at_the_edges_too():
    rng = np.random.default_rng(2)
    low, high = np.array([0.0, 0.5, 0.1, 2.0, 0.0]), np.array([1.0, 3.0, 0.7, 2.0, 0.0])
    edges = blobs.edges_of(low, high)
    counts = [300, 200, 500, 7, 0]
    # many values right on an edge, and beside one by a rounding
    parts = [
        np.concatenate([rng.choice(edges[i], count), rng.uniform(low[i], high[i], count)])
        for i, count in enumerate(counts)
    ]
    parts[2] = np.clip(np.nextafter(parts[2], rng.choice([-9, 9], len(parts[2]))), low[2], high[2])
    counted = blobs.histograms(np.repeat(np.arange(5), [len(part) for part in parts]), np.concatenate(parts), low, high)
    for i, part in enumerate(parts):
        if high[i] > low[i]:
            assert counted[i].tolist() == np.histogram(part, bins=edges[i])[0].tolist()
        assert counted[i].sum() == len(part)


def test_extremes_of_latents_that_never_fire_are_zero():
    low, high = extremes(np.array([3.0, 1.0, 2.0, 5.0]), np.array([0, 3, 0, 1, 0]))
    assert low.tolist() == [0, 1, 0, 5, 0]
    assert high.tolist() == [0, 3, 0, 5, 0]
    assert extremes(np.zeros(0), np.array([0, 0]))[0].tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_ranges_of_latents_cover_all_of_them_once(size):
    indptr = np.cumsum([0, 0, 5, 0, 2, 2, 50, 0])
    spans = list(ranges(indptr, size))
    assert [i for first, last in spans for i in range(first, last)] == list(range(7))
    assert all(last - first == 1 or indptr[last] - indptr[first] <= size for first, last in spans)


def test_neighbours_survive_packing():
    assert blobs.unpack_edges(blobs.pack_edges(np.array([7, 2]), np.array([0.5, -0.25]))) == ([7, 2], [0.5, -0.25])
    assert blobs.unpack_edges(b"") == ([], [])
