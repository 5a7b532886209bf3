import itertools

import numpy as np
import pytest
from drawn import independent, rasch

from metasae.measures.cofiring.marginals import fit


def fit_to(on, **options):
    on = np.asarray(on, bool)
    return fit(on.sum(0), on.sum(1), **options)


def assert_sums(on, model):
    on = np.asarray(on, bool)
    assert model.converged
    np.testing.assert_allclose(model.pi @ model.sizes, on.sum(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.pi.sum(0), model.token_counts, rtol=1e-6, atol=1e-9)
    assert np.all((model.pi >= 0) & (model.pi <= 1))


def slow_fit(on, sweeps=400):
    """Every token for itself, one logit after the other, each by bisection."""
    counts, per_token = on.sum(0), on.sum(1)
    a, b = np.zeros(on.shape[1]), np.zeros(len(on))

    def solved(others, wanted):
        low, high = -60.0, 60.0
        for _ in range(70):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(1 / (1 + np.exp(-(middle + others)))) < wanted else (low, middle)
        return middle

    for _ in range(sweeps):
        before = a.copy()
        b = np.array([solved(a, wanted) for wanted in per_token])
        a = np.array([solved(b, wanted) for wanted in counts])
        if np.abs(a - before).max() < 1e-10:
            break
    return 1 / (1 + np.exp(-(a + b[:, None])))


@pytest.mark.parametrize(
    "on", [independent(0, 200, 1500, 12), rasch(1, 200, 1500, 12, 1.0), rasch(2, 30, 4000, 14, 2.0)]
)
def test_row_and_column_sums_are_reproduced(on):
    model = fit_to(on)
    assert_sums(on, model)
    assert model.error <= 1e-9 and model.steps < 20


def test_against_the_slow_fit_of_every_token():
    on = rasch(3, 9, 25, 3, 0.7)
    on = on[(on.sum(1) > 0) & (on.sum(1) < 9)][:, (on.sum(0) > 0)]
    model = fit_to(on)
    group = np.searchsorted(model.token_counts, on.sum(1))
    np.testing.assert_allclose(model.pi[:, group].T, slow_fit(on), atol=1e-6)


def test_the_logit_is_a_sum_of_latent_and_token():
    model = fit_to(rasch(4, 50, 600, 8, 1.0)[:, :40])
    inner = (model.token_counts > 0) & (model.token_counts < 40)
    logit = np.log(model.pi[:, inner] / (1 - model.pi[:, inner]))
    np.testing.assert_allclose(logit - logit[:1] - logit[:, :1] + logit[0, 0], 0, atol=1e-9)


def test_what_the_sums_force_is_zero_or_one():
    on = independent(5, 12, 60, 4)
    on[:, 3], on[:, 7] = False, True
    on[:5], on[5:8] = False, True
    on[:5, 7] = True
    on[5:8, 3] = False
    model = fit_to(on)
    assert_sums(on, model)
    assert np.all(model.pi[3] == 0) and np.all(model.pi[7] == 1)
    least, most = model.pi[:, 0], model.pi[:, -1]
    assert set(least.tolist()) == {0.0, 1.0} and set(most.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "on",
    [
        np.zeros((0, 4)),
        np.zeros((5, 0)),
        np.zeros((5, 3)),
        np.ones((5, 3)),
        np.eye(4)[:, :1],
        np.ones((1, 6)),
        np.array([[1, 0, 1]]),
    ],
)
def test_no_choice_at_all(on):
    assert_sums(on, fit_to(on))


@pytest.mark.parametrize("n_tokens,n", [(6, 4), (12, 9), (5, 11)])
def test_nested_firings_are_their_own_null(n_tokens, n):
    # latent i fires on the tokens that are busier than i: only one matrix has these sums
    on = np.sort(np.random.default_rng(n).random(n_tokens))[:, None] * n > np.arange(n)
    model = fit_to(on)
    assert_sums(on, model)
    group = np.searchsorted(model.token_counts, on.sum(1))
    np.testing.assert_allclose(model.pi[:, group].T, on, atol=1e-6)


def test_random_small_matrices_of_every_kind():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n_tokens, n = rng.integers(1, 14), rng.integers(1, 12)
        on = rng.random((n_tokens, n)) < rng.uniform(0, 1, [n_tokens, 1] if rng.random() < 0.5 else [1, n])
        assert_sums(on, fit_to(on))


def test_too_few_steps_are_reported():
    model = fit_to(rasch(1, 60, 400, 8, 1.0), max_steps=0)
    assert not model.converged and model.error > 1e-3 and model.steps == 0


def drawn_without_replacement(odds, size):
    """Inclusion probabilities [n] and joint ones [n, n] of `size` of n with probability proportional to the product of
    odds."""
    n = len(odds)
    sets = list(itertools.combinations(range(n), size))
    weights = np.array([np.prod(odds[list(chosen)]) for chosen in sets])
    weights /= weights.sum()
    joint = np.zeros((n, n))
    for chosen, weight in zip(sets, weights, strict=True):
        for i in chosen:
            for j in chosen:
                joint[i, j] += weight
    return np.diag(joint), joint


@pytest.mark.parametrize(
    "n,size,tolerance", [(12, 1, 1e-12), (12, 2, 0.3), (12, 4, 0.03), (12, 6, 0.01), (14, 10, 0.01)]
)
def test_pairs_meet_as_often_as_in_draws_without_replacement(n, size, tolerance):
    odds = np.exp(np.random.default_rng(n + size).normal(0, 0.8, n))
    pi, joint = drawn_without_replacement(odds, size)
    # 10^6 tokens with this count and these rates, to within rounding
    counts = np.round(pi * 1e6).astype(np.int64)
    counts[0] += size * 10**6 - counts.sum()
    model = fit(counts, np.full(10**6, size))
    means, _ = model.pair_moments(np.arange(n), np.arange(n))
    other = ~np.eye(n, dtype=bool)
    scale = joint[other].mean() if size > 1 else 1 / n**2
    assert np.abs(means / 1e6 - joint)[other].max() <= tolerance * scale + 1e-5
    # each latent meets size - 1 others
    np.testing.assert_allclose(means.sum(1) - np.diag(means), counts * (size - 1), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("on", [independent(6, 60, 500, 6), rasch(7, 60, 500, 6, 1.0)])
def test_all_pairs_together_meet_as_often_as_they_did(on):
    model = fit_to(on)
    means, _ = model.pair_moments(np.arange(60), np.arange(60))
    per_token = on.sum(1).astype(np.int64)
    assert means[np.triu_indices(60, 1)].sum() == pytest.approx((per_token * (per_token - 1)).sum() / 2, rel=1e-6)
    # pi_i pi_j alone counts every latent as meeting L others
    assert ((model.sizes * model.pi) @ model.pi.T)[np.triu_indices(60, 1)].sum() > 1.05 * means[
        np.triu_indices(60, 1)
    ].sum()


def test_moments_against_the_sum_over_tokens():
    on = rasch(8, 20, 80, 5, 0.8)
    model = fit_to(on)
    mean, variance = model.pair_moments(np.arange(20), np.arange(20))
    group = np.searchsorted(model.token_counts, on.sum(1))
    for i, j in ((0, 1), (3, 17), (12, 5)):
        total = square = with_i = with_j = of_i = of_j = of_both = 0.0
        for g in group:
            p, q = model.pi[i, g], model.pi[j, g]
            both = p * q - model.repulsion[i, g] * model.repulsion[j, g]
            total, square = total + both, square + both * (1 - both)
            with_i, with_j = with_i + both * (1 - p), with_j + both * (1 - q)
            of_i, of_j, of_both = of_i + p * (1 - p), of_j + q * (1 - q), of_both + both - p * q
        explained = np.array([with_i, with_j]) @ np.linalg.solve([[of_i, of_both], [of_both, of_j]], [with_i, with_j])
        assert mean[i, j] == pytest.approx(total, rel=1e-10)
        assert variance[i, j] == pytest.approx(square - explained, rel=1e-8)


def test_many_latents_and_even_tokens_give_the_hypergeometric_variance():
    # 400 latents, every token has 20 of them: what one latent does hardly binds another
    rng = np.random.default_rng(0)
    on = np.zeros((2000, 400), bool)
    for token in on:
        token[rng.choice(400, 20, replace=False)] = True
    model, counts = fit_to(on), on.sum(0)
    _, variance = model.pair_moments(np.arange(6), np.arange(6))
    for i, j in itertools.combinations(range(6), 2):
        p, q = counts[i] / 2000, counts[j] / 2000
        assert variance[i, j] == pytest.approx(2000 * p * (1 - p) * q * (1 - q), rel=0.06)


def swapped(on, swaps, rng):
    """The matrix after random trades of tokens between two latents, which keep both sums (curveball)."""
    sets = [set(np.flatnonzero(column)) for column in on.T]
    for _ in range(swaps):
        i, j = rng.choice(len(sets), 2, replace=False)
        both = sets[i] & sets[j]
        free = rng.permutation(sorted((sets[i] | sets[j]) - both))
        cut = len(sets[i]) - len(both)
        sets[i], sets[j] = both | set(free[:cut].tolist()), both | set(free[cut:].tolist())
    result = np.zeros_like(on)
    for column, tokens in enumerate(sets):
        result[list(tokens), column] = True
    return result


def test_moments_against_random_matrices_with_the_same_sums():
    rng = np.random.default_rng(1)
    on = rasch(9, 20, 100, 5, 0.7)
    model, upper = fit_to(on), np.triu_indices(20, 1)
    observed = []
    for _ in range(600):
        on = swapped(on, 40, rng)
        observed.append((on.T.astype(int) @ on.astype(int))[upper])
    observed = np.array(observed)
    mean, variance = model.pair_moments(np.arange(20), np.arange(20))
    assert np.abs(observed.mean(0) - mean[upper]).max() < 0.25 * observed.std(0).max()
    assert variance[upper].sum() == pytest.approx(observed.var(0).sum(), rel=0.1)
    # without holding both sums the variance would be several times as large
    assert mean[upper].sum() > 1.5 * observed.var(0).sum()
