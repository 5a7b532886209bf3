"""Answers steered alone: prompts and chat templates keep their own activations."""

import copy
import json

import pytest
import torch
from tiny_chat import save_model

from metasae import UserError
from metasae.cli.app import app
from metasae.data.model import hooks
from metasae.data.model.host import Host
from metasae.recipe import recipe
from metasae.steering import Ablate, Set
from metasae.steering.edits import parse_edits
from metasae.steering.steering import steer
from metasae.steering.writing import run_steer
from test_steering import BOS, RESID, by_hand, sae_for, stream_at, written

EDITS = ["4=60", "5=off"]
PROMPTS = ["The river ran past", "Snow", "Why did the miller count sacks of flour until dusk?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("chat") / "llama"))


@pytest.fixture(scope="module")
def host(folder):
    return Host.load(recipe.Model(path=folder, dtype="fp32"), RESID)


@pytest.fixture(scope="module")
def sae_folder(host, folder, tmp_path_factory):
    sae = sae_for(host)
    sae.config.metadata["metasae"] = {"recipe": {"model": {"path": folder, "dtype": "fp32"}}}
    place = tmp_path_factory.mktemp("sae")
    sae.save(place)
    return place


def prompt_ids(host, text):
    """The template by hand; it writes the only BOS of a message."""
    return torch.tensor([host.tokenizer(f"<s>user\n{text}</s><s>assistant\n", add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def answered_slowly(host, sae, ids, edits, steps):
    """Greedy, the whole text anew for every token, columns behind the prompt steered by the definition."""
    start, place = ids.shape[1], hooks.resolve(host.model, host.point, host.model.config.model_type, 2)

    def change(x):
        return torch.cat([x[:, :start], by_hand(sae, x[:, start:], edits).to(x)], 1)

    for _ in range(steps):
        with hooks.hooked(place, change):
            logits = host.model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        if ids[0, -1] == host.tokenizer.eos_token_id:
            break
    return ids[:, start:]


def test_an_answer_is_what_the_definition_gives_and_the_prompt_is_left_alone(host, sae_folder):
    sae, edits = sae_for(host), parse_edits(EDITS)
    result = run_steer(sae_folder, EDITS, PROMPTS, tokens=8, chat=True)
    assert result["chat"] is True
    for prompt, text in zip(PROMPTS, result["texts"], strict=True):
        ids = prompt_ids(host, prompt)
        slow = answered_slowly(host, sae, ids, edits, 8)
        plain = host.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert text["with"] == host.tokenizer.decode(slow[0], skip_special_tokens=True)
        assert text["without"] == host.tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        # the last token of the template foretells the first of the answer
        assert slow[0, 0] == plain[0, ids.shape[1]]
        whole = torch.cat([ids, slow], 1)
        mask = torch.ones_like(whole)
        bare = host.output(whole, mask)
        with steer(host, sae, edits, start=ids.shape[1], keep=()):
            logits, stream = host.output(whole, mask), stream_at(host, whole, mask)
        assert torch.equal(logits[:, : ids.shape[1]], bare[:, : ids.shape[1]])
        changed = (stream != stream_at(host, whole, mask)).any(-1)
        assert changed[:, ids.shape[1] :].all() and not changed[:, : ids.shape[1]].any()
    assert any(text["with"] != text["without"] for text in result["texts"])


def test_messages_together_are_answered_as_each_alone(sae_folder):
    together = run_steer(sae_folder, EDITS, PROMPTS, tokens=8, chat=True)["texts"]
    assert together == [run_steer(sae_folder, EDITS, [text], tokens=8, chat=True)["texts"][0] for text in PROMPTS]


def test_an_edit_that_changes_nothing_gives_the_same_answer(sae_folder):
    for options in ({}, {"seed": 3}):
        for text in run_steer(sae_folder, ["4*=1"], PROMPTS, tokens=12, chat=True, **options)["texts"]:
            assert text["with"] == text["without"]


def test_the_template_writes_the_only_bos(sae_folder, host, monkeypatch):
    asked = []
    generate = type(host.model).generate

    def spy(self, **options):
        asked.append(options["input_ids"])
        return generate(self, **options)

    monkeypatch.setattr(type(host.model), "generate", spy)
    run_steer(sae_folder, EDITS, PROMPTS[:1], tokens=1, chat=True)
    assert [ids.tolist() for ids in asked] == [prompt_ids(host, PROMPTS[0]).tolist()] * 2


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "windowed"])
def test_start_counts_columns_with_any_cache_and_padding(load, family, options):
    host = load(family.replace("windowed", "gemma2"), RESID)
    if family == "windowed":
        # a cache that holds fewer tokens than the text has
        config = copy.deepcopy(host.model.config)
        config.sliding_window = 4
        torch.manual_seed(0)
        host = Host(type(host.model)(config), host.tokenizer, RESID, causal=True)
    sae = sae_for(host)
    ids = torch.randint(5, 300, (3, 7), generator=torch.Generator().manual_seed(1))
    lengths, mask = (7, 4, 2), torch.ones_like(ids)
    ids[:, 0] = BOS
    padded, padded_mask = torch.zeros_like(ids), torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        padded[row, 7 - length :], padded_mask[row, 7 - length :] = ids[row, :length], 1
    edits = {4: Set(20 * float(host.activations(ids, mask).std())), 5: Ablate()}
    plain = written(host, padded, padded_mask, **options)
    with steer(host, sae, edits, start=7):
        together = written(host, padded, padded_mask, **options)
    for row, length in enumerate(lengths):
        with steer(host, sae, edits, start=length):
            alone = written(
                host,
                ids[row : row + 1, :length],
                mask[row : row + 1, :length],
                use_cache=False,
                **({"num_beams": 2} if "num_beams" in options else {}),
            )
        assert torch.equal(together[row : row + 1], alone)
    assert not torch.equal(together, plain)
    if "num_beams" not in options:
        assert torch.equal(together[:, 0], plain[:, 0])


def test_a_model_without_a_chat_template_is_one_line(sae_folder, build):
    with pytest.raises(UserError, match="has no chat template; name an instruction-tuned model") as caught:
        run_steer(sae_folder, ["4=1"], ["a"], model=str(build("llama")), chat=True)
    assert "\n" not in str(caught.value)


def test_the_command_line_answers(sae_folder, capsys):
    call = ["steer", str(sae_folder), "--latent", "4=60", "--prompt", PROMPTS[1], "--tokens", "4", "--chat", "--json"]
    app(call, standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == run_steer(sae_folder, ["4=60"], PROMPTS[1:2], tokens=4, chat=True)
