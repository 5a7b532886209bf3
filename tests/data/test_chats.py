"""Chats and token ids through the tokenizer and the harvest: one BOS, the same ids, the same bytes after a stop."""

import json
import shutil

import numpy as np
import pytest

from metasae import UserError
from metasae.data.cache import passes
from metasae.data.cache.activations import harvest, identity
from metasae.data.cache.cache import INDEX
from metasae.data.model.host import Host
from metasae.data.text import text as texts
from metasae.data.text.records import Chat, TokenIds
from metasae.data.text.windows import Frame, tokenise
from metasae.recipe import recipe
from sources import CHAT_TEMPLATE, tokenizer_for

POINT = "blocks.1.hook_resid_pre"
TOKENS = {"train": 1500, "calibration": 300, "evaluation": 300}
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=64, shard_tokens=500)


@pytest.fixture
def gpt():
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def chat(*contents):
    roles = ("user", "assistant")
    return Chat(tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(contents)), "record 1 of x")


def ids_of(tokenizer, document):
    frame = Frame.of(tokenizer, causal=tokenizer.cls_token is None)
    ((_, _, ids),) = tokenise(tokenizer, [(0, document)], frame)
    return ids.tolist()


def test_a_chat_has_the_templates_ids_and_one_bos(gpt):
    spoken = chat("Hello?", "Snow fell.")
    whole = gpt.apply_chat_template(list(spoken.messages), tokenize=True, return_dict=False)
    assert whole[0] == gpt.bos_token_id and whole.count(gpt.bos_token_id) == 1
    assert [gpt.bos_token_id, *ids_of(gpt, spoken)] == whole
    gpt.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    assert [gpt.bos_token_id, *ids_of(gpt, spoken)] == whole


def test_chats_that_cannot_be_written(gpt):
    with pytest.raises(
        UserError, match=r"record 1 of x does not fit the model's chat template \(roles must take turns\)"
    ):
        ids_of(gpt, Chat(({"role": "assistant", "content": "Hello."},), "record 1 of x"))
    with pytest.raises(UserError, match=r"record 1 of x is a chat and the model's tokenizer has no chat template"):
        ids_of(tokenizer_for("gpt2", bos=True), chat("Hello?"))


def test_ids_are_taken_as_they_are(gpt):
    bos, most = gpt.bos_token_id, max(gpt.get_vocab().values())

    def taken(*ids, tokenizer=gpt):
        return ids_of(tokenizer, TokenIds(np.array(ids), "record 7 of x"))

    assert taken(9, bos, most) == [9, bos, most]
    assert taken(bos, bos, 9) == [9] and taken(bos) == []
    with pytest.raises(UserError, match=rf"record 7 of x holds token id {most + 1}, .* ends at {most};"):
        taken(9, most + 1)
    bert = tokenizer_for("bert", bos=False)
    assert taken(bert.cls_token_id, 9, 8, bert.sep_token_id, tokenizer=bert) == [9, 8]


def test_kinds_keep_their_places_in_a_batch(gpt):
    mixed = ["one", TokenIds(np.array([9, 8]), ""), chat("two"), "three"]
    together = [ids.tolist() for _, _, ids in tokenise(gpt, enumerate(mixed), Frame.of(gpt, True))]
    assert together == [ids_of(gpt, document) for document in mixed]


@pytest.fixture
def sources(stories, tmp_path, build):
    """kind -> (folder of a model that can read it, text)"""
    folder = shutil.copytree(build("gpt2"), tmp_path / "model")
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    records = {
        "chats": [{"messages": [{"role": "user", "content": story}]} for story in stories],
        "token ids": [{"input_ids": tokenizer(story)["input_ids"]} for story in stories],
    }

    def make(kind):
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records[kind]))
        text = recipe.Text(source=str(path), context=16, calibration_share=0.2, evaluation_share=0.2)
        return Host.load(recipe.Model(path=str(folder), dtype="fp32"), POINT), text

    return make


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", ["chats", "token ids"])
def test_a_stopped_harvest_ends_with_the_same_bytes_and_refuses_another_text(kind, sources, tmp_path, monkeypatch):
    host, text = sources(kind)
    whole = harvest(host, text, SPEC, tmp_path / "whole", TOKENS)
    assert whole.index["kinds"] == {kind: whole.index["documents"]} and whole.text.startswith("text.jsonl: ")
    count = 0

    def stopped(*args, real=passes.activations_at):
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(passes, "activations_at", stopped)
    with pytest.raises(KeyboardInterrupt):
        harvest(host, text, SPEC, tmp_path / "again", TOKENS)
    shutil.copytree(tmp_path / "again", tmp_path / "other")
    documents = list(texts.documents(text))
    assert not (tmp_path / "again" / INDEX).exists()
    harvest(host, text, SPEC, tmp_path / "again", TOKENS)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    # the same file in name and place, other documents in it
    monkeypatch.setattr(texts, "documents", lambda _: iter(documents[1:]))
    with pytest.raises(UserError, match="has changed since the harvest was interrupted"):
        harvest(host, text, SPEC, tmp_path / "other", TOKENS)


def test_another_template_is_another_harvest(sources):
    host, text = sources("chats")
    before, built_in = identity(host, text, SPEC), identity(host, recipe.Text(), SPEC)
    host.tokenizer.chat_template += " "
    assert identity(host, text, SPEC) != before and identity(host, recipe.Text(), SPEC) == built_in
