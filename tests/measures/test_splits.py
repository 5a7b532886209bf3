import json
from itertools import combinations

import numpy as np
import pytest
from firing_tables import firings_of, phi_of, random_on

from metasae.files import json_safe
from metasae.measures.cofiring import splits
from metasae.measures.cofiring.splits import MIN_FIRINGS, MIN_PHI, find_splits, paper_ranking
from metasae.measures.firing.firings import BLOCKS, document_blocks


def score_of(parent, children):
    """(coverage, overlap, shares, score), token by token. parent: bool [T]; children: list of bool [T]."""
    on = [[bool(child[t]) for child in children] for t in range(len(parent)) if parent[t]]
    coverage = sum(any(row) for row in on) / len(on)
    overlap = sum(sum(row) >= 2 for row in on) / len(on)
    shares = [sum(row[c] and sum(row) == 1 for row in on) / len(on) for c in range(len(children))]
    return coverage, overlap, shares, coverage * (1 - overlap) * min(shares)


def blocks_of(on, count):
    return document_blocks(firings_of(on).documents, count)


def brute_force(on, other, blocks):
    """{parent: (children, held-out coverage, overlap, shares, score)} and the parents that were scored."""
    block = blocks_of(on, blocks)
    choose, held_out = block % 2 == 0, block % 2 == 1
    feature_splits, scored = {}, []
    for p in range(on.shape[1]):
        if min(on[choose, p].sum(), on[held_out, p].sum()) < MIN_FIRINGS:
            continue
        scored.append(p)
        phis = {c: phi_of(on[choose, p], other[choose, c]) for c in range(other.shape[1])}
        candidates = sorted((-phi, c) for c, phi in phis.items() if phi is not None)[:10]
        candidates = [c for minus_phi, c in candidates if -minus_phi >= MIN_PHI]
        sets = [chosen for size in range(2, 6) for chosen in combinations(candidates, size)]
        if not sets:
            continue
        best = max(sets, key=lambda chosen: score_of(on[choose, p], [other[choose, c] for c in chosen])[3])
        coverage, overlap, shares, score = score_of(on[held_out, p], [other[held_out, c] for c in best])
        if score > 0:
            feature_splits[p] = list(best), coverage, overlap, shares, score
    return feature_splits, scored


