import numpy as np
import pytest
from firing_tables import firings_of, random_on

from metasae.measures.cofiring.counts import CoFirings, counts_by_span
from metasae.measures.firing.firings import Firings, block_spans, chunks, document_blocks


def brute_force(left, right):
    """Tokens on which both fire, pair by pair in Python integers: [l, r]."""
    return np.array(
        [[sum(int(a) & int(b) for a, b in zip(x, y, strict=True)) for y in right.T] for x in left.T], np.int64
    ).reshape(left.shape[1], right.shape[1])


def whole_tile(cofirings, latents, rows, span=None):
    """All tiles put together: [l, l], zeros where no tile was asked for."""
    counts = np.zeros((latents, latents), np.int64)
    for start in range(0, latents, rows):
        tile = cofirings.tile(start, rows, span)
        assert tile.dtype == np.int64 and tile.shape == (min(rows, latents - start), latents - start)
        counts[start : start + rows, start:] = tile
    return counts


@pytest.mark.parametrize("chunk", [1, 40, 2**22])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_tiles_against_the_brute_force(chunk, rows):
    on = random_on(70, 11, rows)
    firings = firings_of(on)
    for latents in (np.arange(11), np.array([0, 2, 3, 9]), np.array([8, 1, 5, 10, 0]), np.array([7]), np.arange(0)):
        counts = whole_tile(CoFirings(firings, latents, chunk=chunk), len(latents), rows)
        expected = brute_force(on[:, latents], on[:, latents])
        blocked = np.triu(np.ones_like(expected, bool))
        np.testing.assert_array_equal(counts[blocked], expected[blocked])


@pytest.mark.parametrize("chunk", [1, 40, 2**22])
def test_across_two_saes_against_the_brute_force(chunk):
    on, other = random_on(50, 8, 0), random_on(50, 13, 1)
    latents, others = np.array([0, 3, 4, 7]), np.array([12, 0, 1, 5, 6])
    counts = CoFirings(firings_of(on), latents, firings_of(other), others, chunk=chunk)
    expected = brute_force(on[:, latents], other[:, others])
    for start, rows in ((0, 4), (1, 2), (3, 5)):
        cross = counts.tile(start, rows)
        assert cross.dtype == np.int64
        np.testing.assert_array_equal(cross, expected[start : start + rows])
    np.testing.assert_array_equal(counts.tile(0, 4, (7, 31)), brute_force(on[7:31][:, latents], other[7:31][:, others]))
    own = whole_tile(CoFirings(firings_of(on), latents, chunk=chunk), 4, 2)
    np.testing.assert_array_equal(own[0], brute_force(on[:, latents[:1]], on[:, latents])[0])


def test_spans_add_up():
    on = random_on(90, 10, 4)
    counts = CoFirings(firings_of(on), np.arange(10), chunk=25)
    spans = block_spans(document_blocks(firings_of(on).documents, 4))
    parts = [whole_tile(counts, 10, 4, span) for span in spans]
    np.testing.assert_array_equal(sum(parts), whole_tile(counts, 10, 4))
    first, last = spans[1]
    np.testing.assert_array_equal(
        np.triu(parts[1]), np.triu(whole_tile(CoFirings(firings_of(on[first:last]), np.arange(10)), 10, 4))
    )


@pytest.mark.parametrize("on", [np.zeros((0, 3)), np.zeros((4, 3)), np.ones((1, 3)), np.ones((5, 1))])
def test_next_to_nothing(on):
    firings = firings_of(on)
    latents = np.arange(on.shape[1])
    np.testing.assert_array_equal(CoFirings(firings, latents).tile(0, 9), brute_force(on, on))
    np.testing.assert_array_equal(CoFirings(firings, latents, firings, latents).tile(0, 9), brute_force(on, on))


def test_many_tokens_and_chunks_against_the_dense_product():
    rng = np.random.default_rng(3)
    on = rng.random((5000, 40)) < rng.uniform(0.001, 0.9, 40)
    on[:, 7] = True
    firings, latents = firings_of(on), rng.permutation(40)
    whole, chosen = CoFirings(firings, latents, chunk=30_000).tile(0, 40), on[:, latents].astype(np.int64)
    assert np.array_equal(whole, chosen.T @ chosen) and whole.max() == 5000


def five_million() -> Firings:
    """5M tokens: latents 0 and 2 fire on every one, latent 1 on every second. Arrays are views of a few bytes where
    that is possible."""
    n_tokens = 5_000_000
    per_token = np.where(np.arange(n_tokens) % 2, 2, 3)
    pattern = np.tile(np.array([0, 1, 2, 0, 2], np.int32), n_tokens // 2)
    place = np.broadcast_to(np.int32(0), n_tokens)
    return Firings(
        np.concatenate([[0], np.cumsum(per_token)]),
        pattern,
        np.broadcast_to(np.float32(1), len(pattern)),
        3,
        place,
        place,
        place,
    )


def test_a_pair_that_fires_together_on_every_token_of_five_million():
    firings = five_million()
    expected = [[5_000_000, 2_500_000, 5_000_000], [0, 2_500_000, 2_500_000], [0, 0, 5_000_000]]
    assert np.triu(CoFirings(firings, np.arange(3)).tile(0, 3)).tolist() == expected
    assert counts_by_span(firings, [(0, firings.n_tokens)])[0].tolist() == [5_000_000, 2_500_000, 5_000_000]


def test_read_only_memory_maps_are_read_in_chunks(tmp_path):
    on = random_on(300, 20, 6)
    plain = firings_of(on)
    maps = {}
    for name in ("indptr", "indices"):
        np.save(tmp_path / f"{name}.npy", getattr(plain, name))
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    mapped = Firings(maps["indptr"], maps["indices"], plain.values, 20, plain.documents, plain.tokens, plain.positions)
    np.testing.assert_array_equal(
        CoFirings(mapped, np.arange(20), chunk=64).tile(0, 20), CoFirings(plain, np.arange(20)).tile(0, 20)
    )


def test_counts_by_span():
    on = random_on(60, 9, 2)
    firings = firings_of(on)
    np.testing.assert_array_equal(counts_by_span(firings, [(0, 60)], chunk=7), [on.sum(0)])
    spans = [(0, 10), (10, 10), (25, 60)]
    np.testing.assert_array_equal(
        counts_by_span(firings, spans, chunk=7), [on[first:last].sum(0) for first, last in spans]
    )


def test_chunks_cover_every_token_once_and_hold_no_more_than_asked():
    firings = firings_of(random_on(80, 12, 3))
    for size in (1, 9, 10**6):
        spans = list(chunks(firings.indptr, (3, 77), size))
        assert [token for first, last in spans for token in range(first, last)] == list(range(3, 77))
        assert all(firings.indptr[last] - firings.indptr[first] <= size or last == first + 1 for first, last in spans)


def test_block_spans():
    assert block_spans(np.array([0, 0, 1, 1, 1, 2], np.int8)) == [(0, 2), (2, 5), (5, 6)]
    assert block_spans(np.zeros(0, np.int8)) == [] and block_spans(np.zeros(3, np.int8)) == [(0, 3)]


def test_other_tokens_are_refused():
    firings = firings_of(random_on(20, 8, 0))
    with pytest.raises(ValueError, match="same tokens"):
        CoFirings(firings, np.arange(8), firings_of(random_on(21, 8, 0)), np.arange(8))
