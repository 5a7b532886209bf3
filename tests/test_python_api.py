"""The Python interface as a researcher meets it: SAEs loaded, called, printed, and refused by name and number."""

import math

import pytest
import torch

import metasae
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
    with pytest.raises(metasae.UserError, match=r"no SAE of it fits arm='nested'.*: solo-s0, joint-s0, joint-s1"):
        metasae.load(tmp_path / "run", arm="nested")
