"""Windows of siblings against the rules they are drawn by, and whose children an arm's siblings are."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import PLAN, random_firings, text_of, view_of

from metasae.arms.folder import RunFolder
from metasae.data.planted.planted import plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.errors import UserError
from metasae.interp.excerpts import CENTRE
from metasae.interp.intruder import alone, draw_fives, splits_of
from metasae.measures.cofiring.splits import find_splits
from metasae.measures.firing.store import write_firings
from tools.subjects import dictionary

LENGTHS = (9, 14, 3, 11, 20, 8, 8, 17, 5, 12)


def test_alone_by_hand():
    firings = random_firings(lengths=LENGTHS)
    text, view, on = text_of(firings), view_of(firings), firings.csr.toarray() > 0
    for one, other in ((3, 4), (4, 3), (1, 3), (3, 1), (0, 3)):
        whole = text.windows(np.arange(firings.n_tokens), 4, CENTRE)[1]
        assert alone(text, view, one, other, 4).tolist() == [
            t for t in range(firings.n_tokens) if on[t, one] and not on[t, other] and whole[t]
        ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 25), min_size=1, max_size=14),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_five_windows_of_one_token_from_five_documents(seed, lengths, length, count, vocabulary):
    firings = random_firings(seed, tuple(lengths), vocabulary=vocabulary, gap=False)
    text, view, on = text_of(firings), view_of(firings), firings.csr.toarray() > 0
    most, other = alone(text, view, 3, 4, length), alone(text, view, 4, 3, length)
    fives = draw_fives(text, most, other, length, count, np.random.default_rng(seed))
    for middles, intruder in fives:
        starts = middles - length // 2
        assert len(middles) == 5 and 0 <= intruder < 5
        assert len(set(firings.documents[middles])) == 5 and len(set(firings.tokens[middles])) == 1
        windows = [firings.tokens[start : start + length] for start in starts]
        assert len({window.tobytes() for window in windows}) == 5
        for place, (start, focus, window) in enumerate(zip(starts, middles, windows, strict=True)):
            assert len(window) == length and len(set(firings.documents[start : start + length])) == 1
            assert on[focus, 3] == (place != intruder) and on[focus, 4] == (place == intruder)
    assert len(fives) <= count and len({middles[place] for middles, place in fives}) == len(fives)
    if not fives:
        # with four documents beside the intruder's there may still be repeated text, but not with windows that all
        # differ
        contents = {
            int(t): firings.tokens[t - length // 2 : t - length // 2 + length].tobytes() for t in (*most, *other)
        }
        for intruder in other.tolist():
            able = [
                t
                for t in most.tolist()
                if firings.tokens[t] == firings.tokens[intruder] and contents[t] != contents[intruder]
            ]
            able = [t for t in able if firings.documents[t] != firings.documents[intruder]]
            assert len({firings.documents[t] for t in able}) < 4 or len({contents[t] for t in able}) < len(able)


def test_places_of_the_intruder_and_tokens_take_turns():
    """Two token ids, one far more common than the other; every document holds each once."""
    firings = random_firings(lengths=(40,) * 60, vocabulary=2, gap=False)
    text, view = text_of(firings), view_of(firings)
    sides = alone(text, view, 3, 5, 6), alone(text, view, 5, 3, 6)
    fives = draw_fives(text, *sides, 6, 200, np.random.default_rng(0))
    places = np.bincount([place for _, place in fives], minlength=5)
    assert len(fives) == len(sides[1]) or (len(fives) == 200 and places.min() > 20)
    first = [int(firings.tokens[middles[0]]) for middles, _ in fives[:10]]
    assert sorted(first) == [0] * 5 + [1] * 5


def labels_of(splits):
    return splits.sides.parents.label, splits.sides.children.label


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """solo blends two words, joint has a latent per sense; three seeds of solo, two of joint, and a control with solo's
    weights. The senses of a word are far enough apart for a latent to be one of them.
    """
    folder = tmp_path_factory.mktemp("run")
    split = PlantedSplit(plant(replace(PLAN, sense_cosine=0.2), 0), 16_000, 0)
    arms = [("solo", number, (0, 1), f"solo{number}") for number in range(3)] + [
        ("joint", 0, (), "joint0"),
        ("joint", 1, (), "joint1"),
        ("control", 0, (0, 1), "solo0"),
    ]
    for arm, seed, blended, weights in arms:
        subject = dictionary(split, blended=blended)
        place = folder / "arms" / f"{arm}-s{seed}"
        subject.sae.save(place / "primary")
        write_firings(subject.sae, split, place / "firings")
        (place / "measures.json").write_text(json.dumps({"conditions": {"sae": weights}}))
    return RunFolder(folder), [RunFolder(folder).arm(arm, seed) for arm, seed, _, _ in arms]


def test_an_arms_siblings_are_children_of_solos_latents_and_solos_own_those_of_its_next_seed(run):
    folder, trained = run
    labels = ("joint-s0", "solo-s0", "solo-s2", "control-s0")
    whose = {arm.label: splits_of(folder, arm, trained) for arm in trained if arm.label in labels}
    assert {label: labels_of(splits) for label, splits in whose.items()} == {
        "joint-s0": ("solo-s0", "joint-s1"),
        "solo-s0": ("solo-s0", "solo-s1"),
        "solo-s2": ("solo-s2", "solo-s0"),
        "control-s0": ("solo-s0", "solo-s1"),
    }
    assert {splits.part for splits in whose.values()} == {"all"}
    splits = find_splits(folder.arm("solo", 0).firings(), folder.arm("joint", 1).firings())
    assert whose["joint-s0"].found_in == "firings"
    new = [split.parent for split in splits.ranked[:50] if not split.kept]
    # the two blended words
    assert [parent for parent, _ in whose["joint-s0"].ranked] == new and len(new) >= 2
    # another seed of solo blends the same words, with the same latents: the base rate is none
    assert whose["solo-s0"].ranked == ()


def test_two_seeds_of_solo_make_one_base_rate_and_one_none(run):
    folder, trained = run
    first, second, joint = folder.arm("solo", 0), folder.arm("solo", 1), folder.arm("joint", 0)
    two = [arm for arm in trained if arm.seed < 2]
    assert splits_of(folder, first, two).sides.children == second and splits_of(folder, second, two) is None
    assert splits_of(folder, first, [first]) is None
    assert splits_of(folder, joint, [joint]) is None


def test_one_seed_has_siblings_to_look_at_under_another_name(run):
    folder, trained = run
    one = [arm for arm in trained if arm.seed == 0]
    splits = splits_of(folder, folder.arm("joint", 0), one)
    assert labels_of(splits) == ("solo-s0", "joint-s0") and splits.part == "same_seed" and len(splits.ranked) >= 2


def test_across_json_is_used_where_it_speaks_of_these_saes(run, tmp_path):
    folder, trained = run
    joint, other = folder.arm("joint", 0), RunFolder(tmp_path)
    ranked = [
        {"parent": parent, "children": children, "kept": parent == 5}
        for parent, children in ((3, [1, 2, 5]), (4, [6, 7]), (5, [1, 2]))
    ]
    entry = {"with": "joint-s1", "of": ["solo0", "joint1"], "n_kept": 1, "ranked": ranked}
    (tmp_path / "across.json").write_text(json.dumps({"joint-s0": {"splits": entry}}))
    splits = splits_of(other, joint, trained)
    assert splits.found_in == "across.json" and splits.ranked == ((3, (1, 2, 5)), (4, (6, 7)))
    assert splits.pairs() == [(3, 1, 2), (3, 1, 5), (3, 2, 5), (4, 6, 7)]
    (tmp_path / "across.json").write_text(json.dumps({"joint-s0": {"splits": {**entry, "of": ["solo0", "another"]}}}))
    assert splits_of(other, joint, trained).found_in == "firings"
    # of a release whose score did not look at whether the parent lives on
    del entry["n_kept"]
    (tmp_path / "across.json").write_text(json.dumps({"joint-s0": {"splits": entry}}))
    assert splits_of(other, joint, trained).found_in == "firings"


def test_arms_without_firings_are_one_line(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError):
        splits_of(run, run.arm("joint", 0), [run.arm("solo", 0), run.arm("joint", 0)])
