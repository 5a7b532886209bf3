import json
from itertools import combinations

import numpy as np
import pytest
from firing_tables import firings_of, phi_of, random_on

from metasae.files import json_safe
from metasae.measures.cofiring import splits
from metasae.measures.cofiring.splits import MIN_FIRINGS, MIN_PHI, find_splits, paper_ranking
from metasae.measures.cofiring.survival import SAME
from metasae.measures.firing.firings import BLOCKS, document_blocks


def phi_table(on, other):
    """phi of every latent of one SAE with every one of the other as the measure keeps it, 0 where one never varies."""
    return np.array([[np.float32(phi_of(a, b) or 0.0) for b in other.T] for a in on.T], np.float64)


def counterpart_of(phis, family):
    """(latent, phi) of the largest phi, outside the family unless it is above .8."""
    counterparts = [(-phi, j) for j, phi in enumerate(phis.tolist()) if phi > 0 and (phi > SAME or j not in family)]
    return (min(counterparts)[1], -min(counterparts)[0]) if counterparts else (None, 0.0)


def score_of(on, other, phi, parent, children):
    """(coverage, overlap, shares, the parent's counterpart, the children's, score), token by token.

    phi: their `phi_table`.
    """
    rows = [[bool(other[t, c]) for c in children] for t in range(len(on)) if on[t, parent]]
    coverage = sum(any(row) for row in rows) / len(rows)
    overlap = sum(sum(row) >= 2 for row in rows) / len(rows)
    shares = [sum(row[c] and sum(row) == 1 for row in rows) / len(rows) for c in range(len(children))]
    lives_on = counterpart_of(phi[parent], children)
    already = [counterpart_of(phi[:, child], [parent]) for child in children]
    new = 1 - max(phi for _, phi in already)
    return (
        coverage,
        overlap,
        shares,
        lives_on,
        already,
        coverage * (1 - overlap) * min(shares) * (1 - lives_on[1]) * new,
    )


def blocks_of(on, count=BLOCKS):
    return document_blocks(firings_of(on).documents, count)


def candidates_of(on, other, p):
    """The up to ten latents with the largest phi with a parent, phi at least .2, largest first."""
    phis = {c: phi_of(on[:, p], other[:, c]) for c in range(other.shape[1])}
    ranked = sorted((-phi, c) for c, phi in phis.items() if phi is not None)[:10]
    return [c for minus_phi, c in ranked if -minus_phi >= MIN_PHI]


def brute_force(on, other):
    """({parent: its best sets on the tokens to choose on, all that tie}, the parents that were scored)."""
    choose, held_out = blocks_of(on) % 2 == 0, blocks_of(on) % 2 == 1
    best, scored, phi = {}, [], phi_table(on[choose], other[choose])
    for p in range(on.shape[1]):
        if min(on[choose, p].sum(), on[held_out, p].sum()) < MIN_FIRINGS:
            continue
        scored.append(p)
        candidates = candidates_of(on[choose], other[choose], p)
        sets = [chosen for size in range(2, 6) for chosen in combinations(candidates, size)]
        scores = [score_of(on[choose], other[choose], phi, p, chosen)[-1] for chosen in sets]
        best[p] = [chosen for chosen, score in zip(sets, scores, strict=True) if score >= max(scores) - 1e-9]
    return best, scored


def check(on, other):
    """All that `find_splits` says, against the brute force; gives it back."""
    feature_splits = find_splits(firings_of(on), firings_of(other))
    best, scored = brute_force(on, other)
    choose, held_out = blocks_of(on) % 2 == 0, blocks_of(on) % 2 == 1
    assert feature_splits.n_parents == len(scored) and feature_splits.too_rare == on.shape[1] - len(scored)
    sides = on[held_out], other[held_out]
    sides += (phi_table(*sides),)
    for split in feature_splits.ranked:
        p, children = split.parent, split.children
        assert children in best[p]
        coverage, overlap, shares, lives_on, already, score = score_of(*sides, p, children)
        np.testing.assert_allclose([split.coverage, split.overlap, *split.shares], [coverage, overlap, *shares])
        assert split.score == pytest.approx(score, rel=1e-6) and split.score > 0
        assert [tuple(split.lives_on), *map(tuple, split.already)] == [lives_on, *already]
        assert split.kept == (lives_on[1] > SAME or all(phi > SAME for _, phi in already))
        np.testing.assert_allclose(split.phi, [phi_of(on[choose, p], other[choose, c]) for c in children], atol=1e-6)
        assert split.firings == on[held_out, p].sum()
    without = {p for p in scored if best[p]} - {split.parent for split in feature_splits.ranked}
    for p in without:
        assert 0 in [score_of(*sides, p, chosen)[-1] for chosen in best[p]]
    order = [(split.kept, -split.score, split.parent) for split in feature_splits.ranked]
    assert order == sorted(order)
    return feature_splits


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
    feature_splits = check(on, other)
    scores = {split.parent: split.score for split in feature_splits.ranked}
    assert 0.35 < scores[0] <= 0.5 and 0.2 < scores[1] <= 1 / 3 and scores[5] > 0.1
    # kept as it is, lost, or dense: no split
    assert not {2, 3, 4} & set(scores)
    assert not any(split.kept for split in feature_splits.ranked)
    everyone = np.array([scores.get(p, 0.0) for p in range(on.shape[1])])
    summary = feature_splits.as_dict()
    assert summary["mean_score"] == pytest.approx(everyone.mean()) == pytest.approx(summary["mean_top"])
    for limit in (0.1, 0.25):
        assert summary[f"n_above_{limit}"] == int((everyone > limit).sum())
        assert summary[f"share_above_{limit}"] == (everyone > limit).mean()


