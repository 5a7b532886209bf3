"""Special tokens that a text or a message names are plain text, in every kind of tokenizer; all other ids stay."""

import json

import numpy as np
import pytest

from metasae import UserError
from metasae.data.cache.activations import harvest
from metasae.data.tagged import tokenised
from metasae.data.text.plain import MARK, OPTIONS, Plain
from metasae.data.text.records import Chat
from metasae.data.text.templates import written
from metasae.data.text.windows import Frame, prompt_ids, tokenise
from metasae.recipe import recipe
from sources import CHAT_TEMPLATE, STORIES, tokenizer_for

ENDS = "one <|endoftext|> two</s> [CLS]<pad>, three <s>."


def wrapped(backend, **marks):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def trained(model, trainer, **marks):
    from tokenizers import Tokenizer, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(STORIES * 10, trainer)
    return wrapped(backend, **marks)


def unigram():
    """Has the names of its special tokens among its pieces, and would put them together of letters."""
    from tokenizers import models, trainers

    special = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>"}
    alphabet = {"initial_alphabet": list("<|>/[]")}
    trainer = trainers.UnigramTrainer(vocab_size=150, show_progress=False, **special, **alphabet)
    return trained(models.Unigram(), trainer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def wordpiece():
    from tokenizers import models, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, **marks)


def listed():
    """`<|endoftext|>` named by the list of further tokens alone, which newer releases call otherwise."""
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    return tokenizer


def decoded():
    """`<|endoftext|>` in the list of added tokens alone."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_str(tokenizer_for("gpt2", bos=True).backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])
    return wrapped(backend, eos_token="</s>")


def named():
    """`<|endoftext|>` named by the map of special tokens, and an added token that is no special one by itself."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_str(tokenizer_for("gpt2", bos=True).backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<|endoftext|>", special=False)])
    return wrapped(backend, eos_token="<|endoftext|>")


MAKERS = [listed, decoded, named, unigram, wordpiece, lambda: tokenizer_for("gpt2", bos=True)]


@pytest.mark.parametrize("maker", MAKERS)
def test_names_are_plain_and_other_texts_keep_their_ids(maker):
    tokenizer = maker()
    plain = Plain(tokenizer)
    never = set(plain.specials.values()) - {tokenizer.unk_token_id}
    before = tokenizer.backend_tokenizer.to_str()
    assert never & set(tokenizer(ENDS, **OPTIONS)["input_ids"])
    (ids,) = plain.ids([ENDS])
    assert not never & set(ids) and "</s>" in plain.named
    if tokenizer.unk_token is None:
        assert tokenizer.decode(ids) == ENDS
    # the same ids as ever, of the tokenizer and of its twin
    usual = tokenizer(STORIES, **OPTIONS)["input_ids"]
    assert plain.ids(STORIES) == usual
    assert [plain._twin.encode(story, add_special_tokens=False).ids for story in STORIES] == usual
    assert tokenizer.backend_tokenizer.to_str() == before and plain.said.startswith("texts contain special tokens")


def test_the_tokenizers_without_a_twin(stories):
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    plain = Plain(tokenizer)
    assert tokenizer.eos_token_id in tokenizer("a </s> b", **OPTIONS)["input_ids"]
    (ids,) = plain.ids(["a </s> b"])
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == "a </s> b"
    assert plain.ids(stories[:20]) == tokenizer(stories[:20], **OPTIONS)["input_ids"]
    tokenizer.chat_template = "{{ messages[0]['content'] + eos_token }}"
    frame = Frame.of(tokenizer, causal=True)
    ((*_, ids),) = tokenise(tokenizer, [(0, Chat(({"role": "user", "content": "ab"},), "record 1"))], frame)
    assert ids[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match=r"record 1 does not fit .* the tokenizer is not a fast one"):
        list(tokenise(tokenizer, [(0, Chat(({"role": "user", "content": "a </s>"},), "record 1"))], frame))


def test_an_ordinary_piece_that_is_named_special_stays():
    tokenizer = tokenizer_for("gpt2", bos=True)
    piece = tokenizer.convert_ids_to_tokens(tokenizer(" river", **OPTIONS)["input_ids"][0])
    tokenizer.add_special_tokens({"pad_token": "!"})
    plain = Plain(tokenizer)
    assert "!" not in plain.specials and piece not in plain.specials
    assert plain.ids(["A river! And"]) == [tokenizer("A river! And", **OPTIONS)["input_ids"]] and not plain.named


