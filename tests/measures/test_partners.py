import numpy as np
import pytest
from firing_tables import firings_of, phi_of, random_on

from metasae.measures.cofiring import partners
from metasae.measures.cofiring.cooccurrence import phi_tile
from metasae.measures.cofiring.partners import top_partners


def brute_force(on, other, count):
    """[(latents, phi, n11)] of every latent: all others sorted by phi, ties to the lower latent."""
    closest = []
    for i in range(on.shape[1]):
        columns = on if other is None else other
        phis = {j: phi_of(on[:, i], columns[:, j]) for j in range(columns.shape[1]) if other is not None or j != i}
        best = sorted((-phi, j) for j, phi in phis.items() if phi is not None)[:count]
        latents = [j for _, j in best]
        closest.append((latents, [-phi for phi, _ in best]))
    return closest


def check(closest, expected, count):
    assert closest.latents.dtype == np.int32 and closest.phi.dtype == np.float32
    assert closest.latents.shape == closest.phi.shape == (len(expected), count)
    for row, (latents, phi) in enumerate(expected):
        missing = count - len(latents)
        assert closest.latents[row].tolist() == latents + [-1] * missing, row
        np.testing.assert_allclose(closest.phi[row], phi + [np.nan] * missing, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 4, None])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_within_one_sae(tile, count):
    on = random_on(60, 12, count)
    check(top_partners(firings_of(on), count, tile=tile), brute_force(on, None, count), count)


@pytest.mark.parametrize("tile", [1, 4, None])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_in_another_sae(tile, count):
    on, other = random_on(60, 9, count), random_on(60, 14, count + 1)
    check(top_partners(firings_of(on), count, firings_of(other), tile=tile), brute_force(on, other, count), count)


@pytest.mark.parametrize("pairs", [None, 10])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_both_ways_at_once_is_each_way_to_the_bit(pairs, count, monkeypatch):
    """Counted once, or where memory does not hold all pairs in two calls; with ties, dead and always-on latents."""
    if pairs is not None:
        monkeypatch.setattr(partners, "TILE_PAIRS", pairs)
    edge = random_on(40, 9, count)
    edge[:, 0], edge[:, 1] = False, True
    for on, other in ((ties(), np.roll(ties(), 3, axis=1)[:, :11]), (edge, random_on(40, 14, count + 1))):
        sides = firings_of(on), firings_of(other)
        both = partners.mutual_partners(*sides, count)
        for mine, theirs in zip(
            both, (top_partners(sides[0], count, sides[1]), top_partners(sides[1], count, sides[0])), strict=True
        ):
            assert all(
                np.array_equal(one, two, equal_nan=True)
                for one, two in zip(vars(mine).values(), vars(theirs).values(), strict=True)
            )


def ties():
    """Four copies of one latent, four of its complement, and rare latents that never meet: ties for every place."""
    rng = np.random.default_rng(0)
    a = rng.random(40) < 0.5
    rare = np.zeros((40, 6), bool)
    rare[np.arange(6), np.arange(6)] = True
    return np.concatenate([np.stack([a, ~a], 1).repeat(4, axis=1), rare], axis=1)


@pytest.mark.parametrize("tile", [1, 3, None])
@pytest.mark.parametrize("count", [2, 5])
def test_ties_go_to_the_lower_latent_whatever_the_tiles(tile, count):
    on = ties()
    for other in (None, np.roll(on, 3, axis=1)):
        # the brute force divides once, the streamed phi by a product of roots: rounded alike, so that ties are ties in
        # both
        closest = top_partners(firings_of(on), count, None if other is None else firings_of(other), tile=tile)
        columns = on if other is None else other
        for i in range(on.shape[1]):
            phis = [
                (-round(phi_of(on[:, i], columns[:, j]), 9), j)
                for j in range(columns.shape[1])
                if other is not None or j != i
            ]
            assert closest.latents[i].tolist() == [j for _, j in sorted(phis)[:count]], i


