"""Scores by a judge: one that makes no mistakes, one that cannot be read, and one that is against itself."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from oracle import OracleJudge
from worlds import planted, view_of

from metasae.interp import asking, prompts
from metasae.interp import reader as reader_module
from metasae.interp.asking import Asker, Limits, Temporary
from metasae.interp.choice import CHANCE, READ
from metasae.interp.draws import KINDS, LatentWindows, Windows, activating_windows, contents_of, with_silent
from metasae.interp.excerpts import Text, WindowSpec, planted_strings
from metasae.interp.reader import Reader, _random_marks, _spearman
from metasae.interp.replies import Reply, ReplyStore
from metasae.interp.scores import other_latents
from metasae.interp.standing import silence_of
from metasae.measures.firing.by_latent import ByLatent

SPEC = WindowSpec(length=8, train=20, score=10, silent=10)


class World:
    def __init__(self):
        split, self.firings, atoms, blends = planted()
        self.view = view_of(self.firings)
        self.strings = planted_strings(split)
        self.text = Text(self.firings.documents, self.firings.tokens, self.firings.positions, self.strings, 0)
        enough, _ = activating_windows(self.text, self.view, SPEC, 0)
        near = np.random.default_rng(0).integers(0, self.view.n_latents, (self.view.n_latents, 3))
        self.ids = [*atoms, *blends]
        self.latents = [with_silent(self.text, self.view, enough[latent], near[latent], SPEC, 0) for latent in self.ids]
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
        said = json.dumps({"explanation": "something"}) if ask.system == prompts.EXPLAIN else self.text(ask)
        if isinstance(said, Exception):
            raise said
        return Reply(said)


def test_hard_negatives_tell_blends_from_atoms_and_simulation_does_not(world, tmp_path):
    """Atoms are senses of a word; a blend fires on a word in two of its three senses, and `the word` is what describes
    it best.
    """
    scores = {key: read(world, key, OracleJudge(), tmp_path, floor=True) for key in READ}

    def mean(key, part, which):
        return float(np.nanmean(scores[key].values[part][which]))

    for key in ("detection", "fuzz_marks"):
        assert min(mean(key, kind, world.atoms) for kind in KINDS) > 0.97
        assert mean(key, "random", ~world.atoms) > 0.9
        assert mean(key, "same_token", ~world.atoms) < 0.7
        # every atom above every blend
        hard = scores[key].values["same_token"]
        assert hard[world.atoms].min() > hard[~world.atoms].max() + 0.2
    # without negatives a blend looks nearly as good as an atom, and far from chance
    assert mean("sim_spearman", "all", world.atoms) > 0.9 and mean("sim_spearman", "all", ~world.atoms) > 0.6

    def kept(key, part):
        """How much of what an atom has above chance a blend has."""
        return (mean(key, part, ~world.atoms) - CHANCE[key]) / (mean(key, part, world.atoms) - CHANCE[key])

    assert (
        kept("detection", "same_token") < 0.2
        and kept("detection", "random") > 0.8
        and kept("sim_spearman", "all") > 0.75
    )
    assert mean("fuzz_2afc", "all", world.atoms) > 0.97
    for key in READ:
        for floor in scores[key].shuffled.values():
            assert abs(np.nanmean(floor) - CHANCE[key]) < 0.1
        assert (
            scores[key].counts["unreadable"] == scores[key].counts["failed"] == scores[key].counts["unexplained"] == 0
        )
        # between two texts that fit a blend alike the oracle takes the first
        alike = scores[key].counts["repeated_alike"] / scores[key].counts["repeated"]
        assert alike == 1 if key != "fuzz_2afc" else alike > 0.9


def test_the_oracle_names_the_feature_of_an_atom_and_the_word_of_a_blend(world, tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        names = Reader(Asker(OracleJudge(), store), world.text, SPEC).explanations(world.view, world.latents)
    assert all(re.fullmatch(r"f\d+" if atom else r"w\d+", name) for name, atom in zip(names, world.atoms, strict=True))
    assert len(set(names)) == len(names)


def test_what_explains_and_what_is_scored_come_from_different_documents(world, tmp_path):
    """On the prompts themselves: every token is written as the number of its document."""
    firings = world.firings
    text = Text(
        firings.documents,
        firings.tokens,
        firings.positions,
        lambda places: [f" d{firings.documents[place]}" for place in places],
        0,
    )
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
def test_where_nothing_can_be_read_or_had_there_is_no_score_and_it_is_counted(
    world, tmp_path, monkeypatch, key, trouble
):
    monkeypatch.setattr(asking, "GIVE_UP", 1000)
    judge = Says(lambda ask: "I would rather not say" if trouble == "nonsense" else Temporary("busy"))
    score = read(world, key, judge, tmp_path, world.latents[:3])
    for values in score.values.values():
        assert np.isnan(values).all()
    summary = score.as_dict(range(3), np.arange(3), 0)
    assert all(part["estimate"] is None for part in summary["parts"].values())
    assert silence_of(summary).startswith("no score: not one of ")
    asked = len({ask.user for ask in judge.asks if ask.system != prompts.EXPLAIN and ask.repeat == 0})
    assert score.counts["unreadable" if trouble == "nonsense" else "failed"] == asked > 0
    assert score.counts["failed" if trouble == "nonsense" else "unreadable"] == 0


@pytest.mark.parametrize("key", ["detection", "sim_spearman"])
def test_a_latent_of_which_nothing_is_read_has_no_score_and_others_keep_theirs(world, tmp_path, key):
    """Of the first latent nothing can be read, of the second half of what it is asked."""

    class Partly(OracleJudge):
        def answer(self, ask):
            said = super().answer(ask)
            if ask.system == prompts.EXPLAIN:
                names.append(json.loads(said.text)["explanation"])
                return said
            name = ask.user.splitlines()[0].removeprefix("Explanation: ")
            place = names.index(name)
            return Reply("no") if place == 0 or (place == 1 and len(ask.user) % 2) else said

    names = []
    score = read(world, key, Partly(), tmp_path, world.latents[:3])
    for values in score.values.values():
        assert np.isnan(values[0]) and np.isfinite(values[2]) and (key != "detection" or np.isfinite(values[1]))
    assert silence_of(score.as_dict(range(3), np.arange(3), 0)) is None


def test_a_latent_without_an_explanation_has_no_score_and_is_counted(world, tmp_path):
    class Mute(OracleJudge):
        def answer(self, ask):
            return Reply('{"explanation": "  "}') if ask.system == prompts.EXPLAIN else super().answer(ask)

    score = read(world, "detection", Mute(), tmp_path, world.latents[:2])
    assert score.counts["unexplained"] == 2 and np.isnan(score.values["random"]).all()
    assert silence_of(score.as_dict(range(2), np.arange(2), 0)) == "no score: no explanation could be read"


@pytest.mark.parametrize("answer", [True, False])
def test_a_judge_with_one_answer_to_all_is_at_chance(world, tmp_path, answer):
    def same(ask):
        return json.dumps({"answers": [answer] * ask.schema["properties"]["answers"]["minItems"]})

    for key in ("detection", "fuzz_marks"):
        score = read(world, key, Says(same), tmp_path / key, world.latents[:2])
        assert all((values == 0.5).all() for values in score.values.values())
    one_side = read(world, "fuzz_2afc", Says(lambda ask: '{"answer": "A"}'), tmp_path / "2afc", world.latents[:2])
    assert (one_side.values["all"] == 0).all()
    constant = read(
        world, "sim_spearman", Says(lambda ask: json.dumps({"answers": [3] * 25})), tmp_path / "sim", world.latents[:2]
    )
    assert (constant.values["all"] == 0).all()


def test_balanced_accuracy_against_a_count_of_the_prompts(world, tmp_path):
    """A judge that says yes to texts with an even number of letters; the score is counted again from the windows."""

    def even(line):
        return len(line) % 2 == 0

    def lines(ask):
        return [line.split(". ", 1)[1] for line in ask.user.splitlines() if re.match(r"\d+\. ", line)]

    latent = world.latents[0]
    score = read(
        world,
        "detection",
        Says(lambda ask: json.dumps({"answers": [even(line) for line in lines(ask)]})),
        tmp_path,
        [latent],
    )

    def share(windows):
        return np.mean([even(str(window)) for window in prompts.shown(world.text, windows)])

    for kind in KINDS:
        assert score.values[kind][0] == pytest.approx((share(latent.score) + 1 - share(latent.silent[kind])) / 2)


def test_a_judge_against_itself_is_found_out(world, tmp_path):
    def flips(ask):
        return json.dumps({"answers": [ask.repeat == 0] * ask.schema["properties"]["answers"]["minItems"]})

    counts = read(world, "detection", Says(flips), tmp_path).counts
    assert counts["repeated"] > 0 and counts["repeated_alike"] == 0

    # answers are counted one by one, not whole replies
    def halves(ask):
        count = ask.schema["properties"]["answers"]["minItems"]
        return json.dumps({"answers": [bool(ask.repeat and number % 2) for number in range(count)]})

    counts = read(world, "detection", Says(halves), tmp_path / "halves").counts
    assert counts["repeated_alike"] == counts["repeated"] / 2 > 0


class Told(Says):
    """Says yes or no by `share`, a probability per window, and gives it beside its reply where `tells` says so."""

    def __init__(self, share, tells=lambda ask: True):
        super().__init__(None)
        self.share, self.tells = share, tells

    def answer(self, ask):
        if ask.system == prompts.EXPLAIN:
            return Reply('{"explanation": "something"}')
        shares = [self.share(line.split(". ", 1)[1]) for line in ask.user.splitlines() if re.match(r"\d+\. ", line)]
        words = [
            ("true" if share > 0.5 else "false", {"true": np.log(share), "false": np.log(1 - share)})
            for share in shares
        ]
        pieces = [('{"answers": [', {}), *[piece for word in words for piece in (word, (", ", {}))][:-1], ("]}", {})]
        return Reply("".join(text for text, _ in pieces), logprobs=tuple(pieces) if self.tells(ask) else None)


def share_of(line):
    """Of a text, from 0.05 to 0.45: always a no, but ranked."""
    return 0.05 + 0.4 * (len(line) % 17) / 16


def test_the_auc_is_over_all_pairs_of_windows_and_sees_what_yes_and_no_do_not(world, tmp_path):
    latent = world.latents[0]
    score = read(world, "detection", Told(share_of), tmp_path, [latent])
    told = {
        part: [share_of(str(window)) for window in prompts.shown(world.text, windows)]
        for part, windows in [("fires", latent.score), *latent.silent.items()]
    }
    for kind in KINDS:
        pairs = [(yes > no) + 0.5 * (yes == no) for yes in told["fires"] for no in told[kind]]
        assert score.values[kind][0] == 0.5 and score.values[f"{kind}_auc"][0] == pytest.approx(np.mean(pairs))
    assert score.counts["without_logprobs"] == 0


def test_without_log_probabilities_there_is_no_auc_and_the_replies_are_counted(world, tmp_path):
    none = read(world, "fuzz_marks", Told(share_of, lambda ask: False), tmp_path, world.latents[:2])
    assert set(none.values) == set(KINDS) and none.counts["without_logprobs"] == none.counts["asked"] > 0
    # a reply without them leaves its latent without the number, not the others
    first = []
    partly = Told(share_of, lambda ask: bool(first) or bool(first.append(ask)))
    some = read(world, "fuzz_marks", partly, tmp_path / "some", world.latents[:2])
    assert some.counts["without_logprobs"] == 1
    assert (
        sorted(np.isnan(some.values["random_auc"]).tolist()) == [False, True]
        and np.isfinite(some.values["random"]).all()
    )
    assert some.as_dict(range(2), np.arange(2), 0)["parts"]["random_auc"]["excluded"] == 1


def test_a_pair_with_an_unreadable_window_is_worth_one_half_in_the_auc(world, tmp_path):
    lost = set()

    class Broken(Told):
        def answer(self, ask):
            if ask.system == prompts.EXPLAIN or len(ask.user) % 3:
                return super().answer(ask)
            lost.update(line.split(". ", 1)[1] for line in ask.user.splitlines() if re.match(r"\d+\. ", line))
            return Reply("no")

    for latent in world.latents[:3]:
        lost.clear()
        score = read(world, "detection", Broken(share_of), tmp_path / str(latent.latent), [latent])
        yes = [str(window) for window in prompts.shown(world.text, latent.score)]
        for kind in KINDS:
            no = [str(window) for window in prompts.shown(world.text, latent.silent[kind])]
            pairs = [
                0.5
                if {one, other} & lost
                else (share_of(one) > share_of(other)) + 0.5 * (share_of(one) == share_of(other))
                for one in yes
                for other in no
            ]
            assert score.values[f"{kind}_auc"][0] == pytest.approx(np.mean(pairs))
    assert lost


def test_explanations_are_kept_with_the_score(world, tmp_path):
    score = read(world, "sim_spearman", OracleJudge(), tmp_path, world.latents[:3])
    assert len(score.explanations) == 3 and all(re.fullmatch(r"[fw]\d+", words) for words in score.explanations)


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
    assert _spearman([1, 2, 3], np.array([1.0, 1.0, 1.0])) == 0 and _spearman([2, 2], np.arange(2)) == 0
    assert _spearman([1, 2, 3, 4], np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)


def test_replaced_tokens_are_never_ones_on_which_the_latent_fires(world, tmp_path):
    names = world.strings
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        reader = Reader(Asker(OracleJudge(), store), world.text, SPEC)
        latent = world.latents[0]
        fires = world.view.latent(latent.latent)[0]
        firing_texts = set(names(fires))
        for window in prompts.shown(world.text, latent.score, world.view, latent.latent):
            other = reader._replaced(window, fires, np.random.default_rng(0))
            for old, new, marked in zip(window.strings, other.strings, window.marked, strict=True):
                assert new not in firing_texts if marked else new == old
            assert not other.marked.any() and window.marked.any()


def plain_text(strings):
    """Four documents of fifty tokens. strings: place -> text."""
    documents, positions = np.repeat(np.arange(4), 50).astype(np.int32), np.tile(np.arange(50), 4).astype(np.int32)
    return Text(
        documents,
        np.arange(200, dtype=np.int32),
        positions,
        lambda places: [strings(place) for place in places.tolist()],
        0,
    )


@pytest.mark.timeout(100)
def test_nothing_replaces_a_token_of_a_latent_that_always_fires():
    text = plain_text(lambda place: f" t{place}")
    reader, window = Reader(None, text, SPEC), prompts.Shown(tuple("abcd"), np.array([True, False, False, True]))
    assert reader._replaced(window, np.arange(200), np.random.default_rng(0)) is None
    # one token is left, so it stands in both places
    only = int(text.scoring_tokens[7])
    other = reader._replaced(window, np.delete(np.arange(200), only), np.random.default_rng(0))
    assert other.strings == (f" t{only}", "b", "c", f" t{only}") and not other.marked.any()


def test_a_replaced_token_reads_otherwise():
    text = plain_text(lambda place: " odd" if place == rare else " same")
    rare, fires = int(text.scoring_tokens[3]), np.array([0])
    reader, rng = Reader(None, text, SPEC), np.random.default_rng(0)
    for _ in range(20):
        assert reader._replaced(prompts.Shown((" same", " odd"), np.array([True, True])), fires, rng).strings == (
            " odd",
            " same",
        )
    rare = -1
    assert reader._replaced(prompts.Shown((" same",), np.array([True])), fires, rng) is None


def test_windows_that_nothing_can_replace_are_counted_and_have_no_number(world, tmp_path, monkeypatch):
    always, replaced = world.latents[1].latent, Reader._replaced
    everywhere = np.arange(len(world.text.tokens))
    fires = len(world.view.latent(always)[0])
    monkeypatch.setattr(
        Reader,
        "_replaced",
        lambda self, window, on, rng: replaced(self, window, everywhere if len(on) == fires else on, rng),
    )
    score = read(world, "fuzz_2afc", OracleJudge(), tmp_path, world.latents[:3])
    assert (
        np.isfinite(score.values["all"]).tolist() == [True, False, True] and score.counts["irreplaceable"] == SPEC.score
    )
    assert score.as_dict(range(3), np.arange(3), 0)["parts"]["all"]["excluded"] == 1


def test_simulation_is_not_scored_on_the_windows_that_were_explained(tmp_path, monkeypatch):
    """Forty documents of one window latent, all of them twice."""
    tokens = np.tile(np.random.default_rng(0).integers(0, 50, 40 * 8), 2).astype(np.int32)
    documents, positions = np.repeat(np.arange(80), 8).astype(np.int32), np.tile(np.arange(8), 80).astype(np.int32)
    text = Text(documents, tokens, positions, lambda places: [f" {tokens[place]}" for place in places], 0)
    ends = np.arange(7, 640, 8)
    view = ByLatent(np.array([0, 80]), ends.astype(np.int32), np.linspace(1, 2, 80).astype(np.float32), 640)
    focus = ends[~text.scoring[ends]]
    train = Windows(focus - 7, focus, np.ones(len(focus), np.float32), np.zeros(len(focus), np.int8), 8)
    drawn, draw = [], reader_module.draw_activating
    monkeypatch.setattr(reader_module, "draw_activating", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        reader = Reader(Asker(Says(lambda ask: "{}"), store, limits=Limits(concurrency=1, retries=0)), text, SPEC, 0)
        reader.scorer("sim_spearman")(view, [LatentWindows(0, train, train, {})], None)
    explained = contents_of(text, train)
    every = {tokens[end - 7 : end + 1].tobytes() for end in ends[text.scoring[ends]]}
    assert every & explained and contents_of(text, drawn[0]) == every - explained


def test_the_floor_counts_only_latents_that_were_asked(world, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "FLOOR", 3)
    score = read(world, "fuzz_2afc", OracleJudge(), tmp_path, world.latents[:5], floor=True)
    floor = score.as_dict(range(5), np.arange(5), 0)["parts"]["all"]["shuffled"]
    assert floor["n_values"] == 3 and floor["excluded"] == 0
    # of these latents the first two alone were asked
    some = score.as_dict([0, 2, 4], np.arange(5), 0)["parts"]["all"]
    assert some["n_values"] == 3 and some["shuffled"]["n_values"] == 2 and some["shuffled"]["excluded"] == 0