def chat(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


def test_a_message_that_names_special_tokens_is_plain_and_the_templates_own_are_not():
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    plain = Plain(tokenizer)
    usual, bos, eos = chat("Hello?", "Snow fell."), tokenizer.bos_token_id, tokenizer.eos_token_id
    (ids,) = plain.ids([written(plain, usual)])
    assert ids == tokenizer.apply_chat_template(usual, tokenize=True, return_dict=False)
    assert plain._twin.encode(written(plain, usual), add_special_tokens=False).ids == ids
    (ids,) = plain.ids([written(plain, chat("end with </s> and <s>", "</s>"))])
    special = [number for number in ids if number in plain.specials.values()]
    assert special == [bos, eos, eos]
    assert tokenizer.decode(ids) == "<s>user: end with </s> and <s></s>assistant: </s></s>"
    # a role may name one too, and names may overlap
    assert plain.marked(plain.shielded("<</s>s>")) == "<</s>s>" and MARK in plain.shielded("<</s>s>")


def test_a_template_that_changes_what_it_is_given_is_refused():
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] | tojson }}{% endfor %}"
    plain = Plain(tokenizer)
    assert plain.ids([written(plain, chat("Hello."))])[0][0] == tokenizer.bos_token_id
    why = "cannot be told apart from the template's own, because the template changes the message"
    with pytest.raises(ValueError, match=why):
        written(plain, chat("Hello </s>."))


def test_places_of_named_special_tokens(load):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    sentences = ["the </s> bank", "the bank"]
    for sentence, (ids, places) in zip(sentences, tokenised(host, sentences, "word senses"), strict=True):
        assert not set(ids) & set(host.tokenizer.all_special_ids)
        assert "".join(sentence[start:stop] for start, stop in places).split() == sentence.split()


def test_a_prompt_that_begins_with_bos_has_one(load):
    tokenizer = tokenizer_for("gpt2", bos=True)
    frame, bos = Frame.of(tokenizer, causal=True), tokenizer.bos_token_id
    usual = prompt_ids(tokenizer, "Snow fell", frame)
    assert bos not in usual and prompt_ids(tokenizer, "<s><s>Snow fell", frame) == usual
    assert prompt_ids(tokenizer, "Snow fell</s>", frame) == [*usual, tokenizer.eos_token_id]
    # half an emoji and NUL
    assert tokenizer.decode(prompt_ids(tokenizer, "Snow\0 \udce9", frame)) == "Snow \ufffd"
    bert = tokenizer_for("bert", bos=False)
    assert prompt_ids(bert, "[CLS]Snow[SEP]", Frame.of(bert, causal=False)) == prompt_ids(bert, "Snow", Frame())


def test_steering_and_trying_read_one_bos(load):
    from metasae.data.model.one_text import read_text
    from metasae.steering.writing import _encoded

    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids, mask = _encoded(host, ["Snow fell", "<s>Snow fell"], 1, False)
    assert mask.all() and ids[0].tolist() == ids[1].tolist() and ids[0].tolist().count(host.bos_id) == 1
    named, usual = read_text(host, "<s>Snow fell", 16), read_text(host, "Snow fell", 16)
    assert named.ids.tolist() == usual.ids.tolist() and bool((named.x == usual.x).all())


def test_a_harvest_reads_them_as_text_and_says_so(load, stories, tmp_path):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    named_in = [f"{story} </s> and so on" if number % 5 == 0 else story for number, story in enumerate(stories)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(story) + "\n" for story in named_in))
    text = recipe.Text(source=str(path), context=16, calibration_share=0.2, evaluation_share=0.2)
    said = []

    class Heard:
        def __getattr__(self, name):
            from metasae.progress.progress import SILENT

            return said.append if name == "say" else getattr(SILENT, name)

    tokens = {"train": 3000, "calibration": 300, "evaluation": 300}
    cache = harvest(host, text, recipe.Harvest(dtype="fp32"), tmp_path / "cache", tokens, Heard())
    special = host.tokenizer.all_special_ids
    assert not np.isin(np.asarray(cache.split("train").tokens), special).any()
    assert said == ["note: texts contain special tokens of the model (</s>); they are read as plain text"]
