"""A model in this process: what it writes against a plain loop, what is read of it, and what cannot be a judge."""

import math

import numpy as np
import pytest
import torch
from oracle import OracleJudge
from test_reader import World, read
from tiny_chat import NO_SYSTEM, WINDOWED, Forced, save_model
from worlds import count_of

from metasae.errors import UserError
from metasae.interp import prompts
from metasae.interp.asking import Asker
from metasae.interp.choice import CHANCE, READ
from metasae.interp.draws import KINDS
from metasae.interp.judges.local import LocalJudge, model_at
from metasae.interp.reading import answers_of, field_of, yes_probabilities
from metasae.interp.replies import Ask, ReplyStore

WORDS = {"properties": {"explanation": {"type": "string"}}}
ANSWERS = {"properties": {"answers": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}}}
LETTER = {"properties": {"answer": {"type": "string", "enum": ["A", "B"]}}}
ASKS = [
    Ask("answer in JSON", text, WORDS, max_tokens=40)
    for text in ("what is it?", "Snow fell on the harbour; gulls " * 4, "a", "why?")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("chat") / "llama")


@pytest.fixture(scope="module")
def judge(folder):
    return LocalJudge(str(folder), batch=3, dtype="fp32")


@pytest.fixture(scope="module")
def world():
    return World()


@torch.no_grad()
def by_hand(judge, ask):
    """(tokens, log p of each) of an explanation, without padding and without a cache."""

    def encode(text):
        return judge.tokenizer(text, add_special_tokens=False)["input_ids"]

    def next_logprobs():
        logits = judge.model(input_ids=torch.tensor([[*encode(judge.rendered(ask)), *said]])).logits
        return torch.log_softmax(logits[0, -1].float(), -1)

    said, logprobs = [], []

    def write(token, logprob=0.0):
        logprobs.append(logprob)
        said.append(token)

    opening, closing = encode('{"explanation":"'), encode('"}')
    for token in opening:
        write(token)
    while len(said) < ask.max_tokens - len(closing):
        likeliest = next_logprobs()
        token = int(likeliest.argmax())
        ends = any(character < " " or character == '"' for character in judge.tokenizer.decode([token]))
        if token == judge.tokenizer.eos_token_id or ends:
            break
        write(token, float(likeliest[token]))
    for token in closing:
        write(token)
    return said, logprobs


@pytest.mark.parametrize("family", ["llama", "gpt2", *WINDOWED])
def test_a_batch_padded_on_the_left_says_what_each_question_gets_alone(tmp_path, family):
    judge = LocalJudge(str(save_model(tmp_path / "m", family, seed=3)), dtype="fp32")
    for ask, reply in zip(ASKS, judge.answer_many(ASKS), strict=True):
        tokens, logprobs = by_hand(judge, ask)
        assert reply.text == judge.tokenizer.decode(tokens, skip_special_tokens=True)
        assert reply.completion_tokens == len(tokens) <= ask.max_tokens
        assert reply.prompt_tokens == len(judge.tokenizer(judge.rendered(ask), add_special_tokens=False)["input_ids"])
        assert [max(also.values()) for _, also in reply.logprobs] == pytest.approx(logprobs, abs=1e-4)
        assert all(1 <= len(also) <= 5 for _, also in reply.logprobs)
        assert judge.answer_many([ask])[0].text == reply.text


def test_a_model_that_answers_is_scored_as_the_oracle_it_copies_with_probabilities(world, folder, tmp_path):
    judge = LocalJudge(str(folder), batch=8)
    judge.model = Forced(judge, lambda ask: OracleJudge().answer(ask).text)
    latents = world.latents[:2] + world.latents[-1:]
    expected = read(world, "detection", OracleJudge(), tmp_path / "oracle", latents)
    score = read(world, "detection", judge, tmp_path / "local", latents)
    assert judge.model.widest == 8 and score.counts["without_logprobs"] == 0 and expected.counts["without_logprobs"] > 0
    assert score.counts["unreadable"] == score.counts["failed"] == 0 and score.explanations == expected.explanations
    assert set(score.values) == {*KINDS, *(f"{kind}_auc" for kind in KINDS)} and set(expected.values) == set(KINDS)
    for kind in KINDS:
        assert score.values[kind] == pytest.approx(expected.values[kind])
        # with two probabilities only, the AUC of a list of yes and no is its balanced accuracy
        assert score.values[f"{kind}_auc"] == pytest.approx(expected.values[kind])


def test_the_probability_of_a_yes_is_the_models_own(folder):
    judge = LocalJudge(str(folder))
    judge.model = Forced(judge, lambda ask: '{"answers": [true, false]} and more')
    reply = judge.answer_many([Ask("s", "u", ANSWERS, max_tokens=60)])[0]
    assert answers_of(reply, 2, bool) == [True, False]
    share = math.exp(4) / (math.exp(4) + math.exp(2))
    assert yes_probabilities(reply, 2) == pytest.approx([share, 1 - share], abs=1e-6)


def test_a_random_model_keeps_to_the_form_and_is_near_chance(world, judge, tmp_path):
    for key in READ:
        score = read(world, key, judge, tmp_path / key, world.latents[:2])
        assert score.counts["unreadable"] == score.counts["unexplained"] == score.counts["failed"] == 0
        assert all(abs(np.nanmean(values) - CHANCE[key]) < 0.4 for values in score.values.values())
    with ReplyStore(tmp_path / "more.sqlite") as store:
        asker = Asker(judge, store)
        replies = asker.ask(ASKS)
        assert asker.tally["asked"] == len(ASKS) == count_of(store) and asker.tally["completion_tokens"] == sum(
            reply.completion_tokens for reply in replies
        )
        again = Asker(judge, store)
        assert again.ask(ASKS) == replies and again.tally["asked"] == 0


