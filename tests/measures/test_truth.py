"""Truth measures against numbers worked out by hand and against loops that spell the definitions out."""

import itertools
import json
import math

import numpy as np
import pytest

from metasae.data.planted.planted import WorldSpec, plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.measures.firing.firings import Firings
from metasae.measures.truth import truth
from metasae.measures.truth.truth import (
    absorption,
    as_firings,
    effective_numbers,
    firing_f1,
    match_features,
    measure_truth,
    phi_errors,
    unit,
)


def firings_of(on) -> Firings:
    """on: bool [T, n]."""
    on = np.asarray(on, bool)
    rows, columns = np.nonzero(on)
    indptr = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int64)
    place = np.zeros(len(on), np.int32)
    return Firings(indptr, columns.astype(np.int32), np.ones(len(rows), np.float32), on.shape[1], place, place, place)


def columns(*texts):
    """'110' -> a latent that fires on tokens 0 and 1 of 3."""
    return firings_of(np.array([[int(mark) for mark in text] for text in texts], bool).T)


def noisy_firings(n_tokens, n, seed):
    """Random firings with a dead, an always-on, a duplicated and a complementary latent among them."""
    rng = np.random.default_rng(seed)
    on = rng.random((n_tokens, n)) < rng.uniform(0.05, 0.6, n)
    on[:, 1], on[:, 3], on[:, 5], on[:, 6] = False, True, on[:, 0], ~on[:, 0]
    return on


def test_a_perfect_dictionary_in_any_order_and_of_any_lengths():
    world = plant(WorldSpec(d=32, independent=20, parents=3, words=2, max_cosine=0.6), 0)
    split = PlantedSplit(world, 4000, 0)
    order = np.random.default_rng(0).permutation(world.n_features)
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(order), 1))
    on = split.activations.toarray() > 0
    numbers = measure_truth(
        lengths * world.directions[order],
        firings_of(on[:, order]),
        3 * world.directions,
        as_firings(split.activations, split),
        world.parent,
    )
    for value in (
        numbers["mcc"],
        numbers["mcc_of_features"],
        numbers["latent_max_cosine"],
        numbers["feature_max_cosine"],
    ):
        assert value == pytest.approx(1, abs=1e-6)
    assert (
        numbers["uniqueness"] == numbers["f1"] == numbers["best_f1"] == 1
        and numbers["blend_rate"] == 0
        and numbers["effective_number"] == pytest.approx(1, abs=1e-5)
    )
    assert numbers["absorption"] == 0 and len(numbers["absorption_by_parent"]) == 3
    assert (
        numbers["phi_error"] == pytest.approx(0, abs=1e-15)
        and numbers["phi_related_error"] == pytest.approx(0, abs=1e-15)
        and numbers["n_related"] > 0
    )
    assert numbers["n_pairs"] == world.n_features * (world.n_features - 1) // 2
    assert (
        numbers["n_live"],
        numbers["excluded"]["dead"],
        numbers["excluded"]["silent"],
        numbers["excluded"]["unmatched"],
        numbers["excluded"]["unexplained"],
    ) == (
        world.n_features,
        0,
        0,
        0,
        0,
    )


