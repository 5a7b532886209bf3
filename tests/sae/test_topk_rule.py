"""Rule "topk": the k largest positive pre-activations of each token, ties to the lower latent, saved as SAELens's
topk.
"""

import json

import pytest
import torch

from metasae.errors import UserError
from metasae.sae.sae import SAE, SAEConfig, largest_of_rows

D, N, K = 6, 30, 4


def sae_of(k=K, normalize="none", seed=0):
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(D, N, "topk", k, normalize, {"hook_name": "h"}, rule="topk"))
    sae.init_weights(generator)
    sae.b_enc.data.copy_(torch.randn(N, generator=generator) * 0.3)
    sae.b_dec.data.copy_(torch.randn(D, generator=generator) * 0.3)
    sae.threshold = torch.zeros(N)
    return sae


def inputs(seed=1, tokens=50):
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed)) * 2


def by_hand(pre, k):
    """Token by token, latent by latent."""
    out = torch.zeros_like(pre)
    for token, row in enumerate(pre.tolist()):
        order = sorted(range(len(row)), key=lambda latent: (-row[latent], latent))
        for latent in order[:k]:
            out[token, latent] = max(row[latent], 0.0)
    return out


@pytest.mark.parametrize("k", [1, K, N - 1, N])
@pytest.mark.parametrize("normalize", ["none", "token", "token_eps"])
def test_the_k_largest_of_each_token_fire(k, normalize):
    sae, x = sae_of(k, normalize), inputs()
    codes = sae.codes(x)
    pre = sae.pre_activations(sae.normalise(x)[0])
    assert torch.equal(codes.acts, by_hand(pre, k))
    if k <= K:
        assert (codes.acts > 0).sum(1).max() == k
    assert torch.allclose(sae(x), sae.decode(codes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ties_go_to_the_lower_latent_and_tokens_without_positives_stay_silent(dtype):
    acts = torch.tensor(
        [[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0]],
        dtype=dtype,
    )
    expected = torch.tensor([[0, 2, 2, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0], [5, 5, 0, 0, 0]], dtype=dtype)
    assert torch.equal(largest_of_rows(acts, 2), expected)


@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D), (0, D)])
def test_leading_shapes_pass_through(shape):
    sae = sae_of()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert sae.encode(x).shape == (*shape[:-1], N)
    assert torch.equal(sae.encode(x).reshape(-1, N), sae.encode(x.reshape(-1, D)))


def test_gradients_flow_to_the_input_through_the_latents_that_fire():
    sae, x = sae_of(), inputs(tokens=3).requires_grad_()
    acts = sae.encode(x)
    acts.sum().backward()
    assert torch.allclose(x.grad, (acts > 0).float() @ sae.W_enc.t())


def test_the_folder_keeps_the_rule(tmp_path):
    sae = sae_of(normalize="token")
    sae.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"], cfg["rescale_acts_by_decoder_norm"]) == ("topk", K, False)
    read = SAE.load(tmp_path)
    assert read.config == sae.config
    assert torch.equal(read.encode(inputs()), sae.encode(inputs())) and torch.equal(read(inputs()), sae(inputs()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, "k must be a whole number from 1 to d_sae"),
        ({"k": N + 1}, "k must be a whole number"),
        ({"k": 4.0}, "k must be a whole number"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is not supported"),
        ({"architecture": "jumprelu"}, "lacks the tensor 'threshold'"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, changes, words):
    sae_of().save(tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        SAE.load(tmp_path)


def test_what_saelens_cannot_hold_is_not_written(tmp_path):
    sae = sae_of()
    sae.threshold[2] = 0.5
    with pytest.raises(ValueError, match="no thresholds above 0"):
        sae.save(tmp_path / "x")
    with pytest.raises(ValueError, match="rule must be"):
        SAE(SAEConfig(D, N, rule="top"))
    assert not (tmp_path / "x").exists()


def test_token_eps_undoes_with_the_eps_that_it_divides_by(tmp_path):
    """Hand-computed: x = (1, 3) has mean 2 and std sqrt(2); the decoder gives (5, 0)."""
    sae = SAE(SAEConfig(2, 1, normalize="token_eps"))
    sae.threshold = torch.zeros(1)
    sae.b_dec.data.copy_(torch.tensor([5.0, 0.0]))
    std = 2**0.5
    out = sae(torch.tensor([[1.0, 3.0]]))
    assert out[0, 0].item() == pytest.approx(2 + 5 * (std + 1e-5), rel=1e-6) and out[0, 0].item() != pytest.approx(
        2 + 5 * std, rel=2e-6
    )
    sae.save(tmp_path)
    assert SAE.load(tmp_path).config.normalize == "token_eps"
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == "layer_norm"


def test_saelens_computes_the_same(tmp_path):
    saelens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[saelens]'")
    for normalize in ("none", "token"):
        sae, x = sae_of(normalize=normalize), inputs()
        sae.save(tmp_path / normalize)
        theirs = saelens.SAE.load_from_disk(tmp_path / normalize)
        assert type(theirs).__name__ == "TopKSAE"
        with torch.no_grad():
            assert torch.allclose(theirs.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
            assert torch.allclose(theirs(x), sae(x), rtol=1e-5, atol=1e-5)
