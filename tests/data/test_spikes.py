"""Spike-ins: what is drawn, and where they are on, against a loop over tokens in plain integers."""

import numpy as np
import pytest
import torch

from metasae.data.spikes.draw import KINDS, SENSE_COSINE, TOPICS, draw_directions, draw_spikes, sense_pairs
from metasae.data.spikes.spikes import SPREAD, SpikeSet
from metasae.errors import UserError

MASK = 2**64 - 1


@pytest.fixture(scope="module")
def text():
    """(tokens, documents, positions) of 40,000 tokens with Zipf's rates."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 3001)
    tokens = rng.choice(3000, 40_000, p=shares / shares.sum())
    place = np.arange(len(tokens))
    return tokens, place // 100, place % 100


@pytest.fixture(scope="module")
def spikes(text):
    drawn = draw_spikes(60, np.bincount(text[0]), 3, (2.0, 5.0))
    return SpikeSet(drawn, draw_directions(drawn, 24, 3), 3)


def mixed(seed, what, document, position):
    """splitmix64 over four numbers, one bit at a time as it is written down."""
    state = 0
    for number in (seed, what, document, position):
        state = ((state ^ (int(number) & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def strength(spikes, place, token, document, position):
    spike = spikes.spikes[place]
    if token not in spike.types or mixed(spikes.seed, 0, document, 0) % TOPICS not in spike.topics:
        return 0.0
    if (mixed(spikes.seed, 1 + spike.group, document, position) >> 11) / 2**53 >= spike.keep:
        return 0.0
    spread = (mixed(spikes.seed, -1 - place, document, position) >> 11) / 2**53
    return spike.amplitude * (1 + SPREAD * (2 * spread - 1))


def test_strengths_are_those_of_a_loop(spikes, text):
    tokens, documents, positions = (column[:3000] for column in text)
    strengths = spikes.strengths(tokens, documents, positions).toarray()
    wanted = np.zeros_like(strengths)
    for t, columns in enumerate(zip(tokens, documents, positions, strict=True)):
        for place in range(len(spikes)):
            wanted[t, place] = strength(spikes, place, *columns)
    np.testing.assert_array_equal(strengths, wanted)
    assert (strengths > 0).any(0).sum() > 30


def test_a_token_has_the_same_strengths_in_any_company(spikes, text):
    whole = spikes.strengths(*text).toarray()
    order = np.random.default_rng(1).permutation(len(text[0]))[:5000]
    np.testing.assert_array_equal(spikes.strengths(*(column[order] for column in text)).toarray(), whole[order])
    assert spikes.strengths(*(column[:0] for column in text)).shape == (0, len(spikes))


def test_a_token_id_beyond_all_others_has_none(spikes):
    assert spikes.strengths([10**6], [0], [0]).nnz == 0


def test_rates_kinds_and_relations(spikes, text):
    on = spikes.strengths(*text).toarray() > 0
    rates, kinds = on.mean(0), [spike.kind for spike in spikes.spikes]
    assert set(kinds) == set(KINDS) and rates[rates > 0].min() > 2e-5 and rates.max() < 0.03
    for one, other in sense_pairs(spikes.spikes):
        assert not (on[:, one] & on[:, other]).any()
        # a document has one of them
        assert not set(text[1][on[:, one]]) & set(text[1][on[:, other]])
    groups = {}
    for place, spike in enumerate(spikes.spikes):
        groups.setdefault(spike.group, []).append(place)
    for places in groups.values():
        if kinds[places[0]] == "parent":
            assert all((on[:, child] <= on[:, places[0]]).all() for child in places[1:])
        if kinds[places[0]] == "atom" and on[:, places].all(1).any():
            together = on[:, places].all(1).sum()
            assert 0.2 < together / on[:, places[0]].sum() < 0.9
    # a token type belongs to one group
    owners = {}
    for spike in spikes.spikes:
        assert all(owners.setdefault(token, spike.group) == spike.group for token in spike.types)


def test_directions(spikes):
    rows = spikes.directions
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    pairs = np.array(sense_pairs(spikes.spikes))
    np.testing.assert_allclose((rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1), SENSE_COSINE, atol=1e-6)


def test_directions_lean_towards_where_the_activations_vary():
    drawn = draw_spikes(300, np.full(3000, 10), 0, (1.0, 1.0))
    covariance = np.diag([100.0] + [1.0] * 15)
    leaning = (draw_directions(drawn, 16, 0, covariance)[:, 0] ** 2).reshape(-1, 3).mean(0)
    flat = (draw_directions(drawn, 16, 0)[:, 0] ** 2).mean()
    assert leaning[0] < leaning[1] < leaning[2] and flat == pytest.approx(1 / 16, rel=0.4)


def test_adding(spikes, text):
    tokens, documents, positions = (column[:500] for column in text)
    x = torch.randn(500, 24, generator=torch.Generator().manual_seed(0))
    wanted = x + torch.from_numpy(spikes.strengths(tokens, documents, positions).toarray() @ spikes.directions)
    torch.testing.assert_close(spikes.add(x, tokens, documents, positions), wanted)
    assert spikes.add(x.bfloat16(), tokens, documents, positions).dtype is torch.bfloat16


def test_too_few_token_types_is_one_line():
    with pytest.raises(UserError, match="too few token types"):
        draw_spikes(60, np.full(20, 10), 0, (1.0, 2.0))