def test_geometry_by_hand():
    """Three latents on two features, and one that is dead: the cosines are (1, 0), (.8, .6), (0, -1)."""
    rows = np.array([[2.0, 0], [0.8, 0.6], [0, -1], [0, 1]])
    numbers = measure_truth(rows, columns("110", "011", "001", "000"), np.eye(2), columns("110", "001"))
    # 0 with the first feature and 2, whose |cos| is 1, with the second
    assert numbers["mcc"] == pytest.approx(1) and numbers["mcc_of_features"] == pytest.approx(1)
    assert numbers["latent_max_cosine"] == pytest.approx((1 + 0.8 + 0) / 3) and numbers[
        "feature_max_cosine"
    ] == pytest.approx((1 + 0.6) / 2)
    assert numbers["uniqueness"] == pytest.approx(2 / 3) and (
        numbers["n_live"],
        numbers["excluded"]["dead"],
        numbers["n_features"],
    ) == (3, 1, 2)
    assert numbers["f1"] == 1 and numbers["best_f1"] == 1
    # (.64 + .36)^2 / (.64^2 + .36^2) = 1.855 is a blend; the third row is no sum of features
    assert (
        numbers["blend_rate"] == 1 / 2
        and numbers["effective_number"] == pytest.approx((1 + 1 / (0.64**2 + 0.36**2)) / 2)
        and numbers["excluded"]["unexplained"] == 1
    )
    fewer = measure_truth(rows[:1], columns("110"), np.eye(2), columns("110", "001"))
    assert (
        fewer["mcc"] == 1
        and fewer["mcc_of_features"] == 0.5
        and fewer["excluded"]["unmatched"] == 1
        and fewer["f1"] == 0.5
    )


def test_matching_is_the_best_of_all():
    for seed in range(5):
        cosines = np.random.default_rng(seed).uniform(-1, 1, (4, 5))
        match = match_features(cosines)
        total = sum(abs(cosines[i, j]) for j, i in enumerate(match) if i >= 0)
        best = max(
            sum(abs(cosines[i, j]) for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(5), 4)
        )
        assert total == pytest.approx(best) and sorted(match) == [-1, 0, 1, 2, 3]


def test_effective_numbers_by_hand():
    g = np.eye(6)

    def even(n):
        return np.r_[np.ones(n), np.zeros(6 - n)]

    rows = unit([g[0], even(2), even(3), even(4), [1, 0.5, 0, 0, 0, 0], [1, 0.55, 0, 0, 0, 0], [3, -4, 0, 0, 0, 0]])
    expected = [1, 2, 3, 4, 1.25**2 / (1 + 0.5**4), (1 + 0.55**2) ** 2 / (1 + 0.55**4), 1]
    np.testing.assert_allclose(effective_numbers(rows, g), expected)
    assert expected[4] < truth.BLEND < expected[5]
    assert effective_numbers(unit([even(6)]), g)[0] == pytest.approx(4) and effective_numbers(
        unit([even(6)]), g, parts=6
    )[0] == pytest.approx(6)
    assert np.isnan(effective_numbers(-g[:1], g)).all() and np.isnan(effective_numbers(np.zeros((1, 6)), g)).all()
    assert len(effective_numbers(np.zeros((0, 6)), g)) == 0
    # a feature that is there twice is one feature
    np.testing.assert_allclose(effective_numbers(g[:1], np.concatenate([g, g[:1]])), 1)


def test_effective_numbers_with_orthogonal_features_are_those_of_the_largest_cosines():
    g = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 9)))[0]
    rows = unit(np.random.default_rng(1).standard_normal((40, 9)))
    for parts in (1, 3, 9):
        top = np.sort(np.maximum(rows @ g.T, 0), axis=1)[:, ::-1][:, :parts]
        np.testing.assert_allclose(effective_numbers(rows, g, parts), (top**2).sum(1) ** 2 / (top**4).sum(1))


def test_effective_numbers_of_blends_of_overlapping_senses_and_of_noise():
    world = plant(
        WorldSpec(d=48, independent=60, words=10, sense_shares=(0.6, 0.4), sense_cosine=0.5, max_cosine=0.5), 0
    )
    senses = [np.flatnonzero(world.word == word) for word in range(10)]
    blends = unit([0.6 * world.directions[a] + 0.4 * world.directions[b] for a, b in senses])
    exact = (0.6**2 + 0.4**2) ** 2 / (0.6**4 + 0.4**4)
    np.testing.assert_allclose(effective_numbers(blends, unit(world.directions)), exact, rtol=1e-4)
    noise = unit(np.random.default_rng(0).standard_normal(world.directions.shape))
    assert (effective_numbers(unit(world.directions + 0.3 * noise), unit(world.directions)) < truth.BLEND).mean() > 0.97


