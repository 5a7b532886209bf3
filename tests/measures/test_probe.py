import numpy as np
import pytest

from metasae.measures.words.sense_reference import STRENGTH, fit_probe, macro_f1


def clouds(sizes, d=6, apart=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=(len(labels), d)) * 3 + apart * rng.normal(size=(len(sizes), d))[labels] + 7, labels


def plain_loss(probe, x, labels, n_classes, strength=STRENGTH):
    """The objective in loops."""
    z = (x - probe.mean) / probe.scale
    per_class = []
    for c in range(n_classes):
        terms = []
        for row in z[labels == c]:
            scores = row @ probe.weights + probe.bias
            terms.append(np.log(np.exp(scores).sum()) - scores[c])
        per_class.append(np.mean(terms))
    return np.mean(per_class) + strength / 2 * (probe.weights**2).sum()


def test_no_small_step_lowers_the_objective():
    x, labels = clouds([40, 15, 5])
    probe = fit_probe(x, labels, 3)
    lowest = plain_loss(probe, x, labels, 3)
    rng = np.random.default_rng(1)
    assert probe.converged
    for _ in range(20):
        step = {
            "weights": probe.weights + 1e-3 * rng.normal(size=(6, 3)),
            "bias": probe.bias + 1e-3 * rng.normal(size=3),
        }
        assert plain_loss(type(probe)(**{**vars(probe), **step}), x, labels, 3) > lowest


def test_it_agrees_with_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = clouds([60, 25, 10], d=8)
    probe = fit_probe(x, labels, 3)
    z = (x - x.mean(0)) / x.std(0)
    fitted = linear.LogisticRegression(C=1 / (STRENGTH * len(x)), class_weight="balanced", tol=1e-8, max_iter=5000).fit(
        z, labels
    )
    np.testing.assert_allclose(probe.weights, fitted.coef_.T, atol=1e-3)
    assert (probe.predict(x) == fitted.predict(z)).all()


def test_separate_classes_are_told_apart_and_rare_ones_are_not_forgotten():
    x, labels = clouds([300, 12, 12], d=20, apart=6)
    unseen, theirs = clouds([300, 12, 12], d=20, apart=6)
    rng = np.random.default_rng(3)
    unseen = unseen + 0.5 * rng.normal(size=unseen.shape)
    assert macro_f1(theirs, fit_probe(x, labels, 3).predict(unseen), 3) > 0.95


def test_a_constant_input_and_a_shift_change_nothing():
    x, labels = clouds([20, 20])
    probe = fit_probe(x, labels, 2)
    more = np.concatenate([x * 50 - 3, np.full((40, 1), 4.0)], axis=1)
    assert (fit_probe(more, labels, 2).predict(more) == probe.predict(x)).all()


def test_macro_f1_by_hand():
    # class 0: 2 hits of 3 true and 2 predicted; class 1: 1 hit of 1 true and 2 predicted; class 2: nowhere
    assert macro_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert macro_f1(np.array([1, 1]), np.array([0, 0]), 2) == 0
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(4, size=(2, 100))
    assert macro_f1(true, predicted, 4) == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
