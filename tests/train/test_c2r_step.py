"""A training step that is charged C2R equals the specification in autograd, in all weights."""

import pytest
import torch
from test_penalties import c2r

from metasae.recipe.recipe import Recipe
from metasae.sae.weights import Weights
from metasae.train.objective import batch_topk, encode, meta_reconstruction, sae_losses
from metasae.train.trainer import Trainer

N, D, K, BATCH, COEF = 40, 12, 3, 64, 5.0


def trainer_at(step, kernels="fast", every=1):
    recipe = Recipe.load(
        {
            "sae": {"n": N, "k": K, "b_enc": True, "normalize": "none"},
            "meta": {"n": 8, "k": 2},
            "train": {
                "tokens": BATCH * 40,
                "batch": BATCH,
                "dtype": "fp32",
                "kernels": kernels,
                "dead_after": 200,
                "k_aux": 4,
                "penalties": {"c2r": COEF},
                "penalty_every": every,
            },
        }
    )
    trainer = Trainer(recipe, "joint", 0, torch.full((D,), 0.1))
    for number in range(step):
        trainer.primary_step(batch(number))
    return trainer


def batch(number):
    generator = torch.Generator().manual_seed(number)
    directions = torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    return (torch.rand(BATCH, 20, generator=generator) < 0.1).float() @ directions + 0.1


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize(("step", "every"), [(0, 1), (8, 1), (8, 4)])
def test_a_step_with_c2r_equals_autograd(step, every, kernels):
    trainer, x = trainer_at(step, kernels, every), batch(1000)
    primary, recipe = trainer.primary, trainer.recipe
    leaves = Weights(
        **{name: tensor.clone().requires_grad_() for name, tensor in primary.weights.tensors().items()},
    )
    wh = meta_reconstruction(leaves.W_dec_ND.detach(), trainer.meta.weights, 2 * N, "token")
    fires = batch_topk(encode(x, leaves), K * BATCH)
    dead = primary.silent_N.add(BATCH).masked_fill((fires > 0).any(0), 0) >= 200
    aux = (4, recipe.train.aux_coef, True)
    spec = sae_losses(x, leaves, K * BATCH, dead, *aux, recipe.train.lambda2, recipe.train.sigma_sq, wh)
    charged = c2r(leaves.W_dec_ND, fires)
    (spec.total + every * COEF * charged).backward()

    losses, numbers, gradients = trainer.primary_gradients(x)
    torch.testing.assert_close(numbers["c2r"], charged.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(losses.total, (spec.total + COEF * charged).detach(), rtol=1e-5, atol=1e-7)
    for name, gradient in gradients.tensors().items():
        wanted = getattr(leaves, name).grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()), msg=name)
    # the penalty does reach the encoder
    assert torch.autograd.grad(c2r(leaves.W_dec_ND, batch_topk(encode(x, leaves), K * BATCH)), leaves.W_enc_ND)[0].any()