@pytest.mark.parametrize("seed", [0, 1])
def test_f1_against_loops(seed):
    on, latent = noisy_firings(50, 8, seed), noisy_firings(50, 9, seed + 10)
    latent_of = np.array([4, 2, 1, 3, -1, 8, 0, 5])
    own, best = firing_f1(firings_of(latent), firings_of(on), latent_of)

    def f1(j, i):
        both, either = sum(on[:, j] & latent[:, i]), sum(on[:, j]) + sum(latent[:, i])
        return 2 * both / either if either else 0

    np.testing.assert_allclose(own, [f1(j, i) if i >= 0 else 0 for j, i in enumerate(latent_of)])
    np.testing.assert_allclose(best, [max(f1(j, i) for i in range(9)) for j in range(8)])


def test_absorption_by_hand():
    """A parent 0 with children 1 and 2. The latent of child 1 has taken the parent in; the parent's latent is silent
    where 1 is on."""
    directions, parent = np.eye(3), np.array([-1, 0, 0])
    on = columns("111111", "110000", "001000")
    rows = unit([[1, 0, 0], [0.5, 1, 0], [0, 0, 1]])
    fires = columns("000111", "110000", "001000")
    # silent on tokens 0, 1, 2; the latent of child 1 carries it on two of them, that of child 2 does not carry it
    assert absorption(rows, fires, directions, on, np.arange(3), parent) == {0: (2, 6)}
    assert absorption(unit(np.eye(3)), fires, directions, on, np.arange(3), parent) == {0: (0, 6)}
    assert absorption(rows, columns("111111", "110000", "001000"), directions, on, np.arange(3), parent) == {0: (0, 6)}
    # not counted: no latent for the parent; a parent that is never on. A child without a latent carries nothing
    assert absorption(rows, fires, directions, on, np.array([-1, 1, 2]), parent) == {}
    assert absorption(rows, fires, directions, columns("000000", "110000", "001000"), np.arange(3), parent) == {}
    assert absorption(rows, fires, directions, on, np.array([0, -1, 2]), parent) == {0: (0, 6)}
    # directions that overlap anyway are no absorption
    close = unit([[1, 0, 0], [0.5, 1, 0], [0, 0, 1]])
    assert absorption(close, fires, close, on, np.arange(3), parent) == {0: (0, 6)}
    numbers = measure_truth(rows, fires, directions, on, parent)
    assert numbers["absorption"] == pytest.approx(1 / 3) and numbers["absorption_by_parent"] == {"0": 1 / 3}


@pytest.mark.parametrize("seed", [0, 1])
def test_absorption_against_loops(seed):
    rng = np.random.default_rng(seed)
    on, fires = noisy_firings(60, 8, seed), noisy_firings(60, 9, seed + 5)
    directions, rows = unit(rng.standard_normal((8, 5))), unit(rng.standard_normal((9, 5)))
    parent, latent_of = np.array([-1, 0, 0, 0, -1, 4, 4, 5]), np.array([4, 2, 1, 3, 6, 8, 0, -1])
    expected = {}
    for p in (0, 4, 5):
        absorbed = 0
        for t in range(60):
            for c in range(8):
                if parent[c] == p and latent_of[c] >= 0:
                    gram = np.array([[1, directions[c] @ directions[p]], [directions[c] @ directions[p], 1]])
                    share = np.linalg.solve(
                        gram, [directions[c] @ rows[latent_of[c]], directions[p] @ rows[latent_of[c]]]
                    )[1]
                    if share > 0.1 and on[t, p] and not fires[t, latent_of[p]] and fires[t, latent_of[c]]:
                        absorbed += 1
                        break
        expected[p] = absorbed, int(on[:, p].sum())
    assert absorption(rows, firings_of(fires), directions, firings_of(on), latent_of, parent) == expected
    assert sum(absorbed for absorbed, _ in expected.values()) > 0


