"""Planted worlds: what is drawn has the rates, the correlations and the geometry that the world says it has."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from metasae.data.cache.stream import Stream
from metasae.data.planted.planted import WorldSpec, plant
from metasae.data.planted.planted_cache import CHUNK, PlantedSplit
from metasae.measures.firing.firings import document_blocks
from planted_truth import firing_probabilities, true_phi

MIXED = WorldSpec(
    d=24,
    independent=6,
    groups=3,
    rho=0.6,
    parents=2,
    words=3,
    sense_shares=(0.6, 0.4),
    atoms=6,
    composites=3,
    max_cosine=0.7,
    topics=3,
    boost=2.0,
    document_length=20,
)


def pairs_of(m):
    return np.array(list(itertools.combinations(range(m), 2)))


def alone(plan_values, rates):
    """A world of few features with these event rates."""
    world = plant(WorldSpec(d=8, **plan_values), 0)
    return replace(world, rates=np.array(rates, float))


def every_outcome(world):
    """[(probability, on bool [m])] over all outcomes of the events in every topic; worlds without groups."""
    mixing, m = world.mixing(), world.n_features
    words = [e for e in range(m) if world.word[e] >= 0]
    out = []
    for rates in world.topic_rates():
        for outcome in itertools.product((0, 1), repeat=len(world.rates)):
            said = [e for e in words if outcome[e]]
            if len(said) > 1:
                continue
            p = rates[said[0]] if said else 1 - rates[words].sum()
            for e in set(range(len(outcome))) - set(words):
                p *= rates[e] if outcome[e] else 1 - rates[e]
            happened = list(outcome)
            for child in np.flatnonzero(world.parent >= 0):
                happened[child] *= happened[world.parent[child]]
            out.append((p / len(world.topic_rates()), np.array(happened) @ mixing > 0))
    return out


def test_probabilities_against_every_outcome():
    plan = WorldSpec(
        d=8,
        independent=1,
        parents=1,
        words=1,
        sense_shares=(0.7, 0.3),
        atoms=3,
        composites=2,
        composite_sizes=(2,),
        topics=2,
        boost=1.5,
    )
    world = plant(replace(plan, top_rate=0.3), 3)
    # a grandchild too: the second child hangs under the first
    first, second = np.flatnonzero(world.parent >= 0)
    parent = world.parent.copy()
    parent[second] = first
    world = replace(world, parent=parent)
    outcomes = every_outcome(world)
    p, on = np.array([p for p, _ in outcomes]), np.array([on for _, on in outcomes])
    assert p.sum() == pytest.approx(1)
    pairs = pairs_of(world.n_features)
    i, j = on[:, pairs[:, 0]], on[:, pairs[:, 1]]
    np.testing.assert_allclose(firing_probabilities(world, pairs), [p @ i, p @ j, p @ (i & j)], atol=1e-12)
    np.testing.assert_allclose(firing_probabilities(world, pairs[:, ::-1]), [p @ j, p @ i, p @ (i & j)], atol=1e-12)


def test_probabilities_by_hand():
    pair = np.array([[0, 1]])
    assert true_phi(alone({"independent": 2}, [0.1, 0.4]), pair)[0] == pytest.approx(0, abs=1e-15)
    # medians of two normals: Sheppard's 1/4 + asin(rho) / (2 pi)
    for rho in (0.5, -0.5):
        both = firing_probabilities(alone({"groups": 1, "rho": rho}, [0.5, 0.5]), pair)[2][0]
        assert both == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-6)
    # a child on 1 in 2 of its parent's tokens: phi = (.1 - .02) / sqrt(.2 .8 .1 .9)
    assert true_phi(alone({"parents": 1, "children": 1}, [0.2, 0.5]), pair)[0] == pytest.approx(
        0.08 / math.sqrt(0.2 * 0.8 * 0.1 * 0.9)
    )
    # senses never meet: phi = -sqrt(p q / ((1 - p) (1 - q)))
    assert true_phi(alone({"words": 1}, [0.2, 0.1]), pair)[0] == pytest.approx(-math.sqrt(0.2 * 0.1 / (0.8 * 0.9)))
    # two atoms, on by themselves never, as a composite 1 time in 10: always together
    assert true_phi(alone({"atoms": 2, "composites": 1, "composite_sizes": (2,)}, [0, 0, 0.1]), pair)[
        0
    ] == pytest.approx(1)
    assert np.isnan(true_phi(alone({"independent": 2}, [0.0, 0.4]), pair)[0])
    assert len(true_phi(alone({"independent": 2}, [0.1, 0.4]), np.zeros((0, 2), int))) == 0


def test_drawn_rates_and_phi_are_the_true_ones():
    """Documents of one token: tokens are independent, so a sampled phi lies about 1 / sqrt(T) round the true one."""
    world, n = plant(replace(MIXED, document_length=1), 1), 60_000
    on = PlantedSplit(world, n, 0).activations.toarray() > 0
    pairs = pairs_of(world.n_features)
    p_i, _, p_both = firing_probabilities(world, pairs)
    deviations = (on[:, pairs[:, 0]].mean(0) - p_i) / np.sqrt(p_i * (1 - p_i) / n)
    assert np.abs(deviations).max() < 4.5
    sampled = (on[:, pairs[:, 0]] & on[:, pairs[:, 1]]).mean(0)
    deviations = (sampled - p_both) / np.sqrt(np.maximum(p_both, 1 / n) / n)
    assert np.abs(deviations).max() < 5 and np.std(deviations) < 1.2
    phi = np.corrcoef(on.T)[pairs[:, 0], pairs[:, 1]]
    assert np.abs(phi - true_phi(world, pairs)).max() < 0.03 and np.corrcoef(phi, true_phi(world, pairs))[0, 1] > 0.99


def test_a_negative_correlation_keeps_the_rates():
    world = alone({"groups": 1, "rho": -0.9}, [0.3, 0.1])
    on = PlantedSplit(world, 40_000, 0).activations.toarray() > 0
    np.testing.assert_allclose(on.mean(0), [0.3, 0.1], atol=0.008)
    assert (
        np.corrcoef(on.T)[0, 1] == pytest.approx(true_phi(world, np.array([[0, 1]]))[0], abs=0.02)
        and np.corrcoef(on.T)[0, 1] < -0.15
    )


def test_what_fires_together():
    world = plant(MIXED, 0)
    split = PlantedSplit(world, 8000, 0)
    events, a = split.events.toarray(), split.activations.toarray()
    for child in np.flatnonzero(world.parent >= 0):
        assert (a[:, child] > 0).any() and (a[a[:, child] > 0, world.parent[child]] > 0).all()
    words = a[:, world.word >= 0] > 0
    assert words.sum(1).max() == 1
    for number, members in enumerate(world.members):
        whole = events[:, world.n_features + number]
        only = (whole > 0) & (events[:, list(members)] == 0).all(1)
        others = [c for c, atoms in enumerate(world.members) if c != number and set(atoms) & set(members)]
        only &= (events[:, [world.n_features + c for c in others]] == 0).all(1)
        assert only.any() and np.array_equal(a[only][:, list(members)], np.repeat(whole[only, None], len(members), 1))
    assert events[events > 0].min() > MIXED.floor and events[events > 0].mean() == pytest.approx(1, abs=0.02)


def test_activations_are_the_features_plus_noise():
    world = plant(MIXED, 0)
    split = PlantedSplit(world, 5000, 0)
    rest = split.x.numpy() - split.activations.toarray() @ world.directions
    assert rest.std() == pytest.approx(MIXED.noise, rel=0.02) and abs(rest.mean()) < 1e-3
    silent = PlantedSplit(replace(world, spec=replace(MIXED, noise=0)), 500, 0)
    np.testing.assert_allclose(silent.x.numpy(), silent.activations.toarray() @ world.directions, atol=1e-5)


def test_tokens_name_the_word_and_senses_its_sense():
    world = plant(MIXED, 0)
    split = PlantedSplit(world, 3000, 0)
    a = split.activations.toarray()
    for token, sense, row in zip(split.tokens, split.senses, a, strict=True):
        on = [j for j in np.flatnonzero(row) if world.word[j] >= 0]
        if on:
            assert token == world.word[on[0]] and sense == world.sense[on[0]]
        else:
            assert token >= MIXED.words and sense == -1
    assert split.tokens.dtype == np.int32


def test_directions():
    world = plant(MIXED, 0)
    cosines = world.directions @ world.directions.T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    same = (world.word[:, None] == world.word[None, :]) & (world.word >= 0) & ~np.eye(world.n_features, dtype=bool)
    np.testing.assert_allclose(cosines[same], MIXED.sense_cosine, atol=1e-6)
    assert np.abs(cosines[~same & ~np.eye(world.n_features, dtype=bool)]).max() <= MIXED.max_cosine + 1e-6
    with pytest.raises(ValueError, match="no room for 9 directions"):
        plant(WorldSpec(d=2, independent=9, max_cosine=0.05), 0)


def test_rates_follow_zipf():
    world = plant(WorldSpec(d=8, independent=5, top_rate=0.2, zipf=1.0), 0)
    np.testing.assert_allclose(np.sort(world.rates)[::-1], 0.2 / np.arange(1, 6))
    words = plant(WorldSpec(d=8, words=2, sense_shares=(0.75, 0.25), top_rate=0.2, zipf=1.0), 0)
    np.testing.assert_allclose(sorted(words.rates), [0.025, 0.05, 0.075, 0.15])


def test_topics_change_lift_and_not_rates():
    world = plant(replace(MIXED, topics=4, boost=2.5), 0)
    table = world.topic_rates()
    np.testing.assert_allclose(table.mean(0), world.rates)
    pairs = pairs_of(6)
    p_i, p_j, both = firing_probabilities(world, pairs)
    together = world.home[pairs[:, 0]] == world.home[pairs[:, 1]]
    # elsewhere the rate is half: (2.5^2 + 3 / 4) / 4 at home together, (2 * 2.5 / 2 + 2 / 4) / 4 apart, whatever the
    # rates
    np.testing.assert_allclose(both / (p_i * p_j), np.where(together, 1.75, 0.75))
    split = PlantedSplit(world, 4000, 0)
    assert len(set(split.topics)) == 4
    for document in np.unique(split.documents):
        assert len(set(split.topics[split.documents == document])) == 1


def test_a_seed_decides_everything_and_a_longer_sample_begins_with_the_shorter():
    again = [plant(MIXED, 4) for _ in range(2)]
    np.testing.assert_array_equal(again[0].directions, again[1].directions)
    np.testing.assert_array_equal(again[0].rates, again[1].rates)
    assert not np.array_equal(plant(MIXED, 5).directions, again[0].directions)
    n = CHUNK + 300
    long, short = PlantedSplit(again[0], n, 7), PlantedSplit(again[1], CHUNK + 33, 7)
    assert torch.equal(long.x[: short.n_tokens], short.x)
    assert (long.activations[: short.n_tokens] != short.activations).nnz == 0
    for name in ("tokens", "documents", "positions", "senses", "topics"):
        np.testing.assert_array_equal(getattr(long, name)[: short.n_tokens], getattr(short, name))
    assert not torch.equal(PlantedSplit(again[0], 100, 8).x, long.x[:100])
    assert not torch.equal(long.x[CHUNK + 4 : CHUNK + 104], long.x[:100])


def test_a_split_like_any_other():
    split = PlantedSplit(plant(MIXED, 0), 130, 0)
    assert split.documents.tolist() == [t // 20 for t in range(130)] and split.positions.tolist() == [
        t % 20 for t in range(130)
    ]
    assert [len(block) for block in split.blocks(50)] == [50, 50, 30] and torch.equal(
        torch.cat(list(split.blocks(50))), split.x
    )
    assert torch.equal(split.rows(np.array([3, 129, 3])), split.x[[3, 129, 3]])
    batch = Stream(split, 16, 0).next()
    assert batch.shape == (16, 24) and batch.dtype == torch.float32
    assert len(document_blocks(split.documents, 3)) == 130
    empty = PlantedSplit(plant(MIXED, 0), 0, 0)
    assert (
        empty.x.shape == (0, 24)
        and list(empty.blocks(5)) == []
        and empty.activations.shape == (0, plant(MIXED, 0).n_features)
    )


@pytest.mark.parametrize(
    "values",
    [
        {"independent": 0},
        {"groups": 1, "group_size": 3, "rho": -0.5},
        {"rho": 1.0, "groups": 1},
        {"words": 1, "sense_shares": (0.5, 0.6)},
        {"words": 1, "sense_shares": (1.0, 0.0)},
        {"words": 1, "sense_cosine": 1.5},
        {"words": 1, "sense_shares": (0.25,) * 4, "d": 4},
        {"atoms": 3, "composites": 1, "composite_sizes": (4,)},
        {"independent": 2, "boost": 2.0},
        {"independent": 2, "top_rate": 0.9, "topics": 4, "boost": 2.0},
        {"words": 9, "top_rate": 0.5, "zipf": 0.1},
        {"independent": 1, "floor": 1.0},
    ],
)
def test_a_plan_that_no_world_fits_is_refused(values):
    with pytest.raises(ValueError):
        plant(WorldSpec(**{"d": 8, **values}), 0)
