"""The Python interface as a researcher meets it: SAEs loaded, called, printed, and refused by name and number."""

import math

import pytest
import torch

import metasae
from metasae.data.model.host import Host
from metasae.recipe import recipe
from metasae.sae.sae import SAE, SAEConfig
from tools.matrix import random_sae


def inputs(n_tokens=50, d=16):
    return torch.randn(n_tokens, d, generator=torch.Generator().manual_seed(1))


def sae_of(normalize="none", rule="threshold", **notes) -> SAE:
    sae = SAE(SAEConfig(16, 40, "batchtopk", 4, normalize, notes, rule))
    sae.init_weights(torch.Generator().manual_seed(0))
    if rule == "threshold":
        sae.threshold = torch.full((40,), 0.25)
    return sae


@pytest.mark.parametrize("shape", [(16,), (50, 16), (5, 10, 16)])
def test_encode_gives_a_tensor_that_decode_takes(shape):
    sae, x = sae_of(), inputs().reshape(-1)[: math.prod(shape)].reshape(shape)
    acts = sae.encode(x)
    assert type(acts) is torch.Tensor and acts.shape == (*shape[:-1], 40)
    # what a researcher does with activations
    assert (acts > 0).any() and acts.topk(3).values.shape == (*shape[:-1], 3) and (acts @ sae.W_dec).shape == shape
    assert torch.equal(sae.decode(acts), sae(x))
    # half precision is widened
    assert sae.encode(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("normalize", ["token", "token_eps"])
def test_an_sae_with_statistics_of_each_token_says_how_to_decode(normalize):
    sae, x = sae_of(normalize), inputs() * 3 + 1
    codes = sae.codes(x)
    assert torch.equal(codes.acts, sae.encode(x)) and codes.mean.shape == codes.std.shape == (50, 1)
    assert torch.equal(sae.decode(codes), sae(x))
    with pytest.raises(metasae.UserError, match=r"normalises each token.*use codes = sae\.codes\(x\)"):
        sae.decode(sae.encode(x))


def test_wrong_inputs_are_refused_with_the_number():
    sae, x = sae_of(), inputs()
    for call in (sae.encode, sae.codes, sae):
        with pytest.raises(metasae.UserError, match="x has the width 7, and this SAE reads vectors of width 16"):
            call(torch.zeros(3, 7))
    with pytest.raises(metasae.UserError, match="activations have the width 39, and this SAE has 40 latents"):
        sae.decode(torch.zeros(3, 39))
    x[3, 5], x[9, 0] = torch.nan, torch.inf
    for call in (sae.encode, sae):
        with pytest.raises(metasae.UserError, match=r"x\[3, 5\] is NaN or inf, as are 1 more"):
            call(x)
    # large numbers whose sum overflows are no NaN
    sae.encode(torch.full((2, 16), 3e38))
    with pytest.raises(metasae.UserError, match="no SAE at 'nowhere'"):
        metasae.load("nowhere")


def test_an_sae_is_printed_in_one_line():
    notes = {"metasae": {"arm": "joint", "seed": 2}, "hook_name": "blocks.4.hook_resid_pre", "model_name": "gpt2"}
    assert repr(sae_of(**notes)) == (
        "SAE(joint-s2: 40 latents of width 16, batchtopk, at blocks.4.hook_resid_pre, of gpt2, k 4, threshold 0.25)"
    )
    assert repr(sae_of(rule="topk")) == (
        "SAE(40 latents of width 16, batchtopk, k 4, keeps the k largest of each token)"
    )
    sae = sae_of()
    sae.threshold[3] = 0.5
    assert "thresholds 0.25 to 0.5" in repr(sae)
    sae.threshold = None
    assert "no threshold yet" in repr(sae)


def test_a_run_an_arm_and_an_sae_folder_load(tmp_path):
    for arm, seed in (("solo", 0), ("joint", 0), ("joint", 1)):
        random_sae("one threshold", "none", seed=10 * len(arm) + seed).save(
            tmp_path / f"run/arms/{arm}-s{seed}/primary"
        )
    by_name = metasae.load(tmp_path / "run", arm="joint", seed=0)
    for path in ("run/arms/joint-s0", "run/arms/joint-s0/primary"):
        assert torch.equal(metasae.load(tmp_path / path).W_dec, by_name.W_dec)
    with pytest.raises(metasae.UserError, match=r"none of its SAEs has arm='nested'.*: solo-s0, joint-s0, joint-s1"):
        metasae.load(tmp_path / "run", arm="nested")


def trained_on(load, build, **notes):
    """An SAE over a tiny model's activations, and that model's folder."""
    folder = build("gpt2")
    sae = SAE(SAEConfig(32, 60, "batchtopk", 4, "none", notes))
    sae.init_weights(torch.Generator().manual_seed(0))
    # activations of an untrained model are small
    sae.threshold = torch.full((60,), 0.01)
    return sae, folder


def test_latents_of_a_text_by_the_saes_own_notes(load, build):
    values = {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"context": 32},
    }
    sae, _ = trained_on(load, build, metasae={"arm": "joint", "seed": 0, "recipe": values})
    text = "The river ran past the old mill, and the miller counted sacks of flour"
    table = sae.latents(text)
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids = torch.tensor([[host.bos_id, *host.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    assert ids.shape[1] < 32 and "".join(table.tokens) == text
    expected = sae.encode(host.activations(ids, torch.ones_like(ids))[0, 1:].float())
    assert torch.equal(table.acts, expected) and table.acts.shape == (len(table), 60)
    strongest = table.top(2)
    assert len(strongest) == len(table) and all(len(pairs) <= 2 for pairs in strongest)
    latent, value = strongest[0][0]
    assert value == float(table.acts[0].max()) and int(table.acts[0].argmax()) == latent
    assert repr(table).splitlines()[0].startswith(repr(table.tokens[0])) and f"{latent}: {value:.3g}" in repr(table)
    assert "<table>" in table._repr_html_()
    # the same function by its public name
    assert torch.equal(metasae.latents(sae, text).acts, table.acts)


def test_latents_as_a_data_frame(load, build):
    pytest.importorskip("pandas")
    sae, folder = trained_on(load, build)
    table = sae.latents("The river ran", folder, point="blocks.1.hook_resid_pre")
    frame = table.to_pandas()
    assert list(frame.index) == table.tokens and (frame.to_numpy() > 0).any(0).all()


def test_latents_with_a_model_of_ones_own(load, build):
    point = "blocks.1.hook_resid_pre"
    sae, folder = trained_on(load, build, model_name="nowhere/at-all", hook_name=point, prepend_bos=False)
    without = sae.latents("The river ran", str(folder))
    # the notes say that it was trained without BOS
    assert not torch.equal(without.acts, sae.latents("The river ran", load("gpt2", point)).acts)
    # in the dtype that a path is read in: bf16 where the processor multiplies it
    host = Host.load(recipe.Model(path=str(folder)), point)
    model = sae.latents("The river ran", host.model, tokenizer=host.tokenizer)
    torch.testing.assert_close(model.acts, without.acts)
    own = host.model.train().requires_grad_(True)
    sae.latents("The river ran", own, tokenizer=host.tokenizer)
    assert own.training and all(p.requires_grad for p in own.parameters())
    own.eval().requires_grad_(False)
    with pytest.raises(metasae.UserError, match="give the tokenizer with the model"):
        sae.latents("The river ran", host.model)


def test_latents_say_what_they_lack(load, build):
    sae, folder = trained_on(load, build)
    with pytest.raises(metasae.UserError, match="metadata name no hook point"):
        sae.latents("text")
    sae.config.metadata = {"hook_name": "blocks.1.hook_resid_pre"}
    with pytest.raises(metasae.UserError, match="metadata name no model; pass a name or a folder"):
        sae.latents("text")
    with pytest.raises(metasae.UserError, match=r"the model folder '.*nowhere' does not exist"):
        sae.latents("text", "./nowhere")
    with pytest.raises(metasae.UserError, match="makes no token of this text"):
        sae.latents("", folder)
    narrow = sae_of(hook_name="blocks.1.hook_resid_pre")
    with pytest.raises(metasae.UserError, match="gives vectors of width 32, and this SAE reads 16"):
        narrow.latents("text", folder)
