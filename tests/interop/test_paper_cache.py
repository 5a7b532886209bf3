"""The paper's cache of windows, read back with safetensors and numpy alone, as its scorer reads it."""

import json

import numpy as np
import pytest
from arm_folders import ADVERSARIAL, entries_of, firings_of, random_firings, write_arm
from safetensors.numpy import load_file

from metasae.errors import UserError
from metasae.interop.paper_cache import Pools, draw, export_paper_cache
from metasae.measures.rows.seeds import match
from metasae.sae.sae import SAE

SMALL = Pools(train_top=3, train_each=2, fuzz_each=1, detect=2, boundary=1)
LENGTHS = tuple([30, 45, 60] * 8)


@pytest.fixture
def arms(tmp_path):
    """Two arms over the same text with different firings; latent 0 is dead, 1 always on, 2 fires once."""
    firings = random_firings(1, LENGTHS, n=9), random_firings(2, LENGTHS, n=9)
    for array in ("documents", "tokens", "positions"):
        object.__setattr__(firings[1], array, getattr(firings[0], array))
    return [
        (write_arm(tmp_path / name, own, arm=name), own) for name, own in zip(("joint", "solo"), firings, strict=True)
    ]


def read(folder, label):
    tensors = load_file(folder / f"{label}.safetensors")
    assert {name: array.dtype.str for name, array in tensors.items()} == {
        "tokens": "<i4",
        "peak_vals": "<f4",
        "feature_indices": "<i4",
    }
    return tensors, json.loads((folder / f"{label}_meta.json").read_text())


def windows_in(firings, length):
    """text of `length` tokens -> the tokens of the split it may end at, by going through all documents; a gap ends a
    document.
    """
    where = {}
    for token in range(length - 1, firings.n_tokens):
        span = range(token - length + 1, token + 1)
        steps = [
            (firings.documents[t] - firings.documents[span[0]], firings.positions[t] - firings.positions[span[0]])
            for t in span
        ]
        if steps == [(0, i) for i in range(length)]:
            where.setdefault(tuple(int(firings.tokens[t]) for t in span), []).append(token)
    return where


def test_every_window_ends_at_a_firing_of_its_strength(tmp_path, arms):
    folder, firings = arms[0]
    counts = export_paper_cache(folder, tmp_path / "out", context=12, random=20, pools=SMALL)
    tensors, meta = read(tmp_path / "out", "joint")
    where, entries = windows_in(firings, 12), entries_of(firings)
    sides = {"train": set(), "rest": set()}
    for latent, windows, peaks in zip(tensors["feature_indices"], tensors["tokens"], tensors["peak_vals"], strict=True):
        for place, (window, peak) in enumerate(zip(windows, peaks, strict=True)):
            ends = [token for token in where[tuple(window.tolist())] if entries.get((token, int(latent))) == peak]
            assert len(ends) == 1, "12 tokens of this text stand in one place"
            sides["train" if place < meta["n_train"] else "rest"].add(int(firings.documents[ends[0]]))
    assert not sides["train"] & sides["rest"], "explained from one half of the documents, scored on the other"
    random = load_file(tmp_path / "out" / "random_contexts.safetensors")["tokens"]
    assert random.shape == (20, 12) and random.dtype == np.int32 and len(np.unique(random, axis=0)) == 20
    assert {int(firings.documents[where[tuple(window.tolist())][0]]) for window in random} <= sides["rest"]
    assert counts["joint"]["written"] + counts["joint"]["left_out"] == 8, "the dead latent is not among them"
    assert {0, 2}.isdisjoint(tensors["feature_indices"].tolist()) and 1 in tensors["feature_indices"]


def test_the_pools_stand_where_the_meta_says(tmp_path, arms):
    export_paper_cache(arms[0][0], tmp_path / "out", context=12, pools=SMALL)
    tensors, meta = read(tmp_path / "out", "joint")
    sizes = {"n_train": 11, "n_fuzz": 5, "n_detect": 2, "n_boundary": 1, "K_total": 19, "ctx_len": 12}
    assert {key: meta[key] for key in sizes} == sizes and meta["label"] == "joint"
    assert meta["feature_indices"] == tensors["feature_indices"].tolist() and meta["n_features"] == len(
        tensors["tokens"]
    )
    assert tensors["tokens"].shape == (meta["n_features"], 19, 12) and (tensors["peak_vals"] > 0).all()
    peaks = tensors["peak_vals"]
    assert (peaks[:, :3].min(1) >= peaks[:, 3:11].max(1)).all(), (
        "the first three to explain from are of the strongest fifth"
    )
    assert (peaks[:, 16:18].min(1) >= peaks[:, 18]).all(), "detect is of the strongest fifth, boundary of the weakest"


