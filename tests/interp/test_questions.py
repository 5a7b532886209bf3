"""Questions asked a second time in another order: what is asked, how answers are put back, and agreement by chance."""

import json
from functools import partial

import numpy as np
import pytest
from test_reader import Says, World, read

from metasae.interp import prompts
from metasae.interp.asking import Asker
from metasae.interp.marks import Shown
from metasae.interp.prompts import LETTERS
from metasae.interp.questions import ANSWERS_AT_LEAST, NOTHING_COUNTED, Question, put, uncounted
from metasae.interp.reading import answers_of
from metasae.interp.replies import ReplyStore

BUILD = partial(prompts.per_window, prompts.DETECT, "e", {"type": "boolean"})


def window(word):
    return Shown((word,), np.zeros(1, bool))


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("count", [1, 2, 5, 7, 10])
def test_answers_in_another_order_come_back_to_their_windows(count):
    words = [f"w{number}" for number in range(count)]
    question = Question(BUILD, [window(word) for word in words], 0, ["all"] * count, [True] * count)
    shown = [line.split(". ")[1] for line in question.again().user.splitlines() if ". " in line]
    assert sorted(shown) == sorted(words) and (count == 1 or all(map(str.__ne__, shown, words)))
    assert question.in_order(shown) == words
    assert question.again().repeat == 1 and question.again().system == question.build(question.windows).system


def test_a_choice_comes_back_to_the_window_that_was_chosen():
    two = Question(partial(prompts.choose, "e"), [window("x"), window("y")], 0, ["all"], ["A"], LETTERS)
    assert "A: y\nB: x" in two.again().user and two.in_order(["A"]) == ["B"] and two.in_order(["B"]) == ["A"]
    five = Question(prompts.intrude, [window(f"w{n}") for n in range(1, 6)], 0, ["all"], [1], range(1, 6))
    lines = five.again().user.splitlines()
    assert [five.in_order([number])[0] for number in range(1, 6)] == [int(line.split("w")[1]) for line in lines]


def asked_by(judge, tmp_path, counts, texts):
    """texts: of each question."""
    questions = [Question(BUILD, list(map(window, words)), 0, ["all"] * len(words), [True]) for words in texts]
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        put(Asker(judge, store), questions, partial(answers_of, kind=bool), counts, 0)
    return counts


def test_one_that_reads_agrees_with_itself_and_one_that_counts_places_does_not(tmp_path):
    rng = np.random.default_rng(0)
    texts = [["".join(rng.choice(list("abcdef"), 5)) for _ in range(10)] for _ in range(12)]

    def reads(ask):
        words = [line.split(". ")[1] for line in ask.user.splitlines() if ". " in line]
        return json.dumps({"answers": ["a" in word for word in words]})

    def places(ask):
        return json.dumps({"answers": [True] * 5 + [False] * 5})

    def alike(ask):
        return json.dumps({"answers": [True] * 10})

    counts = {name: dict(NOTHING_COUNTED) for name in ("reads", "places", "alike")}
    for name, says in (("reads", reads), ("places", places), ("alike", alike)):
        asked_by(Says(says), tmp_path / name, counts[name], texts)
    repeated = counts["reads"]["repeated"]
    assert repeated == ANSWERS_AT_LEAST == counts["reads"]["repeated_alike"]
    assert 0.4 * repeated < counts["reads"]["repeated_by_chance"] < 0.7 * repeated
    assert counts["places"]["repeated_alike"] == 0 and counts["places"]["repeated_by_chance"] == repeated / 2
    assert counts["alike"]["repeated_alike"] == counts["alike"]["repeated_by_chance"] == repeated


def test_a_twentieth_of_many_and_nothing_of_a_floor_is_asked_again(tmp_path):
    texts = [[f"{row} {number}" for number in range(10)] for row in range(100)]
    judge = Says(lambda ask: json.dumps({"answers": [False] * 10}))
    assert asked_by(judge, tmp_path / "many", dict(NOTHING_COUNTED), texts)["repeated"] == 50
    floor = Says(lambda ask: "no JSON")
    assert asked_by(floor, tmp_path / "floor", uncounted(), texts) == {"asked": 100, "unreadable": 100, "failed": 0}
    # what cannot be read has two more attempts, and no repeat
    assert len(floor.asks) == 300 and not any(ask.repeat for ask in floor.asks)


def test_agreement_by_chance_is_in_the_summary(world, tmp_path):
    judge = Says(lambda ask: json.dumps({"answers": [True] * ask.schema["properties"]["answers"]["minItems"]}))
    score = read(world, "detection", judge, tmp_path, world.latents[:2], floor=True)
    summary = score.as_dict([0, 1], np.arange(2), 0)
    assert summary["self_agreement"] == summary["self_agreement_by_chance"] == 1.0
