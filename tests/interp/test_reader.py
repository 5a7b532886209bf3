"""Scores by a judge: one that makes no mistakes, one that cannot be read, and one that is against itself."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from worlds import planted, view_of

from metasae.interp import asking, prompts
from metasae.interp.asking import Asker, Limits, Temporary
from metasae.interp.coverage import activating_windows, with_silent
from metasae.interp.draws import KINDS
from metasae.interp.judges.oracle import OracleJudge
from metasae.interp.reader import READ, Reader, _random_marks, _spearman
from metasae.interp.replies import Reply, ReplyStore
from metasae.interp.result import other_latents
from metasae.interp.windows import Text, WindowSpec, planted_strings

SPEC = WindowSpec(length=8, train=20, score=10, silent=10)


class World:
    def __init__(self):
        split, self.firings, atoms, blends = planted()
        self.view = view_of(self.firings)
        self.strings = planted_strings(split)
        self.text = Text(self.firings.documents, self.firings.tokens, self.firings.positions, self.strings, 0)
        found, _ = activating_windows(self.text, self.view, SPEC, 0)
        near = np.random.default_rng(0).integers(0, self.view.n_latents, (self.view.n_latents, 3))
        self.ids = [*atoms, *blends]
        self.latents = [with_silent(self.text, self.view, found[latent], near[latent], SPEC, 0) for latent in self.ids]
        self.atoms = np.array([latent in atoms for latent in self.ids])


@pytest.fixture(scope="module")
def world():
    return World()


def read(world, key, judge, tmp_path, latents=None, floor=False, text=None):
    latents = world.latents if latents is None else latents
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        asker = Asker(judge, store, limits=Limits(concurrency=1, retries=0, first_wait=0))
        reader = Reader(asker, text or world.text, SPEC, 0)
        return reader.scorer(key)(world.view, latents, other_latents(len(latents), 0) if floor else None)


class Says:
    """A judge with one answer to everything but explanations. text: question -> what it says, or an exception."""

    name = "says"

    def __init__(self, text):
        self.text, self.asks = text, []

    def answer(self, ask):
        self.asks.append(ask)
        found = json.dumps({"explanation": "something"}) if ask.system == prompts.EXPLAIN else self.text(ask)
        if isinstance(found, Exception):
            raise found
        return Reply(found)


def test_hard_negatives_tell_blends_from_atoms_and_simulation_does_not(world, tmp_path):
    """Atoms are senses of a word; a blend fires on a word in two of its three senses, and `the word` is what describes it best."""
    found = {key: read(world, key, OracleJudge(), tmp_path, floor=True) for key in READ}

    def mean(key, part, which):
        return float(np.nanmean(found[key].values[part][which]))

    for key in ("detection", "fuzz_marks"):
        assert min(mean(key, kind, world.atoms) for kind in KINDS) > 0.97
        assert mean(key, "random", ~world.atoms) > 0.9
        assert mean(key, "same_token", ~world.atoms) < 0.7
    # without negatives a blend looks nearly as good as an atom, and far from chance
    assert mean("sim_spearman", "all", world.atoms) > 0.9 and mean("sim_spearman", "all", ~world.atoms) > 0.6
    assert mean("fuzz_2afc", "all", world.atoms) > 0.97
    for key, tolerance in (("detection", 0.1), ("fuzz_marks", 0.1), ("fuzz_2afc", 0.15), ("sim_spearman", 0.15)):
        for floor in found[key].shuffled.values():
            assert abs(np.nanmean(floor) - found[key].chance) < tolerance
        assert found[key].counts["unreadable"] == found[key].counts["failed"] == found[key].counts["unexplained"] == 0
        assert found[key].counts["repeated_alike"] == found[key].counts["repeated"]


def test_the_oracle_names_the_feature_of_an_atom_and_the_word_of_a_blend(world, tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        names = Reader(Asker(OracleJudge(), store), world.text, SPEC).explanations(world.view, world.latents)
    assert all(re.fullmatch(r"f\d+" if atom else r"w\d+", name) for name, atom in zip(names, world.atoms, strict=True))
    assert len(set(names)) == len(names)


def test_what_explains_and_what_is_scored_come_from_different_documents(world, tmp_path):
    """On the prompts themselves: every token is written as the number of its document."""
    firings = world.firings
    text = Text(firings.documents, firings.tokens, firings.positions, lambda places: [f" d{firings.documents[place]}" for place in places], 0)
    judge = Says(lambda ask: "{}")
    for key in ("detection", "fuzz_marks", "sim_spearman"):
        read(world, key, judge, tmp_path / key, world.latents[:3], text=text)
    sides = {True: set(), False: set()}
    for ask in judge.asks:
        sides[ask.system == prompts.EXPLAIN] |= {int(number) for number in re.findall(r"d(\d+)", ask.user)}
    scoring = set(firings.documents[text.scoring].tolist())
    assert sides[True] and not sides[True] & scoring and sides[False] and sides[False] <= scoring


@pytest.mark.parametrize("key", READ)
@pytest.mark.parametrize("trouble", ["nonsense", "silence"])
def test_what_cannot_be_read_or_had_scores_as_chance_and_is_counted(world, tmp_path, monkeypatch, key, trouble):
    monkeypatch.setattr(asking, "GIVE_UP", 1000)
    judge = Says(lambda ask: "I would rather not say" if trouble == "nonsense" else Temporary("busy"))
    found = read(world, key, judge, tmp_path, world.latents[:3])
    for values in found.values.values():
        assert (values == found.chance).all()
    asked = sum(ask.system != prompts.EXPLAIN and ask.repeat == 0 for ask in judge.asks)
    assert found.counts["unreadable" if trouble == "nonsense" else "failed"] == asked > 0
    assert found.counts["failed" if trouble == "nonsense" else "unreadable"] == 0


def test_a_latent_without_an_explanation_scores_as_chance_and_is_counted(world, tmp_path):
    class Mute(OracleJudge):
        def answer(self, ask):
            return Reply('{"explanation": "  "}') if ask.system == prompts.EXPLAIN else super().answer(ask)

    found = read(world, "detection", Mute(), tmp_path, world.latents[:2])
    assert found.counts["unexplained"] == 2 and (found.values["random"] == 0.5).all()


@pytest.mark.parametrize("answer", [True, False])
def test_a_judge_with_one_answer_to_all_is_at_chance(world, tmp_path, answer):
    def same(ask):
        return json.dumps({"answers": [answer] * ask.schema["properties"]["answers"]["minItems"]})

    for key in ("detection", "fuzz_marks"):
        found = read(world, key, Says(same), tmp_path / key, world.latents[:2])
        assert all((values == 0.5).all() for values in found.values.values())
    one_side = read(world, "fuzz_2afc", Says(lambda ask: '{"answer": "A"}'), tmp_path / "2afc", world.latents[:2])
    assert (one_side.values["all"] == 0).all()
    constant = read(world, "sim_spearman", Says(lambda ask: json.dumps({"answers": [3] * 25})), tmp_path / "sim", world.latents[:2])
    assert (constant.values["all"] == 0).all()


def test_balanced_accuracy_against_a_count_of_the_prompts(world, tmp_path):
    """A judge that says yes to texts with an even number of letters; the score is counted again from the windows."""
    even = lambda line: len(line) % 2 == 0  # noqa: E731
    lines = lambda ask: [line.split(". ", 1)[1] for line in ask.user.splitlines() if re.match(r"\d+\. ", line)]  # noqa: E731
    each = world.latents[0]
    found = read(world, "detection", Says(lambda ask: json.dumps({"answers": [even(line) for line in lines(ask)]})), tmp_path, [each])

    def share(windows):
        return np.mean([even(str(window)) for window in prompts.shown(world.text, windows)])

    for kind in KINDS:
        assert found.values[kind][0] == pytest.approx((share(each.score) + 1 - share(each.silent[kind])) / 2)


def test_a_judge_against_itself_is_found_out(world, tmp_path):
    def flips(ask):
        return json.dumps({"answers": [ask.repeat == 0] * ask.schema["properties"]["answers"]["minItems"]})

    counts = read(world, "detection", Says(flips), tmp_path).counts
    assert counts["repeated"] > 0 and counts["repeated_alike"] == 0


def test_a_silent_window_carries_as_many_marks_and_one_at_its_focus():
    rng = np.random.default_rng(0)
    hits = Counter()
    for count in (1, 3, 8, 20):
        for focus in (-1, 0, 5):
            marked = _random_marks(8, count, focus, rng)
            assert marked.sum() == min(count, 8) and (focus < 0 or marked[focus])
            hits.update(np.flatnonzero(marked).tolist())
    assert len(hits) == 8


def test_rho_is_zero_where_a_side_is_constant_and_right_by_hand():
    assert _spearman([1, 2, 3], np.array([1.0, 1.0, 1.0])) == 0 and _spearman(None, np.arange(3)) == 0 and _spearman([2, 2], np.arange(2)) == 0
    assert _spearman([1, 2, 3, 4], np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)


def test_replaced_tokens_are_never_ones_on_which_the_latent_fires(world, tmp_path):
    names = world.strings
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        reader = Reader(Asker(OracleJudge(), store), world.text, SPEC)
        each = world.latents[0]
        fires = world.view.latent(each.latent)[0]
        firing_texts = set(names(fires))
        for window in prompts.shown(world.text, each.score, world.view, each.latent):
            other = reader._replaced(window, fires, np.random.default_rng(0))
            for old, new, marked in zip(window.strings, other.strings, window.marked, strict=True):
                assert new not in firing_texts if marked else new == old
            assert not other.marked.any() and window.marked.any()
