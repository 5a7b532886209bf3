import json

import pytest
import torch

from metasae.errors import UserError
from metasae.explore.pages.trying import MOST_TOKENS, Trying
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE, SAEConfig

TEXT = "The river ran past the old mill, and the miller counted sacks of flour until dusk."


def recipe_of(folder):
    model = {"path": str(folder), "dtype": "fp32"}
    return Recipe.load({"model": model, "hook": {"point": "blocks.1.hook_resid_pre"}, "text": {"context": 16}})


@pytest.fixture
def run(build, tmp_path):
    """A run folder of two SAEs with random weights, where about a third of the latents fire."""
    (tmp_path / "recipe.toml").write_text(recipe_of(build("gpt2")).dump())
    for number, name in enumerate(("solo-s0", "joint-s0")):
        sae = SAE(SAEConfig(d_in=32, d_sae=24, k=4))
        sae.init_weights(torch.Generator().manual_seed(number))
        sae.b_dec.copy_(torch.randn(32, generator=torch.Generator().manual_seed(5)))
        sae.threshold = torch.full((24,), 0.4)
        sae.save(tmp_path / "arms" / name / "primary")
    return tmp_path


def test_what_fires_is_what_the_sae_says_of_each_window(run, load):
    answer = Trying(run)(TEXT)
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids = host.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert "".join(answer["tokens"]) == TEXT and len(answer["tokens"]) == len(ids) and answer["left_out"] == 0
    json.dumps(answer, allow_nan=False)
    for name, shown in answer["saes"].items():
        sae = SAE.load(run / "arms" / name / "primary")
        assert len(shown["fired"]) == len(ids)
        # one window after another, each alone, with the beginning-of-text token before it
        for start in range(0, len(ids), 15):
            window = torch.tensor([[host.bos_id, *ids[start : start + 15]]])
            acts_TN = sae.encode(host.activations(window, torch.ones_like(window))[0, 1:].float())
            for t, acts_N in enumerate(acts_TN):
                fired = shown["fired"][start + t]
                assert {latent for latent, _ in fired} == set(acts_N.nonzero().flatten().tolist())
                assert [value for _, value in fired] == sorted((value for _, value in fired), reverse=True)
                assert all(abs(acts_N[latent].item() - value) < 1e-4 for latent, value in fired)
    assert any(fired for fired in answer["saes"]["solo-s0"]["fired"])


def test_a_long_text_is_cut_and_says_so(run):
    answer = Trying(run)(TEXT * 200)
    assert len(answer["tokens"]) == MOST_TOKENS and answer["left_out"] > 0
    assert all(len(shown["fired"]) == MOST_TOKENS for shown in answer["saes"].values())


def test_emoji_and_broken_characters_are_text(run):
    answer = Trying(run)("\U0001f9ea \ud800 שלום")
    "".join(answer["tokens"]).encode()


def test_the_model_is_loaded_once_and_only_when_asked(run, monkeypatch):
    from metasae.data.model.host import Host

    loads, load = [], Host.load
    monkeypatch.setattr(Host, "load", lambda *args: loads.append(1) or load(*args))
    trying = Trying(run)
    assert loads == []
    trying("one"), trying("two")
    assert loads == [1]


def test_without_a_model_the_reason_is_one_line(run, build):
    (run / "recipe.toml").write_text(recipe_of("/nowhere").dump())
    with pytest.raises(UserError):
        Trying(run)(TEXT)
    (run / "recipe.toml").write_text(Recipe.load("planted").dump())
    with pytest.raises(UserError, match="planted"):
        Trying(run)(TEXT)
    (run / "recipe.toml").unlink()
    with pytest.raises(UserError, match=r"recipe\.toml"):
        Trying(run)(TEXT)


def test_a_latent_steers_what_the_model_writes(run):
    from metasae.steering.writing import written

    trying = Trying(run, written)
    texts = trying.steer("joint-s0", 3, "The river", 40.0)
    assert texts["prompt"] == "The river" and texts["without"] != texts["with"]
    assert trying.steer("joint-s0", 3, "The river", 40.0) == texts, "the likeliest token each time"
    with pytest.raises(KeyError, match="no SAE"):
        trying.steer("none-s0", 3, "The river", 1.0)
    with pytest.raises(UserError, match="no latent 24"):
        trying.steer("joint-s0", 24, "The river", 1.0)
    with pytest.raises(UserError, match="without steering"):
        Trying(run).steer("joint-s0", 3, "The river", 1.0)
