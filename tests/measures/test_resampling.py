import itertools

import numpy as np
import pytest

from metasae.intervals.resampling import MIN_CLUSTERS, bootstrap_interval, paired_permutation


def clustered(rng, kind, sizes):
    """(values, clusters, true mean): scores that share a cluster share its effect."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    effect, truth = {"normal": (rng.normal(size=len(sizes)), 0.0), "share": (rng.beta(2, 1, len(sizes)), 2 / 3)}[kind]
    return effect[clusters] + 0.1 * rng.normal(size=len(clusters)), clusters, truth


@pytest.mark.parametrize("kind", ["normal", "share"])
def test_coverage_with_20_clusters(kind):
    rng, hits = np.random.default_rng(2), 0
    for case in range(500):
        values, clusters, truth = clustered(rng, kind, rng.integers(5, 16, 20))
        low, high = bootstrap_interval(values, seed=case, clusters=clusters, n_resamples=499).ci95
        hits += low <= truth <= high
    assert 460 <= hits <= 490, f"covers {hits / 5:.1f}% of 500 cases"


def test_rows_as_if_independent_would_be_far_too_sure():
    values, clusters, _ = clustered(np.random.default_rng(3), "normal", np.full(25, 40))
    whole, apart = (bootstrap_interval(values, seed=0, clusters=c, n_resamples=999).ci95 for c in (clusters, None))
    assert whole[1] - whole[0] > 4 * (apart[1] - apart[0])


def test_the_resamples_are_those_of_whole_clusters():
    # a plain bootstrap of cluster sums and sizes, without BCa's correction, which is small for symmetric effects
    values, clusters, _ = clustered(np.random.default_rng(4), "normal", np.arange(1, 61))
    found = bootstrap_interval(values, seed=0, clusters=clusters, n_resamples=3000)
    rng = np.random.default_rng(5)
    members = [values[clusters == cluster] for cluster in range(60)]
    plain = [np.concatenate([members[cluster] for cluster in rng.integers(60, size=60)]).mean() for _ in range(3000)]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.ci95 == pytest.approx((low, high), abs=0.15 * (high - low)) and found.estimate == pytest.approx(
        values.mean()
    )


def test_the_order_of_rows_and_the_names_of_clusters_do_not_matter():
    values, clusters, _ = clustered(np.random.default_rng(6), "normal", np.full(20, 3))
    order = np.random.default_rng(7).permutation(60)
    names = np.array([f"word {cluster:02}" for cluster in clusters])
    first, second = (
        bootstrap_interval(values, seed=0, clusters=clusters),
        bootstrap_interval(values[order], seed=0, clusters=names[order]),
    )
    assert first.ci95 == pytest.approx(second.ci95) and first == bootstrap_interval(values, seed=0, clusters=clusters)


def test_the_mean_is_the_statistic_mean():
    for sizes in (np.full(25, 1), np.arange(1, 26)):
        values, clusters, _ = clustered(np.random.default_rng(12), "share", sizes)
        fast, slow = (
            bootstrap_interval(values, statistic, seed=0, clusters=clusters, n_resamples=300)
            for statistic in (None, np.mean)
        )
        assert fast.ci95 == pytest.approx(slow.ci95) and fast.estimate == slow.estimate
    with pytest.raises(ValueError, match="need a statistic"):
        bootstrap_interval(np.zeros((30, 2)), seed=0)


def test_a_statistic_of_rows():
    rng = np.random.default_rng(8)
    rows = np.stack([rng.uniform(0, 1, 40), rng.uniform(1, 2, 40)], axis=1)
    found = bootstrap_interval(rows, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), seed=0)
    assert found.ci95[0] < found.estimate < found.ci95[1] and found.n_clusters == 40


def test_what_has_no_interval_says_why():
    few = bootstrap_interval(np.arange(MIN_CLUSTERS - 1.0), seed=0)
    assert few.ci95 is None and few.estimate == 9 and few.note == "19 clusters, fewer than 20, no interval"
    same = bootstrap_interval(np.full(30, 0.9), seed=0)
    assert same.ci95 is None and same.note == "every resample gives the same number, no interval"
    assert "edge" in bootstrap_interval(np.arange(30.0), lambda drawn: len(np.unique(drawn)), seed=0).note
    broken = bootstrap_interval(np.arange(30.0), lambda drawn: drawn.mean() if 29.0 in drawn else np.nan, seed=0)
    assert broken.ci95 is None and "not a number in every resample" in broken.note
    assert bootstrap_interval(np.zeros(0), seed=0).as_dict() == {
        "estimate": None, "ci95": None, "n_values": 0, "n_clusters": 0, "excluded": 0, "note": "no values",
    }  # fmt: skip


def test_values_that_are_no_numbers_are_counted():
    values = np.append(np.arange(30.0), [np.nan, np.inf])
    found = bootstrap_interval(values, seed=0)
    assert (found.excluded, found.n_values, found.n_clusters) == (2, 30, 30)
    assert found.ci95 == bootstrap_interval(np.arange(30.0), seed=0).ci95
    with pytest.raises(ValueError, match="30 values have 3 clusters"):
        bootstrap_interval(np.arange(30.0), seed=0, clusters=np.arange(3))


def slow_sign_flip(differences):
    observed = abs(sum(differences))
    patterns = list(itertools.product([1, -1], repeat=len(differences)))
    return sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-9 for signs in patterns
    ) / len(patterns)


def test_sign_flips_against_every_pattern():
    rng = np.random.default_rng(9)
    for n in (1, 2, 3, 6, 9):
        for differences in (rng.normal(0.5, 1, n), rng.integers(-2, 3, n).astype(float), np.full(n, 0.1), np.zeros(n)):
            found = paired_permutation(differences, seed=0)
            assert found.p == slow_sign_flip(differences.tolist()) and found.exact and found.p >= found.smallest_p


def test_three_seeds_cannot_be_significant():
    found = paired_permutation(np.array([1.0, 1.1, 0.9]), seed=0)
    assert found.p == found.smallest_p == 0.25 and found.note == "3 differences other than 0: p cannot go below 0.25"
    assert paired_permutation(np.array([1.0, 1.1, 0.9, 1.0, 1.2, 1.3]), seed=0).p == 2 / 64
    assert paired_permutation(np.array([1.0, 0.0, 0.0]), seed=0).p == 1


def test_many_differences_are_sampled():
    rng = np.random.default_rng(10)
    differences = rng.normal(0.25, 1, 40)
    found = paired_permutation(differences, seed=0)
    assert not found.exact and found == paired_permutation(differences, seed=0)
    # the sum of 40 flipped numbers is close to normal
    from scipy.stats import norm

    expected = 2 * norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
    assert found.p == pytest.approx(expected, rel=0.1)
    assert paired_permutation(np.full(40, 1.0), seed=0, n_resamples=99).p == 0.01


def test_sign_flips_are_calibrated_under_the_null():
    rng = np.random.default_rng(11)
    p = np.array([paired_permutation(rng.standard_t(3, 7), seed=0).p for _ in range(500)])
    assert 0.02 <= np.mean(p <= 0.05) <= 0.07 and 0.45 <= p.mean() <= 0.56


def test_nothing_to_flip():
    empty = paired_permutation(np.array([np.nan]), seed=0)
    assert empty.p is None and empty.smallest_p is None and empty.note == "1 not finite, left out; no differences"
    assert empty.as_dict() == {"p": None, "smallest_p": None, "n": 0, "exact": True, "note": empty.note}
