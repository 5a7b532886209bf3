"""The intruder among five windows, with a judge that knows every concept: senses are told apart, random halves of a
latent are not.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from oracle import OracleJudge
from test_reader import Says
from worlds import PLAN

from metasae.arms.folder import RunFolder, SplitPair
from metasae.data.planted.planted import plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.interp import asking, intruder, prompts
from metasae.interp.asking import Asker, Limits, Temporary
from metasae.interp.excerpts import Text, WindowSpec, planted_strings
from metasae.interp.intruder import EACH_WAY, Splits, intruder_score
from metasae.interp.marks import CLOSE, OPEN
from metasae.interp.reader import Reader
from metasae.interp.replies import Reply, ReplyStore
from metasae.measures.firing.by_latent import by_latent
from tools.subjects import dictionary, twinned

SPEC = WindowSpec(length=8, train=6, score=6, silent=6)


class Siblings:
    """senses: every two senses of a word, children of the word.

    halves: every latent's firings shared out at random between two.
    """

    def __init__(self):
        self.split = PlantedSplit(plant(PLAN, 0), 24_000, 0)
        world = self.split.world
        self.senses = tuple((int(w), tuple(np.flatnonzero(world.word == w).tolist())) for w in range(PLAN.words))
        # word senses alone, as other latents fire on tokens of many ids
        latents = np.flatnonzero(world.word >= 0)
        whole = dictionary(self.split)
        self.n = whole.firings.n_latents
        self.halves = tuple((int(latent), (int(latent), self.n + place)) for place, latent in enumerate(latents))
        self.subject = twinned(whole, latents, seed=1)
        self.whole = by_latent(whole.firings)
        self.twins = by_latent(self.subject.firings)
        self.text = Text(self.split.documents, self.split.tokens, self.split.positions, planted_strings(self.split), 0)


@pytest.fixture(scope="module")
def world():
    return Siblings()


def splits(place, ranked):
    run = RunFolder(place)
    return Splits(SplitPair(run.arm("solo", 0), run.arm("joint", 1)), tuple(ranked), "firings")


def values_of(per_pair):
    return np.array([entry["sense_intruder"] for entry in per_pair], np.float64)


def score(world, view, ranked, judge, place):
    with ReplyStore(place / "replies.sqlite") as store:
        reader = Reader(Asker(judge, store, limits=Limits(concurrency=1, retries=0, first_wait=0)), world.text, SPEC, 0)
        return intruder_score(reader, view, splits(place, ranked))


def test_senses_are_told_apart_and_random_halves_of_a_latent_are_not(world, tmp_path):
    summary, senses = score(world, world.whole, world.senses, OracleJudge(), tmp_path / "senses")
    _, halves = score(world, world.twins, world.halves, OracleJudge(), tmp_path / "halves")
    own, floor = values_of(senses), summary["parts"]["all"]["shuffled"]["estimate"]
    assert len(own) == 3 * PLAN.words == summary["pairs"] and summary["candidates"] == PLAN.words
    assert np.nanmean(own) > 0.97 and abs(floor - 0.2) < 0.13
    assert abs(np.nanmean(values_of(halves)) - 0.2) < 0.1
    assert summary["chance"] == 0.2 and summary["parents"] == "solo-s0" and summary["unreadable"] == 0
    part = summary["parts"]["all"]
    assert part["estimate"] == pytest.approx(np.nanmean(own)) and part["n_clusters"] <= PLAN.words
    for row, (parent, one, other) in zip(senses, splits(tmp_path, world.senses).pairs(), strict=True):
        assert row["parent"] == parent and row["children"] == [one, other] and 2 <= row["questions"] <= 2 * EACH_WAY


def test_the_right_answer_is_the_sibling_and_each_takes_its_turn(world, tmp_path):
    """Read off the prompts: which feature is on at the marked token of each text."""
    word, senses = world.senses[0]
    judge = Says(lambda ask: json.dumps({"intruder": 1}))
    _, (pair,) = score(world, world.whole, [(word, senses[:2])], judge, tmp_path)
    odd = []
    for ask in judge.asks[: pair["questions"]]:
        _, _, *texts = ask.user.splitlines()
        marked = [line.split(OPEN)[1].split(CLOSE)[0] for line in texts]
        assert (
            ask.system == prompts.INTRUDE
            and len(marked) == 5
            and {name.split("/")[0] for name in marked} == {f"w{word}"}
        )
        on = ["".join(str(int(f"/f{sense}:" in name)) for sense in senses[:2]) for name in marked]
        one, other = on.count("10"), on.count("01")
        assert {one, other} == {4, 1}
        odd.append((on.index("10" if one == 1 else "01"), one == 1))
    assert sum(first for _, first in odd) == EACH_WAY == len(odd) / 2
    assert pair["sense_intruder"] == pytest.approx(np.mean([place == 0 for place, _ in odd]))


@pytest.mark.parametrize(
    ("says", "counted"),
    [
        ("six of them", "unreadable"),
        ('{"intruder": 6}', "unreadable"),
        ('{"intruder": "two"}', "unreadable"),
        ('{"intruder": true}', "unreadable"),
    ]
    + [(Temporary("busy"), "failed")],
)
def test_a_pair_of_which_nothing_can_be_read_has_no_score_and_is_counted(world, tmp_path, monkeypatch, says, counted):
    monkeypatch.setattr(asking, "GIVE_UP", 1000)
    counts, per_pair = score(world, world.whole, world.senses[:2], Says(lambda ask: says), tmp_path)
    assert np.isnan(values_of(per_pair)).all()
    assert counts[counted] == counts["asked"] == sum(pair["questions"] for pair in per_pair) > 0
    assert sum(counts[trouble] for trouble in ("unreadable", "failed")) == counts["asked"]


def test_pairs_without_windows_are_counted_and_have_no_number(world, tmp_path):
    """Senses of different words never share a token."""
    strangers = (0, (world.senses[0][1][0], world.senses[1][1][0]))
    summary, per_pair = score(world, world.whole, [strangers, world.senses[2]], OracleJudge(), tmp_path)
    values = values_of(per_pair)
    assert np.isfinite(values[1:]).all() and summary["too_few_windows"] == 1
    assert per_pair[0]["questions"] == 0 and per_pair[0]["sense_intruder"] is None
    part = summary["parts"]["all"]
    assert part["excluded"] == 1 and part["estimate"] == pytest.approx(np.nanmean(values))
    summary, per_pair = score(world, world.whole, [], OracleJudge(), tmp_path)
    assert summary["parts"]["all"]["estimate"] is None and per_pair == []


def test_the_floor_counts_only_pairs_that_were_asked(world, tmp_path, monkeypatch):
    monkeypatch.setattr(intruder, "FLOOR", 4)
    part = score(world, world.whole, world.senses[:2], OracleJudge(), tmp_path)[0]["parts"]["all"]
    assert part["n_values"] == 6 and part["shuffled"]["n_values"] == 4 and part["shuffled"]["excluded"] == 0


def test_a_judge_against_itself_is_found_out(world, tmp_path):
    class Flips(OracleJudge):
        def answer(self, ask):
            return Reply(json.dumps({"intruder": 1 + ask.repeat}))

    counts = score(world, world.whole, world.senses, Flips(), tmp_path)[0]
    assert counts["repeated"] > 0 and counts["repeated_alike"] == 0 and counts["self_agreement"] == 0


def test_draws_follow_the_seed(world, tmp_path):
    judges = [Says(lambda ask: '{"intruder": 1}') for _ in range(3)]
    for number, (judge, seed) in enumerate(zip(judges, (0, 0, 1), strict=True)):
        with ReplyStore(tmp_path / f"{number}.sqlite") as store:
            reader = Reader(Asker(judge, store, limits=Limits(concurrency=1)), world.text, replace(SPEC), seed)
            intruder_score(reader, world.whole, splits(tmp_path, world.senses[:2]))
    first, again, other = [[ask.user for ask in judge.asks] for judge in judges]
    assert first == again != other
