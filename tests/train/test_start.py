"""A training that starts from an existing SAE: the same reconstruction at step 0, latent by latent, and resumed."""

import pytest
import torch

from metasae.interop import load
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import forward
from metasae.sae.sae import SAE, SAEConfig
from metasae.train import checkpoint
from metasae.train.start import start_from
from metasae.train.trainer import Trainer
from tools import peers

D, N, K = 16, 48, 4


def given(normalize="none", rule="threshold", bias=True, thresholds=True):
    """An SAE as another library may leave one: rows of any length, one of them zero, biases and thresholds."""
    generator = torch.Generator().manual_seed(3)
    sae = SAE(SAEConfig(D, N, k=K, normalize=normalize, rule=rule))
    for tensor in (sae.W_enc.data, sae.W_dec.data, sae.b_dec.data):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    sae.W_dec.data[7] = 0
    if bias:
        sae.b_enc.data.copy_(torch.randn(N, generator=generator))
    if rule == "threshold":
        sae.threshold = torch.rand(N, generator=generator) + 0.5 if thresholds else torch.zeros(N)
    return sae


def recipe_of(normalize="global", **sae):
    train = {"tokens": 64 * 20, "batch": 64, "dtype": "fp32", "dead_after": 300, "k_aux": 4}
    return Recipe.load({"sae": {"n": N, "k": K, "normalize": normalize, **sae}, "train": train})


def trainer_from(sae, scale, recipe, arm="solo"):
    start = start_from(sae, scale)
    return Trainer(recipe, arm, 0, start.b_dec_D, start=start)


def inputs(count=200):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(5)) * 2 + 0.3