def phi_of(a, b):
    n, both, n_a, n_b = len(a), int((a & b).sum()), int(a.sum()), int(b.sum())
    return (both * n - n_a * n_b) / math.sqrt(n_a * (n - n_a) * n_b * (n - n_b))


@pytest.mark.parametrize("tile", [1, 3, 256])
def test_phi_errors_against_loops(tile, monkeypatch):
    monkeypatch.setattr(truth, "TILE", tile)
    on, fires = noisy_firings(70, 9, 0), noisy_firings(70, 10, 7)
    latent_of = np.array([4, 2, 1, 0, 3, 8, 5, -1, 9])
    usable = [
        j for j in range(9) if latent_of[j] >= 0 and 0 < on[:, j].sum() < 70 and 0 < fires[:, latent_of[j]].sum() < 70
    ]
    true = np.array([phi_of(on[:, i], on[:, j]) for i, j in itertools.combinations(usable, 2)])
    mine = np.array(
        [phi_of(fires[:, latent_of[i]], fires[:, latent_of[j]]) for i, j in itertools.combinations(usable, 2)]
    )
    related = np.abs(true) > 0.05
    numbers = phi_errors(firings_of(fires), firings_of(on), latent_of)
    assert (numbers["n_pairs"], numbers["n_related"]) == (len(true), related.sum())
    assert numbers["phi_error"] == pytest.approx(np.abs(mine - true).mean(), abs=1e-12) and numbers[
        "phi_bias"
    ] == pytest.approx((mine - true).mean(), abs=1e-12)
    assert numbers["phi_related_error"] == pytest.approx(np.abs(mine - true)[related].mean(), abs=1e-12)
    assert numbers["phi_related_bias"] == pytest.approx((mine - true)[related].mean(), abs=1e-12)


def test_numbers_that_do_not_exist_are_none():
    on = columns("110", "001")
    dead = measure_truth(np.eye(2), columns("000", "000"), np.eye(2), on, np.array([-1, 0]))
    assert (
        dead["mcc"]
        is dead["mcc_of_features"]
        is dead["latent_max_cosine"]
        is dead["feature_max_cosine"]
        is dead["uniqueness"]
        is None
    )
    assert dead["blend_rate"] is dead["absorption"] is dead["phi_error"] is dead["phi_related_bias"] is None
    # features that are on and that nothing finds are found with 0
    assert dead["f1"] == dead["best_f1"] == 0 and (dead["excluded"]["dead"], dead["excluded"]["unmatched"]) == (2, 2)
    silent = measure_truth(np.eye(2), on, np.eye(2), columns("000", "000"))
    assert (
        silent["f1"] is silent["best_f1"] is silent["phi_error"] is None
        and silent["excluded"]["silent"] == 2
        and silent["mcc"] == 1
    )
    none = measure_truth(
        np.eye(2), firings_of(np.zeros((0, 2))), np.eye(2), firings_of(np.zeros((0, 2))), np.array([-1, 0])
    )
    assert none["mcc"] is none["f1"] is none["absorption"] is None and none["n_live"] == 0
    one = measure_truth(np.eye(2), firings_of([[1, 0]]), np.eye(2), firings_of([[1, 0]]), np.array([-1, 0]))
    assert (
        one["mcc"] == one["f1"] == 1
        and one["phi_error"] is None
        and one["absorption"] == 0
        and one["excluded"]["dead"] == one["excluded"]["silent"] == one["excluded"]["unmatched"] == 1
    )
    for numbers in (dead, silent, none, one):
        assert json.loads(json.dumps(numbers))["excluded"]["dead"] == numbers["excluded"]["dead"]


def test_what_does_not_belong_together_is_refused():
    on = columns("110", "001")
    for rows, firings, directions, true in (
        (np.eye(3), on, np.eye(2), on),
        (np.eye(2), on, np.eye(3), on),
        (np.eye(2), columns("1100", "0011"), np.eye(2), on),
    ):
        with pytest.raises(ValueError, match="must be of the same"):
            measure_truth(rows, firings, directions, true)