def test_two_arms_are_matched_row_by_row(tmp_path, arms):
    (joint, _), (solo, _) = arms
    counts = export_paper_cache(joint, tmp_path / "out", other=solo, context=12, pools=SMALL)
    (ours, _), (theirs, _) = read(tmp_path / "out", "joint"), read(tmp_path / "out", "solo")
    pairs = np.load(tmp_path / "out" / "feature_pairs.npz", allow_pickle=False)
    assert np.array_equal(pairs["joint_indices"], ours["feature_indices"]) and np.array_equal(
        pairs["solo_indices"], theirs["feature_indices"]
    )
    wanted = match(SAE.load(joint / "primary").W_dec.detach(), SAE.load(solo / "primary").W_dec.detach())
    assert np.array_equal(wanted.partner[pairs["joint_indices"]], pairs["solo_indices"])
    assert np.allclose(wanted.cosine[pairs["joint_indices"]], pairs["cosines"])
    assert counts["joint"] == counts["solo"] and counts["joint"]["written"] == len(pairs["cosines"]) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "feature_pairs.npz",
        "joint.safetensors",
        "joint_meta.json",
        "random_contexts.safetensors",
        "solo.safetensors",
        "solo_meta.json",
    ]


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path, arms):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        export_paper_cache(arms[0][0], tmp_path / name, context=12, pools=SMALL, seed=seed)
    a, b, c = ((tmp_path / name / "joint.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_draw_by_hand():
    # ten firings on each side, strengths 10 to 1: fifths of two
    strengths = np.tile(np.arange(10, 0, -1), 2).astype(np.float32)
    scoring = np.repeat([False, True], 10)
    pools = Pools(train_top=2, train_each=1, fuzz_each=1, detect=1, boundary=1)
    drawn = draw(strengths, scoring, pools, np.random.default_rng(0))
    assert set(drawn[:2]) == {0, 1} and all(drawn[2 + part] in (2 + 2 * part, 3 + 2 * part) for part in range(4))
    assert (
        {int(place - 10) // 2 for place in drawn[6:11]} == {0, 1, 2, 3, 4}
        and not scoring[drawn[:6]].any()
        and scoring[drawn[6:]].all()
    )
    assert drawn[11] in (10, 11) and drawn[12] in (18, 19) and len(set(drawn.tolist())) == 13
    assert (
        draw(strengths, scoring, Pools(train_top=3, train_each=1, fuzz_each=1, detect=1), np.random.default_rng(0))
        is None
    )
    assert draw(strengths[:0], scoring[:0], pools, np.random.default_rng(0)) is None


@pytest.mark.parametrize("seed", range(20))
def test_draw_takes_nothing_twice_and_keeps_to_its_fifths(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 200))
    strengths, scoring = rng.integers(1, 4, count).astype(np.float32), rng.random(count) < 0.5
    drawn = draw(strengths, scoring, SMALL, rng)
    if drawn is None:
        assert min((~scoring).sum(), scoring.sum()) < 5 * 3, "three in each fifth are enough for every pool"
        return
    assert len(set(drawn.tolist())) == SMALL.total
    for side, some in ((False, drawn[:3]), (True, drawn[16:18])):
        own = np.sort(strengths[scoring == side])[::-1]
        assert strengths[some].min() >= own[len(own) // 5 - 1]


@pytest.mark.parametrize("name", [*ADVERSARIAL, "short"])
def test_text_without_enough_windows_is_one_line(tmp_path, name):
    firings = ADVERSARIAL.get(name) or firings_of(np.ones((12, 2)), np.ones((12, 2)), (3,) * 4)
    write_arm(tmp_path / "arm", firings)
    with pytest.raises(UserError, match="no latent has the 100 windows of 64 tokens that are asked for") as caught:
        export_paper_cache(tmp_path / "arm", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_what_cannot_be_asked_for(tmp_path, arms):
    joint, solo = arms[0][0], arms[1][0]
    other_text = write_arm(tmp_path / "other", random_firings(3, (300,), n=9), arm="control")
    twin = write_arm(tmp_path / "twin", arms[0][1], arm="joint", seed=1)
    odd = write_arm(tmp_path / "odd", arms[0][1], arm="../x")
    for options, words in [
        ({"context": 0}, "context must be at least 1"),
        ({"other": other_text}, "are on other text"),
        ({"other": twin}, "both arms are named 'joint'"),
        ({"other": odd}, "'../x' cannot name a file"),
        ({"other": tmp_path}, "keeps no firings"),
    ]:
        with pytest.raises(UserError, match=words):
            export_paper_cache(joint, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        export_paper_cache(joint, tmp_path / "full", other=solo, context=12, pools=SMALL)
    assert not (tmp_path / "out").exists()