def test_a_reply_ends_with_its_form_and_one_cut_off_cannot_be_read(folder):
    judge = LocalJudge(str(folder))
    judge.model = Forced(judge, lambda ask: '{"answer": "A"}' + " and so on" * 50)
    reply = judge.answer_many([Ask("s", "u", LETTER, max_tokens=400)])[0]
    assert reply.text == '{"answer":"A"}'
    short = judge.answer_many([Ask("s", "u", LETTER, max_tokens=3)])[0]
    assert short.completion_tokens == 3 and field_of(short, "answer") is None


def test_words_that_are_no_json_are_put_into_it(folder):
    judge = LocalJudge(str(folder))
    for says, explanation in (
        ('{"explanation": "words \\"in\\" quotes", "more": 1}', 'words "in" quotes'),
        ('{"explanation": "one line\nand another', "one line"),
        ('{"explanation": "it just ends', "it just ends"),
    ):
        judge.model = Forced(judge, lambda ask, says=says: says)
        reply = judge.answer_many([Ask("s", "u", WORDS, max_tokens=90)])[0]
        assert field_of(reply, "explanation") == explanation
    judge.model = Forced(judge, lambda ask: '{"explanation": "' + "word " * 90)
    reply = judge.answer_many([Ask("s", "u", WORDS, max_tokens=60)])[0]
    assert reply.completion_tokens == 60 and field_of(reply, "explanation").startswith("word word")


def test_a_schema_that_no_score_asks_with_is_refused(folder):
    for schema in ({}, {"properties": {"a": {"type": "object"}}}, {"properties": {}}):
        with pytest.raises(UserError, match="answers one field"):
            LocalJudge(str(folder)).answer_many([Ask("s", "u", schema)])


@pytest.mark.parametrize("cache_name", ["cache", "past_key_values", "of_a_later_version"])
def test_a_cache_goes_back_under_the_name_that_it_came_by(folder, cache_name):
    judge = LocalJudge(str(folder))
    judge.model = Forced(judge, lambda ask: '{"answer": "A"}', cache_name)
    assert judge.answer_many([Ask("s", "u", LETTER, max_tokens=60)])[0].text == '{"answer":"A"}'


def test_a_model_without_a_cache_is_refused(folder):
    judge = LocalJudge(str(folder))
    judge.model = Forced(judge, lambda ask: "word", "")
    with pytest.raises(UserError, match="keeps no cache of the tokens"):
        judge.answer_many([ASKS[0]])[0]


def test_questions_of_a_batch_keep_their_own_limits(folder):
    judge = LocalJudge(str(folder))
    judge.model = Forced(judge, lambda ask: '{"explanation": "' + "word " * 40)
    replies = judge.answer_many([Ask("s", "u", WORDS, max_tokens=count) for count in (40, 30)])
    assert [reply.completion_tokens for reply in replies] == [40, 30]


def test_a_template_without_a_system_message_gets_it_in_the_users(tmp_path):
    judge = LocalJudge(str(save_model(tmp_path / "m", template=NO_SYSTEM)))
    assert judge.rendered(ASKS[0]) == "<s>user\nanswer in JSON\n\nwhat is it?</s><s>assistant\n"
    broken = LocalJudge(str(save_model(tmp_path / "b", template="{{ raise_exception('never') }}")))
    with pytest.raises(UserError, match="chat template") as caught:
        broken.answer_many([ASKS[0]])[0]
    assert "\n" not in str(caught.value)


def test_what_cannot_be_a_judge_is_one_line(tmp_path, build):
    with pytest.raises(UserError, match="no chat template"):
        LocalJudge(str(save_model(tmp_path / "m", template=None)))
    with pytest.raises(UserError, match="does not predict tokens"):
        LocalJudge(str(build("bert")))
    with pytest.raises(UserError, match="does not exist"):
        LocalJudge(str(tmp_path / "nowhere"))
    small = LocalJudge(str(save_model(tmp_path / "s", places=40)))
    with pytest.raises(UserError, match="reads at most 40; take a smaller window") as caught:
        small.answer_many([ASKS[1]])[0]
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_one_line_and_a_bug_is_not_hidden(folder):
    judge = LocalJudge(str(folder))

    def fails(words):
        def forward(**options):
            raise RuntimeError(words)

        return forward

    judge.model.forward = fails("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="do not fit into memory"):
        judge.answer_many([ASKS[0]])[0]
    judge.model.forward = fails("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes"):
        judge.answer_many([ASKS[0]])[0]


def test_the_room_left_bounds_the_reply(tmp_path):
    small = LocalJudge(str(save_model(tmp_path / "s", places=80)))
    prompt = len(small.tokenizer(small.rendered(ASKS[2]), add_special_tokens=False)["input_ids"])
    reply = small.answer_many([Ask(ASKS[2].system, ASKS[2].user, WORDS, max_tokens=500)])[0]
    assert prompt < 80 and reply.completion_tokens <= 80 - prompt


def test_other_weights_in_the_same_place_have_another_name(tmp_path):
    place = tmp_path / "m"
    names = [LocalJudge(str(save_model(place, seed=seed))).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2] and names[0].startswith(f"local:{place} ")


def test_a_place_is_a_package_a_folder_or_a_name(tmp_path):
    assert model_at("package:gt/model").path and model_at(str(tmp_path)).path and model_at("./missing").path
    assert model_at("Qwen/Qwen2.5-7B-Instruct").name == "Qwen/Qwen2.5-7B-Instruct"


def test_not_every_server_enforces_a_schema_so_the_prompt_says_it():
    for question in (prompts.EXPLAIN, prompts.DETECT, prompts.MARKS, prompts.SIMULATE, prompts.CHOOSE, prompts.INTRUDE):
        assert "JSON" in question
