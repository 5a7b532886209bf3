"""A run on chats, and one on token ids: everything behind the harvest reads tokens, whatever they were made of."""

import json

import pytest
import torch

import metasae
from metasae.errors import UserError
from metasae.explore.pages.queries import Explorer
from metasae.interp.choice import InterpSpec
from metasae.interp.excerpts import WindowSpec
from metasae.interp.run import run_interp
from metasae.recipe.recipe import Recipe
from sources import CHAT_TEMPLATE, tokenizer_for

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a chat template."""
    import transformers

    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = tokenizer_for("gpt2", bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=400)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def recipe_of(model, path, **harvest):
    return {
        "model": {"path": str(model), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.3},
        "harvest": {"batch_tokens": 256, **harvest},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {"tokens": 6000, "batch": 128},
        "spikes": {"n": 8, "amplitudes": [0.5, 0.8], "rates": [0.01, 0.05]},
        "measure": {
            "tokens": 3000, "calibration_tokens": 1000, "output_tokens": 0, "meta_steps": 5, "shifts": 0,
            "lift": False, "pursuit_k": 0, "critics": 1,
        },
        "arms": ["solo", "joint"],
        "seeds": [0],
    }  # fmt: skip


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("kind", "harvest", "words"),
    [
        ("messages", {"window_tokens": 2500}, "chats, read with the model's chat template"),
        ("input_ids", {}, "token ids as given"),
    ],
)
def test_a_whole_run(build, model, stories, tmp_path, kind, harvest, words):
    tokenizer = tokenizer_for("gpt2", bos=True)
    value_of = {
        "messages": lambda story: [{"role": "user", "content": story}, {"role": "assistant", "content": "Yes."}],
        "input_ids": lambda story: tokenizer(story)["input_ids"],
    }[kind]
    path = written(tmp_path / "text.jsonl", [{kind: value_of(story)} for story in stories])
    out = tmp_path / "runs" / "a"
    result = metasae.run(recipe_of(model, path, **harvest), out=out, show=False).comparison
    told = f"text.jsonl: {words}"
    assert result["conditions"]["text"] == told
    assert json.loads((out / "run.json").read_text())["stages"]["harvest"]["text"] == told
    for name in ("compare.md", "report.html"):
        assert f"Text: {told}." in (out / name).read_text().replace("&#39;", "'")
    measures = json.loads((out / "arms" / "solo-s0" / "measures.json").read_text())
    assert measures["spikes"] and measures["concepts"]["n"] > 0
    assert Explorer(out).is_current()
    windows = WindowSpec(length=8, train=4, score=4, silent=2)
    spec = InterpSpec(scores=["embedding"], latents=4, window=windows, encoder=str(build("bert")))
    interp = run_interp(out, spec, None, show=False)
    assert interp["arms"]["solo-s0"]["interp"]["scores"]["embedding"]


def test_what_cannot_be_read_is_said_by_the_doctors_trial_too(build, tmp_path, stories):
    from metasae.data.model.host import Host
    from metasae.doctor.trials import try_harvest

    path = written(tmp_path / "x.jsonl", [{"messages": [{"role": "user", "content": story}]} for story in stories])
    recipe = Recipe.load(recipe_of(build("gpt2"), path))
    with pytest.raises(UserError, match=r"record 1 of .*x\.jsonl is a chat and .* no chat template"):
        try_harvest(Host.load(recipe.model, recipe.hook.point), recipe, tmp_path / "trial")