def planted(n_tokens=1600, seed=0):
    """Parents 0 to 5 and children: 0 is split in two, 1 in three, 2 kept beside a part of it, 3 lost, 4 dense, 5 split
    by words, noisily."""
    rng = np.random.default_rng(seed)
    on = rng.random((n_tokens, 6)) < np.array([0.2, 0.3, 0.2, 0.2, 0.9, 0.25])
    part = rng.random(n_tokens)
    halves = [on[:, 0] & (part < 0.5), on[:, 0] & (part >= 0.5)]
    thirds = [on[:, 1] & (part < 1 / 3), on[:, 1] & (part >= 1 / 3) & (part < 2 / 3), on[:, 1] & (part >= 2 / 3)]
    kept = [on[:, 2], on[:, 2] & (part < 0.5)]
    noisy = [
        on[:, 5] & (part < 0.7) | (rng.random(n_tokens) < 0.05),
        on[:, 5] & (part > 0.6) & (rng.random(n_tokens) < 0.9),
    ]
    return on, np.stack([*halves, *thirds, *kept, rng.random(n_tokens) < 0.1, *noisy], 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_splits_against_the_brute_force(seed):
    on, other = planted(seed=seed)
    feature_splits = find_splits(firings_of(on), firings_of(other))
    expected, scored = brute_force(on, other, BLOCKS)
    assert feature_splits.n_parents == len(scored) and feature_splits.too_rare == on.shape[1] - len(scored)
    assert {split.parent for split in feature_splits.ranked} == set(expected)
    for split in feature_splits.ranked:
        children, coverage, overlap, shares, score = expected[split.parent]
        assert list(split.children) == children
        np.testing.assert_allclose([split.coverage, split.overlap, split.score], [coverage, overlap, score], atol=1e-12)
        np.testing.assert_allclose(split.shares, shares, atol=1e-12)
        half = blocks_of(on, BLOCKS) % 2 == 0
        np.testing.assert_allclose(
            split.phi, [phi_of(on[half, split.parent], other[half, c]) for c in children], atol=1e-6
        )
        assert split.firings == on[~half, split.parent].sum()
    scores = {split.parent: split.score for split in feature_splits.ranked}
    assert [split.parent for split in feature_splits.ranked] == sorted(scores, key=lambda p: (-scores[p], p))
    assert 0.4 < scores[0] <= 0.5 and 0.25 < scores[1] <= 1 / 3 and scores[5] > 0.1
    # kept as it is, lost, or dense: no split
    assert not {2, 3, 4} & set(scores)
    everyone = np.array([scores.get(p, 0.0) for p in scored])
    summary = feature_splits.as_dict()
    assert summary["mean_score"] == pytest.approx(everyone.mean()) == pytest.approx(summary["mean_top"])
    for limit in (0.1, 0.25):
        assert summary[f"n_above_{limit}"] == int((everyone > limit).sum())
        assert summary[f"share_above_{limit}"] == (everyone > limit).mean()


@pytest.mark.parametrize("seed", [2, 3])
def test_random_overlapping_latents_against_the_brute_force(seed):
    rng = np.random.default_rng(seed)
    themes = rng.random((700, 4)) < 0.3
    on, other = (
        themes[:, rng.integers(0, 4, n)] & (rng.random((700, n)) < 0.8) | (rng.random((700, n)) < 0.05) for n in (5, 14)
    )
    feature_splits = find_splits(firings_of(on), firings_of(other))
    expected, _ = brute_force(on, other, BLOCKS)
    assert {split.parent: split.score for split in feature_splits.ranked} == {
        p: pytest.approx(score, abs=1e-12) for p, (*_, score) in expected.items()
    }


def test_merges_are_splits_asked_the_other_way_round():
    on, other = planted()
    merges = find_splits(firings_of(other), firings_of(on))
    assert {split.parent for split in merges.ranked} == set(brute_force(other, on, BLOCKS)[0])


def test_parents_in_pieces_give_the_same(monkeypatch):
    on, other = planted()
    whole = find_splits(firings_of(on), firings_of(other))
    monkeypatch.setattr(splits, "PARENTS", 2)
    assert find_splits(firings_of(on), firings_of(other)) == whole


def test_an_sae_against_itself_has_no_splits():
    on, _ = planted()
    feature_splits = find_splits(firings_of(on), firings_of(on))
    summary = feature_splits.as_dict()
    assert feature_splits.ranked == () and feature_splits.n_parents == 6 and summary["mean_score"] == 0
    assert summary["n_above_0.1"] == summary["n_above_0.25"] == 0


@pytest.mark.parametrize("document_length", [1200, 9])
@pytest.mark.parametrize("on", [np.zeros((0, 3)), np.zeros((30, 3)), np.ones((1, 3)), np.eye(30)[:, :3]])
def test_too_little_to_go_by(on, document_length):
    firings = firings_of(on, document_length)
    feature_splits = find_splits(firings, firings)
    assert (feature_splits.n_parents, feature_splits.too_rare, feature_splits.ranked) == (0, 3, ())
    summary = feature_splits.as_dict()
    assert summary["mean_score"] is summary["mean_top"] is summary["share_above_0.1"] is None


def test_as_dict_is_json():
    on, other = planted()
    feature_splits = find_splits(firings_of(on), firings_of(other))
    assert (
        len(feature_splits.as_dict(1)["ranked"]) == 1
        and json.loads(json.dumps(json_safe(feature_splits.as_dict())))["n_parents"] == 6
    )


def paper_by_hand(on, other, max_rate):
    """[(second phi, parent)] by brute force."""
    feature_splits = []
    for p in range(on.shape[1]):
        phis = [phi_of(on[:, p], other[:, c]) for c in range(other.shape[1]) if other[:, c].mean() <= max_rate]
        phis = sorted((phi for phi in phis if phi is not None), reverse=True)
        if on[:, p].mean() <= max_rate and len(phis) >= 2:
            feature_splits.append((phis[1], p))
    return sorted(feature_splits, key=lambda pair: (-pair[0], pair[1]))


def test_the_papers_ranking():
    rng = np.random.default_rng(4)
    on, other = rng.random((300, 12)) < rng.uniform(0, 0.1, 12), rng.random((300, 15)) < rng.uniform(0, 0.1, 15)
    ranking = paper_ranking(firings_of(on), firings_of(other))
    expected = paper_by_hand(on, other, 0.05)
    assert len(expected) > 3 and [entry["parent"] for entry in ranking] == [p for _, p in expected]
    np.testing.assert_allclose([entry["phi"][1] for entry in ranking], [phi for phi, _ in expected], atol=1e-6)
    for entry in ranking:
        second = phi_of(on[:, entry["parent"]], other[:, entry["children"][1]])
        assert entry["phi"][0] >= entry["phi"][1] == pytest.approx(second, abs=1e-6)
    assert len(paper_ranking(firings_of(on), firings_of(other), count=2)) == 2


def test_other_tokens_are_refused():
    firings = firings_of(random_on(20, 6, 0))
    longer = firings_of(random_on(21, 6, 0))
    for measure in (find_splits, paper_ranking):
        with pytest.raises(ValueError, match="same tokens"):
            measure(firings, longer)
