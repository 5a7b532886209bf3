"""Ten styles in which models reply, through a server: read, asked again, or counted; never an answer of nothing."""

import json
from collections import Counter

import numpy as np
import pytest
from chat_server import serving
from worlds import count_of

from metasae.interp import prompts
from metasae.interp.asking import Asker, Estimator, Limits
from metasae.interp.judges.server import ServerJudge
from metasae.interp.marks import Shown
from metasae.interp.questions import NOTHING_COUNTED, Question, put
from metasae.interp.reading import answers_of, is_readable
from metasae.interp.replies import Reply, ReplyStore

WORDS = [Shown((f" word{number}",), np.zeros(1, bool)) for number in range(3)]
RIGHT = [True, False, True]
GOOD = json.dumps({"answers": RIGHT})
WRONG = json.dumps({"answers": [False, True, False]})
LIMITS = Limits(concurrency=4, retries=0, first_wait=0)

# Styles of one reply that are read as they are.
READ = {
    "bare": GOOD,
    "fenced": f"Here you are:\n```json\n{GOOD}\n```\nLet me know!",
    "a thought before it": f"<think>The second text is of a river.</think>\n\n{GOOD}",
    "a thought with braces": f"<think>The set {{a, b}}, perhaps {WRONG}? No, {{</think>{GOOD}",
    "a remark with a brace": f'{GOOD} I used the form {{"answers": [...]}} as {{asked}}.',
    "two objects": f"{WRONG}\nOn a second look:\n{GOOD}",
    "a thought alone": {"content": "", "reasoning_content": f"It is {{this}}, so {GOOD}"},
    "a thought under another name": {"content": None, "reasoning": f"{WRONG} no, {GOOD}"},
    "extra keys": json.dumps({"confidence": {"high": 1}, "answers": RIGHT, "because": "{of} that"}),
    "text for yes and no": json.dumps({"answers": ["true", "False", "TRUE"]}),
}
# Styles that hold no answer.
UNREAD = {
    "a refusal": {"content": None, "refusal": "I cannot help with that."},
    "another language": '{"antworten": ["wahr", "falsch", "wahr"]}',
    "yes and no of another language": '{"answers": ["oui", "non", "oui"]}',
    "an answer too few": '{"answers": [true, false]}',
    "nothing": "",
    "a thought that never ends": f"<think>perhaps {GOOD} but",
}
CUT = {
    "an object cut": {"content": '{"answers": [true, fal', "finish_reason": "length"},
    "a thought cut": {"content": "", "reasoning_content": f"perhaps {WRONG} or", "finish_reason": "length"},
    "a remark cut": {"content": f"{GOOD} I hope that", "finish_reason": "length"},
}


def question():
    return prompts.per_window(prompts.DETECT, "rivers", {"type": "boolean"}, WORDS)


def first_then(style, good):
    """Says `style` to the first attempt at a question and `good` to every other."""
    times = Counter()

    def answer(messages):
        times[messages[-1]["content"]] += 1
        return style if times[messages[-1]["content"]] == 1 else good

    return answer


@pytest.fixture
def store(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        yield store


@pytest.mark.parametrize("name", READ)
def test_what_holds_an_answer_is_read(store, name):
    with serving(answer=lambda messages: READ[name]) as server:
        asker = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS)
        (reply,) = asker.ask([question()])
        assert answers_of(reply, 3, bool) == RIGHT and len(server.bodies) == 1
    assert asker.tally["again"] == asker.tally["cut"] == 0 and count_of(store) == 1


@pytest.mark.parametrize("style", [*UNREAD.values(), *CUT.values()], ids=[*UNREAD, *CUT])
def test_what_holds_none_is_asked_again(store, style):
    with serving(answer=first_then(style, GOOD)) as server:
        asker = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS)
        assert answers_of(asker.ask([question()])[0], 3, bool) == RIGHT
        assert [body["temperature"] for body in server.bodies] == [0.0, 1.0] and asker.tally["again"] == 1
        assert asker.tally["asked"] == 1 and asker.tally["cut"] == (style in CUT.values() or "<think>" in style)
        # the good one is kept, for whoever asks next
        (kept,) = Asker(ServerJudge(server.url, "m"), store).ask([question()])
        assert kept.text == GOOD and len(server.bodies) == 2


@pytest.mark.parametrize("style", [*UNREAD.values(), *CUT.values()], ids=[*UNREAD, *CUT])
def test_what_never_holds_one_is_counted_and_asked_again_by_the_next_call(store, style):
    counts, asked = dict(NOTHING_COUNTED), Question(lambda windows: question(), WORDS, 0, ["all"] * 3, RIGHT)
    with serving(answer=lambda messages: style) as server:
        asker = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS)
        put(asker, [asked], lambda reply, count: answers_of(reply, count, bool), counts, 0)
        assert asked.answers is None and counts["unreadable"] == counts["asked"] == 1
        # once for the question and once for its repeat, with two more attempts at each
        assert len(server.bodies) == 6 and asker.tally["again"] == 4
        # within one call it is not asked over and over
        asker.ask([question()])
        assert len(server.bodies) == 6
        estimator = Estimator(Asker(ServerJudge(server.url, "m"), store))
        estimator.ask([question()])
        assert estimator.questions["questions"] == 1
        server.answer = lambda messages: GOOD
        (reply,) = Asker(ServerJudge(server.url, "m"), store).ask([question()])
        assert answers_of(reply, 3, bool) == RIGHT and len(server.bodies) == 7
    assert store.get(question().key("m")).text == GOOD


@pytest.mark.parametrize("name", CUT)
def test_a_cut_reply_is_never_kept(store, name):
    with serving(answer=lambda messages: CUT[name]) as server:
        asker = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS)
        (reply,) = asker.ask([question()])
    assert reply.cut and not is_readable(question(), reply) and answers_of(reply, 3, bool) is None
    assert count_of(store) == 0 and asker.tally["cut"] == 3


def test_a_store_from_before_with_a_cut_reply_in_it_is_mended(store):
    store.put("m", question(), Reply('{"answers": [true, fal'))
    with serving(answer=lambda messages: GOOD) as server:
        (reply,) = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS).ask([question()])
    assert answers_of(reply, 3, bool) == RIGHT
    # in replay it is what was said
    (replayed,) = Asker(None, store, name="m").ask([question()])
    assert replayed.text == GOOD


def test_replay_takes_what_cannot_be_read_as_it_is(store):
    store.put("m", question(), Reply("no"))
    assert Asker(None, store, name="m").ask([question()]) == [Reply("no")]


def test_the_limit_is_sent_and_estimated_and_is_no_part_of_what_a_reply_is_kept_by(store):
    with serving(answer=lambda messages: GOOD) as server:
        wide = Asker(ServerJudge(server.url, "m"), store, limits=Limits(max_tokens=5000))
        estimator = Estimator(wide)
        estimator.ask([question()])
        assert estimator.questions["completion_tokens"] == 5000
        wide.ask([question()])
        assert server.bodies[0]["max_tokens"] == 5000
        assert Asker(ServerJudge(server.url, "m"), store).missing([question()]) == {}


def test_numbers_that_came_as_text_are_numbers(store):
    five = [Shown((" a",), np.ones(1, bool))] * 5
    with serving(answer=lambda messages: '{"intruder": "4"}') as server:
        asker = Asker(ServerJudge(server.url, "m"), store, limits=LIMITS)
        asker.ask([prompts.intrude(five)])
        assert len(server.bodies) == 1 and asker.tally["again"] == 0
