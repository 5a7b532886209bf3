import numpy as np
import pytest

from metasae.intervals.resampling import MIN_CLUSTERS, bootstrap_interval


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
    bootstrap = bootstrap_interval(values, seed=0, clusters=clusters, n_resamples=3000)
    rng = np.random.default_rng(5)
    members = [values[clusters == cluster] for cluster in range(60)]
    plain = [np.concatenate([members[cluster] for cluster in rng.integers(60, size=60)]).mean() for _ in range(3000)]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert bootstrap.ci95 == pytest.approx(
        (low, high), abs=0.15 * (high - low)
    ) and bootstrap.estimate == pytest.approx(values.mean())


def test_the_order_of_rows_and_the_names_of_clusters_do_not_matter():
    values, clusters, _ = clustered(np.random.default_rng(6), "normal", np.full(20, 3))
    order = np.random.default_rng(7).permutation(60)
    names = np.array([f"word {cluster:02}" for cluster in clusters])
    first, second = (
        bootstrap_interval(values, seed=0, clusters=clusters),
        bootstrap_interval(values[order], seed=0, clusters=names[order]),
    )
    assert first.ci95 == pytest.approx(second.ci95) and first == bootstrap_interval(values, seed=0, clusters=clusters)


def test_what_has_no_interval_says_why():
    few = bootstrap_interval(np.arange(MIN_CLUSTERS - 1.0), seed=0)
    assert few.ci95 is None and few.estimate == 9 and few.note == "19 clusters, fewer than 20, no interval"
    same = bootstrap_interval(np.full(30, 0.9), seed=0)
    assert same.ci95 is None and same.note == "every resample gives the same number, no interval"
    assert bootstrap_interval(np.zeros(0), seed=0).as_dict() == {
        "estimate": None, "ci95": None, "n_values": 0, "n_clusters": 0, "excluded": 0, "note": "no values",
    }  # fmt: skip


def test_values_that_are_no_numbers_are_counted():
    values = np.append(np.arange(30.0), [np.nan, np.inf])
    bootstrap = bootstrap_interval(values, seed=0)
    assert (bootstrap.excluded, bootstrap.n_values, bootstrap.n_clusters) == (2, 30, 30)
    assert bootstrap.ci95 == bootstrap_interval(np.arange(30.0), seed=0).ci95