@pytest.mark.parametrize(("normalize", "scale"), [("none", 1.0), ("none", 0.23), ("none", 17.0), ("token", 1.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_reconstruction_at_step_0_is_the_given_ones(normalize, scale, bias):
    sae, x = given(normalize, bias=bias), inputs()
    trainer = trainer_from(sae, scale, recipe_of("token" if normalize == "token" else "global"))
    out, norms = trainer.export(scale, {})["primary"], sae.W_dec.norm(dim=1)
    # latent i is latent i: its activations are the given ones, in units of its row's length
    out.threshold = sae.threshold * torch.where(norms > 0, norms, 1.0)
    torch.testing.assert_close(out.encode(x)[:, norms > 0], (sae.encode(x) * norms)[:, norms > 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out(x), sae(x), rtol=1e-4, atol=1e-4)
    assert (trainer.primary.weights.b_enc_N is not None) == bias
    lengths = out.W_dec.norm(dim=1)
    torch.testing.assert_close(lengths, (torch.arange(N) != 7).float())


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_the_first_step_selects_by_the_given_encoder(scale):
    """What a forward pass of training rebuilds is scale times what the SAE rebuilds from the k B largest activations,
    each in units of its row's length.
    """
    sae, x = given(), inputs(64)
    trainer = trainer_from(sae, scale, recipe_of())
    learner = trainer.primary
    passed = forward(x * scale, learner.weights, learner.architecture, K, 0.0, trainer.how)
    norms = sae.W_dec.norm(dim=1)
    a = sae.pre_activations(x).relu() * torch.where(norms > 0, norms, 1.0)
    z = torch.where(a >= a.flatten().sort(descending=True).values[K * 64 - 1], a, 0.0)
    wanted = scale * (z @ (sae.W_dec / torch.where(norms > 0, norms, 1.0)[:, None]) + sae.b_dec)
    torch.testing.assert_close(x * scale - passed.residuals[-1], wanted, rtol=1e-4, atol=1e-4)


def test_another_seed_starts_from_the_same_and_a_fresh_one_does_not():
    sae = given()
    start = start_from(sae, 0.5)
    rows = [Trainer(recipe_of(), "solo", seed, start.b_dec_D, start=start).primary.weights for seed in (0, 1)]
    assert torch.equal(rows[0].W_dec_ND, rows[1].W_dec_ND) and torch.equal(rows[0].b_enc_N, rows[1].b_enc_N)
    assert rows[0].W_dec_ND.data_ptr() != start.W_dec_ND.data_ptr()
    fresh = Trainer(recipe_of(), "solo", 0, start.b_dec_D).primary.weights
    assert fresh.b_enc_N is None and not torch.equal(fresh.W_dec_ND, rows[0].W_dec_ND)


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize("thresholds", [True, False])
def test_architectures_that_learn_their_rule(kind, thresholds):
    sae, scale, x = given(thresholds=thresholds), 0.5, inputs(64)
    trainer = trainer_from(sae, scale, recipe_of(architecture=kind))
    norms = sae.W_dec.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    weights = trainer.primary.weights
    before = weights.b_enc_N.clone()
    trainer.primary.begin(x * scale, trainer.how)
    # the first batch moves no bias, and thresholds only where the SAE has none
    assert torch.equal(weights.b_enc_N, before)
    if kind == "jumprelu" and thresholds:
        torch.testing.assert_close(weights.log_threshold_N.exp(), sae.threshold * norms * scale)
        out = trainer.export(scale, {})["primary"]
        torch.testing.assert_close(out(x), sae(x), rtol=1e-4, atol=1e-4)
    if kind == "jumprelu" and not thresholds:
        fires = trainer.primary.architecture.select(
            (x * scale - weights.b_dec_D) @ weights.W_enc_ND.t() + weights.b_enc_N, weights, K, 0.0, trainer.how.kernels
        )[0]
        assert (fires.values > 0).sum() == K * 64


@pytest.mark.parametrize("arm", ["solo", "joint", "atomic"])
def test_resumed_to_the_bit(arm, tmp_path, batches):
    def fresh():
        return trainer_from(given(), 0.5, recipe_of(), arm)

    def on(trainer, source, until):
        while trainer.done.primary < until and (action := trainer.next_action()):
            trainer.primary_step(source.next()) if action == "primary" else trainer.meta_step()

    whole, source = fresh(), batches()
    on(whole, source, 17)
    first, source = fresh(), batches()
    on(first, source, 9)
    checkpoint.save(first, [], 0, tmp_path)
    second = fresh()
    checkpoint.load(second, tmp_path)
    on(second, source, 17)
    for key, tensor in whole.primary.weights.tensors().items():
        assert torch.equal(tensor, getattr(second.primary.weights, key)), key


@pytest.mark.parametrize(
    ("format", "architecture", "normalisation"),
    [
        ("saelens", "standard", "none"),
        ("saelens", "jumprelu", "layer_norm"),
        ("saelens", "gated", "no b_dec"),
        ("saelens", "topk rescaled", "expected_average_only_in"),
        ("saelens", "jumprelu", "expected_average_only_in"),
        ("dictionary_learning", "AutoEncoderTopK", "none"),
        ("dictionary_learning", "JumpReluAutoEncoder", "none"),
        ("sparsify", "topk", "none"),
    ],
)
def test_saes_of_other_libraries_rebuild_the_same_at_step_0(format, architecture, normalisation, tmp_path):
    sae, x = load(peers.make(format, architecture, normalisation, tmp_path / "sae")), peers.inputs()
    by_token = sae.config.normalize != "none"
    scale = 1.0 if by_token else 0.3
    trainer = trainer_from(sae, scale, recipe_of("token" if by_token else "global", n=peers.N))
    out, norms = trainer.export(scale, {})["primary"], sae.W_dec.norm(dim=1)
    codes = sae.codes(x)
    # the given SAE's own rule decides which latents fire
    a = out.pre_activations(out.normalise(x)[0]).relu() * (codes.acts > 0)
    torch.testing.assert_close(a, codes.acts * norms, rtol=1e-4, atol=1e-4)
    wanted = sae.decode(codes)
    rebuilt = a @ out.W_dec + out.b_dec
    rebuilt = rebuilt if codes.mean is None else rebuilt * codes.std + codes.mean
    torch.testing.assert_close(rebuilt, wanted, rtol=1e-4, atol=1e-4)
