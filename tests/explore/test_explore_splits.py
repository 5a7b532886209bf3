"""The split explorer: planted splits are found, and what is shown of one equals counting."""

import json
import shutil
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from explored import of_latent, phi_by_hand, random_firings, words_of, write_arm

from metasae.explore.pages import run_files
from metasae.explore.pages.queries import Explorer
from metasae.explore.store.build import build
from sparse_firings import firings_from

WORDS, OTHERS, TOKENS, DOCUMENT = 40, 60, 24_000, 120


def two_senses(seed=0):
    """(solo, joint, children of each parent): solo has a latent per word, joint one per sense of every word.

    Both have others beside them. Every firing is missed one time in twenty; every latent fires here and there; some of
    the others of both SAEs fire on most of a word.
    """
    rng = np.random.default_rng(seed)
    word = np.where(rng.random(TOKENS) < 0.6, rng.integers(WORDS, size=TOKENS), -1)
    share = rng.uniform(0.3, 0.7, WORDS)
    sense = (rng.random(TOKENS) > share[word]).astype(int)
    place = np.arange(TOKENS, dtype=np.int32)
    documents, positions = place // DOCUMENT, place % DOCUMENT
    tokens = np.where(word >= 0, word, WORDS + rng.integers(200, size=TOKENS)).astype(np.int32)
    # distractors: topics of documents, other tokens, and a word shared with another one
    topics = rng.random((documents.max() + 1, OTHERS)) < 0.15
    others = topics[documents] & (rng.random((TOKENS, OTHERS)) < 0.1)
    others[:, ::3] = (tokens[:, None] % (7 + np.arange(0, OTHERS, 3)) == 3) & (
        rng.random((TOKENS, OTHERS))[:, ::3] < 0.5
    )

    def with_noise(on):
        n = on.shape[1]
        return (on & (rng.random((TOKENS, n)) > 0.05)) | (rng.random((TOKENS, n)) < 0.001)

    parents = with_noise(np.hstack([word[:, None] == np.arange(WORDS), others]))
    senses = np.hstack([(word[:, None] == np.arange(WORDS)) & (sense[:, None] == s) for s in (0, 1)])
    children = with_noise(np.hstack([senses, others]))
    order = rng.permutation(children.shape[1])
    where = np.argsort(order)
    sides = [
        firings_from(on, rng.random(on.shape) + 0.5, documents, tokens, positions)
        for on in (parents, children[:, order])
    ]
    return *sides, [{int(where[w]), int(where[WORDS + w])} for w in range(WORDS)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    solo, joint, children = two_senses()
    write_arm(folder, "solo-s0", solo, seed=0)
    write_arm(folder, "joint-s0", joint, seed=1)
    build(folder, strings=words_of(solo))
    return Explorer(folder), solo, joint, children


def test_planted_splits_are_the_top_candidates_with_the_right_children(planted):
    explorer, _, _, children = planted
    rows = explorer.splits(limit=WORDS)["rows"]
    right = [
        row
        for row in rows
        if row["parent"]["latent"] < WORDS
        and {c["latent"] for c in row["children"]} == children[row["parent"]["latent"]]
    ]
    assert len(right) >= 0.9 * WORDS
    for row in right:
        shown = explorer.split(row["id"])
        assert shown["flow"]["none"] + shown["flow"]["two_or_more"] < 0.2 * shown["flow"]["parent_firings"]


def test_merges_are_read_from_the_other_arm(planted):
    merges = planted[0].splits(kind="merges")
    assert merges["pairs"] == ["joint-s0 -> solo-s0"]
    assert {row["parent"]["sae"] for row in merges["rows"]} == {"joint-s0"}
    assert {child["sae"] for row in merges["rows"] for child in row["children"]} == {"solo-s0"}


def test_what_lives_on_is_hidden_until_it_is_asked_for(planted):
    explorer, solo, joint, _ = planted
    shown, everything = explorer.splits(limit=500), explorer.splits(limit=500, kept=True)
    hidden = [row for row in everything["rows"] if row["kept"]]
    assert len(hidden) == shown["n_kept"] == everything["n_kept"] == shown["summary"]["n_kept"] > 0
    assert everything["total"] == shown["total"] + len(hidden)
    # the first ones are those that are shown anyway
    assert everything["rows"] == shown["rows"] + hidden and not any(row["kept"] for row in shown["rows"])
    assert shown["summary"]["n_above_0.1"] == sum(row["score"] > 0.1 for row in everything["rows"])
    for row in everything["rows"]:
        others = [row["parent"]["lives_on"], *(child["already"] for child in row["children"])]
        same = [other is not None and other["same"] for other in others]
        assert row["kept"] == (same[0] or all(same[1:]))
        assert same == [other is not None and other["phi"] > 0.8 for other in others]
        assert all(other["sae"] == ("solo-s0" if i else "joint-s0") for i, other in enumerate(others) if other)
    # a latent that both have lives on, about as much as over all tokens
    row = next(row for row in hidden if row["parent"]["lives_on"]["same"])
    phi = phi_by_hand(solo, row["parent"]["latent"], joint, row["parent"]["lives_on"]["latent"])
    assert row["parent"]["lives_on"]["phi"] == pytest.approx(phi, abs=0.1)


def test_a_split_equals_counting(planted):
    explorer, solo, joint, _ = planted
    for row in explorer.splits(limit=3)["rows"]:
        page, parent, latents = (
            explorer.split(row["id"]),
            row["parent"]["latent"],
            [child["latent"] for child in row["children"]],
        )
        fired = set(of_latent(solo, parent)[0].tolist())
        on = [set(of_latent(joint, child)[0].tolist()) for child in latents]
        several = set().union(*(a & b for a, b in combinations(on, 2)))
        assert page["flow"] == {
            "parent_firings": len(fired),
            "alone": [len((fired & child) - several) for child in on],
            "two_or_more": len(fired & several),
            "none": len(fired - set().union(*on)),
        }
        assert [child["firings"] for child in page["children"]] == [len(child) for child in on]
        assert [child["with_parent"] for child in page["children"]] == [len(child & fired) for child in on]
        every = [(solo, parent), *((joint, child) for child in latents)]
        for i, one in enumerate(every):
            for j, other in enumerate(every):
                assert page["phi"][i][j] == pytest.approx(phi_by_hand(*one, *other))
        counted = Counter(solo.tokens[sorted(fired)].tolist())
        names = [int(token.removeprefix(" w")) for token in page["tokens"]["tokens"]]
        assert (
            page["tokens"]["parent"]
            == [counted[name] for name in names]
            == sorted(counted.values(), reverse=True)[: len(names)]
        )
        for child, counts, lift in zip(on, page["tokens"]["counts"], page["tokens"]["lift"], strict=True):
            together_with = Counter(solo.tokens[sorted(fired & child)].tolist())
            assert counts == [together_with[name] for name in names]
            total = sum(together_with.values())
            assert lift == pytest.approx([together_with[name] / total / (counted[name] / len(fired)) for name in names])
        for window in page["windows"]:
            places = range(window["place"], window["place"] + len(window["tokens"]))
            assert [value > 0 for value in window["parent"]] == [place in fired for place in places]
            for values, child in zip(window["children"], on, strict=True):
                assert [value > 0 for value in values] == [place in child for place in places]
            peak = window["place"] + window["peak"]
            assert peak in fired
            assert window["fires"] == [i for i, child in enumerate(on) if peak in child]
        rows = np.array(page["cosine"])
        assert np.allclose(np.diag(rows), 1)
        assert np.allclose(rows, rows.T)


def test_pages_of_candidates(planted):
    explorer, *_ = planted
    first = explorer.splits()
    assert [row["score"] for row in first["rows"]] == sorted((row["score"] for row in first["rows"]), reverse=True)
    assert first["rows"][1:3] == explorer.splits(offset=1, limit=2)["rows"]
    assert explorer.splits(offset=10**6)["rows"] == []
    assert explorer.splits(limit=0)["rows"] == []
    best = first["rows"][0]
    assert explorer.latent("solo-s0", best["parent"]["latent"])["scalars"]["split_score"] == best["score"]
    assert best["id"] in explorer.latent("joint-s0", best["children"][0]["latent"])["splits"]
    # one seed
    assert explorer.splits()["base_rate"] is None and explorer.splits()["same_seed"]


def test_candidates_are_filtered_among_all_of_the_pair(planted):
    explorer, *_ = planted
    rows = explorer.splits(limit=500)["rows"]

    def found(**filters):
        answer = explorer.splits(limit=500, **filters)
        assert answer["total"] == len(answer["rows"])
        assert answer["rows"][1:2] == explorer.splits(offset=1, limit=1, **filters)["rows"]
        return [row["id"] for row in answer["rows"]]

    def sides(row):
        return [row["parent"], *row["children"]]

    number = rows[-1]["children"][0]["latent"]
    assert found(search=f" {number} ") == [
        row["id"] for row in rows if number in [side["latent"] for side in sides(row)]
    ]
    assert found(min_score=0.1) == [row["id"] for row in rows if row["score"] >= 0.1] != []
    by_token = found(search="w1")
    assert set(by_token) >= {
        row["id"]
        for row in rows
        if any(token.strip().startswith("w1") for side in sides(row) for token in side["top_tokens"])
    }
    assert found(search="w1", min_score=0.1) == [id for id in by_token if id in found(min_score=0.1)]
    assert found(search="no such token") == found(label="junk") == found(min_score=2.0) == []
    explorer.set_label({"kind": "split", "id": rows[-1]["id"]}, "junk")
    assert found(label="junk") == [rows[-1]["id"]]


def test_a_split_can_be_labelled(planted):
    explorer, *_ = planted
    name = explorer.splits()["rows"][0]["id"]
    explorer.set_label({"kind": "split", "id": name}, "sense split", "as planted")
    assert explorer.splits()["rows"][0]["label"] == "sense split"
    assert [saying["note"] for saying in explorer.split(name)["labels"]] == ["as planted"]


def test_the_base_rate_is_solo_in_its_next_seed(tmp_path):
    firings = [random_firings(seed, n=30, lengths=(50,) * 40, vocabulary=30) for seed in range(3)]
    for seed in range(2):
        write_arm(tmp_path, f"solo-s{seed}", firings[seed], seed=seed)
        write_arm(tmp_path, f"joint-s{seed}", firings[2], seed=5 + seed)
    build(tmp_path, strings=words_of(firings[0]))
    explorer = Explorer(tmp_path)
    shown = explorer.splits()
    assert shown["pairs"] == ["solo-s0 -> joint-s1"] and not shown["same_seed"]
    assert shown["base_pairs"] == ["solo-s0 -> solo-s1"]
    assert shown["base_rate"]["pair"] == "solo-s0 -> solo-s1"
    merges = explorer.splits(kind="merges")
    assert merges["pairs"] == ["joint-s1 -> solo-s0"] and merges["base_pairs"] == ["solo-s1 -> solo-s0"]
    assert merges["base_rate"]["pair"] == "solo-s1 -> solo-s0"
    # control has solo's weights, so that its splits are the base rate
    for seed in range(2):
        shutil.copytree(tmp_path / "arms" / f"solo-s{seed}", tmp_path / "arms" / f"control-s{seed}")
    build(tmp_path, strings=words_of(firings[0]))
    assert Explorer(tmp_path).splits()["pairs"] == ["solo-s0 -> joint-s1"]
    base = explorer.splits("solo-s0 -> solo-s1")
    assert base["summary"] | {"pair": base["pair"]} == shown["base_rate"]


def test_a_split_is_told_beside_those_between_two_seeds_of_solo(tmp_path):
    solo, joint, _ = two_senses()
    arms = (("solo-s0", solo), ("solo-s1", joint), ("joint-s0", solo), ("joint-s1", joint))
    for seed, (name, firings) in enumerate(arms):
        write_arm(tmp_path, name, firings, seed=seed)
    build(tmp_path, strings=words_of(solo))
    explorer = Explorer(tmp_path)
    scores = [row["score"] for row in explorer.splits("solo-s0 -> solo-s1", limit=500)["rows"]]
    shown = explorer.splits("solo-s0 -> joint-s1")
    for row in shown["rows"][:3]:
        told = explorer.split(row["id"])["base"]
        assert told["as_good"] == sum(score >= row["score"] for score in scores) > 0 and told["whole"]
        assert (told["pair"], told["n_parents"]) == ("solo-s0 -> solo-s1", shown["base_rate"]["n_parents"])
    assert explorer.split(explorer.splits("solo-s0 -> solo-s1")["rows"][0]["id"])["base"] is None


def test_without_firings_the_candidates_of_across_are_shown(tmp_path):
    split = {
        "parent": 3,
        "children": [4, 5],
        "phi": [0.6, 0.5],
        "coverage": 0.9,
        "overlap": 0.1,
        "shares": [0.4, 0.4],
        "lives_on": {"latent": 7, "phi": 0.4, "same": False},
        "already": [{"latent": None, "phi": 0.0, "same": False}, {"latent": 2, "phi": 0.9, "same": True}],
        "score": 0.3,
        "firings": 99,
        "kept": False,
    }
    part = {
        "with": "solo-s0",
        "of": ["weights solo-s0 0", "weights joint-s0 1"],
        "n_parents": 12,
        "n_kept": 0,
        "mean_score": 0.02,
        "ranked": [split],
    }
    for seed, name in enumerate(("solo-s0", "joint-s0")):
        write_arm(tmp_path, name, None, seed=seed)
    (tmp_path / "across.json").write_text(
        json.dumps({"joint-s0": {"same_seed_splits": part, "same_seed_merges": {**part, "of": ["other", "weights"]}}})
    )
    build(tmp_path)
    explorer = Explorer(tmp_path)
    shown = explorer.splits()
    assert (shown["pair"], shown["total"], shown["summary"]["n_parents"]) == ("solo-s0 -> joint-s0", 1, 12)
    page = explorer.split(shown["rows"][0]["id"])
    assert page["parent"]["lives_on"] == {"sae": "joint-s0", "latent": 7, "phi": 0.4, "same": False}
    was = {"sae": "solo-s0", "latent": 2, "phi": 0.9, "same": True}
    assert [child["already"] for child in page["children"]] == [None, was]
    assert page["flow"] is None
    assert page["windows"] == []
    assert len(page["cosine"]) == 3
    assert explorer.splits(kind="merges")["pairs"] == []
    assert explorer.latent("solo-s0", 3)["scalars"]["split_score"] == 0.3


def test_a_store_outlives_its_firings(tmp_path):
    firings = random_firings(n=30, lengths=(50,) * 40, vocabulary=30)
    write_arm(tmp_path, "solo-s0", firings)
    write_arm(tmp_path, "joint-s0", firings, seed=1)
    build(tmp_path, strings=words_of(firings))
    shutil.rmtree(tmp_path / "arms" / "joint-s0" / "firings")
    explorer = Explorer(tmp_path)
    assert explorer.compare_latents(("solo-s0", 3), ("joint-s0", 3))["phi"] is None
    assert explorer.latent("joint-s0", 3)["windows"]
    for row in explorer.splits()["rows"][:1]:
        assert explorer.split(row["id"])["flow"] is None


def test_places_apart_are_the_strongest_ones():
    rng = np.random.default_rng(0)
    for count in (3, 50, 5000):
        places, strength = np.sort(rng.choice(20_000, 5000, replace=False)), rng.integers(1, 9, 5000) / 4
        kept = []
        for place, _ in sorted(
            zip(places.tolist(), strength.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])
        ):
            if len(kept) < count and all(abs(place - other) >= 16 for other in kept):
                kept.append(place)
        assert run_files.apart(places, strength, count) == kept


def test_phi_of_latents_that_never_vary_is_none():
    assert run_files.phi(0, 0, 5, 10) is None
    assert run_files.phi(5, 10, 5, 10) is None
    assert run_files.phi(5, 5, 5, 10) == 1