def test_dead_and_always_on_latents_have_no_partners_and_are_none():
    on = random_on(50, 8, 0)
    closest = top_partners(firings_of(on), 10)
    assert np.all(closest.latents[[1, 3]] == -1) and not np.isin([1, 3], closest.latents).any()
    assert np.all(np.count_nonzero(closest.latents >= 0, axis=1)[[0, 2, 4, 5, 6, 7]] == 5)


def test_only_some_tokens_and_only_rare_latents():
    on, other = random_on(80, 10, 2), random_on(80, 7, 3)
    spans = [(0, 20), (33, 71)]
    here = np.concatenate([np.arange(first, last) for first, last in spans])
    closest = top_partners(firings_of(on), 4, firings_of(other), spans=spans, max_rate=0.4)
    rare, other_rare = (table[here].mean(0) <= 0.4 for table in (on, other))
    assert rare.any() and other_rare.any() and not rare.all()
    check(closest, brute_force(on[here] & rare, other[here] & other_rare, 4), 4)


@pytest.mark.parametrize("on", [np.zeros((0, 3)), np.zeros((4, 3)), np.ones((4, 2)), np.eye(3)[:, :1]])
def test_nobody_to_meet(on):
    for other in (None, firings_of(np.zeros_like(on))):
        closest = top_partners(firings_of(on), 2, other)
        assert np.all(closest.latents == -1) and np.isnan(closest.phi).all()


@pytest.mark.parametrize("across", [False, True])
def test_whatever_the_tiles_chunks_and_parts_every_bit_is_that_of_all_pairs_filled_in(across):
    """Many latents on few tokens, so that long lists are cut by parts; latents that meet few others are counted against
    all."""
    on, other = crowd(0), crowd(1)
    spans = [(0, 90), (100, 101), (130, 400)]
    firings, columns = firings_of(on), firings_of(other) if across else None
    for where in (None, spans):
        expected = filled_in(firings, columns, 3, where)
        for options in ({}, {"tile": 7}, {"chunk": 40}, {"chunk": 1, "tile": 31}):
            closest = vars(top_partners(firings, 3, columns, spans=where, **options))
            for name, values in closest.items():
                np.testing.assert_array_equal(values, expected[name])


def crowd(seed):
    """Rare latents in groups that fire together, some alike, some that meet nobody, and few on most tokens."""
    rng = np.random.default_rng([seed, 5])
    topic = rng.integers(8, size=400)
    on = rng.random((400, 120)) < np.where(topic[:, None] == np.arange(120) % 8, 0.3, 0.01)
    on[:, 100:110] = False
    on[np.arange(100, 110) * 3, np.arange(100, 110)] = True
    on[:, 110:115] = rng.random((400, 5)) < 0.9
    on[:, 40:60] = on[:, :20]
    return on


def filled_in(firings, other, count, spans):
    """The phi of all pairs at once, by `phi_tile`, sorted."""
    spans = [(0, firings.n_tokens)] if spans is None else spans
    total, tokens = sum(last - first for first, last in spans), np.concatenate([np.arange(*span) for span in spans])
    one, two = (np.zeros((firings.n_tokens, firings.n_latents), np.int64) for _ in range(2))
    for table, side in ((one, firings), (two, firings if other is None else other)):
        table[np.repeat(np.arange(side.n_tokens), np.diff(side.indptr)), side.indices] = 1
    one, two = one[tokens], two[tokens]
    n11, latents = one.T @ two, np.full((firings.n_latents, count), -1, np.int32)
    phi = np.full(latents.shape, np.nan, np.float32)
    rows, columns = (np.flatnonzero((table.sum(0) > 0) & (table.sum(0) < total)) for table in (one, two))
    for i in rows:
        among = columns if other is not None else columns[columns != i]
        values = phi_tile(n11[[i]][:, among], one.sum(0)[[i]], two.sum(0)[among], total)[0]
        best = np.lexsort((among, -values))[:count]
        latents[i, : len(best)], phi[i, : len(best)] = among[best], values[best]
    return {"latents": latents, "phi": phi}