@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_random_overlapping_latents_against_the_brute_force(seed):
    """Two SAEs over four themes, with copies of the other one's latents, a dead latent, one always on, a duplicate."""
    rng = np.random.default_rng(seed)
    themes = rng.random((700, 4)) < 0.3
    on, other = (
        themes[:, rng.integers(0, 4, n)] & (rng.random((700, n)) < 0.8) | (rng.random((700, n)) < 0.05) for n in (5, 14)
    )
    copies = on[:, :2] ^ (rng.random((700, 2)) < [0, 0.03])
    other = np.hstack([other, copies, random_on(700, 6, seed)])
    on = np.hstack([on, other[:, :3], random_on(700, 6, seed + 9)])
    assert check(on, other).ranked


@pytest.mark.parametrize("seed", range(4))
def test_coarse_firings_full_of_ties_against_the_brute_force(seed):
    """Every latent fires on whole quarters of a short pattern that repeats, so that most sets tie."""
    rng = np.random.default_rng(seed)
    on, other = (np.tile(rng.random((8, n)) < 0.5, (100, 1)) for n in (7, 12))
    check(on, other)


def halves(share=0.5, n_tokens=4000, seed=0):
    """A parent, its two parts, and the generator they come from."""
    rng = np.random.default_rng(seed)
    parent, part = rng.random(n_tokens) < 0.1, rng.random(n_tokens) < share
    return parent, parent & part, parent & ~part, rng


def only_split(on, other):
    return next(split for split in check(np.stack(on, 1), np.stack(other, 1)).ranked if split.parent == 0)


def test_a_split_needs_the_parent_gone_and_the_children_new():
    parent, one, two, rng = halves()
    noise = rng.random(len(parent)) < 0.1
    clean = only_split([parent, noise], [one, two])
    assert clean.children in ((0, 1), (1, 0)) and not clean.kept and 0.45 < clean.score <= 0.5
    # the parent is there still, but for a tenth of its firings
    kept = only_split([parent, noise], [one, two, parent & (rng.random(len(parent)) < 0.9)])
    assert kept.lives_on.latent == 2 and kept.lives_on.phi > 0.9 and kept.kept and kept.score < 0.05


def test_one_old_child_takes_the_score_and_all_old_children_the_split():
    parent, one, two, rng = halves()
    almost = [half & (rng.random(len(parent)) < 0.9) for half in (one, two)]
    narrower = only_split([parent, almost[0]], [one, two])
    old = dict(zip(narrower.children, narrower.already, strict=True))
    assert old[0].latent == 1 and old[0].phi > 0.9 and old[1].phi < 0.1
    assert narrower.score < 0.05 and not narrower.kept
    both = only_split([parent, *almost], [one, two])
    assert both.kept and both.score < 0.05


def test_a_child_that_is_the_parent_is_the_parent_living_on():
    """A share of nine tenths has phi .95 with the whole."""
    parent, most, rest, rng = halves(share=0.9)
    split = only_split([parent, rng.random(len(parent)) < 0.1], [most, rest])
    assert split.children == (0, 1) and split.lives_on.latent == 0 and split.kept and split.score < 0.01
    assert split.already[0].latent == 0


def test_merges_are_splits_asked_the_other_way_round():
    on, other = planted()
    assert check(other, on).n_parents == other.shape[1]


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
