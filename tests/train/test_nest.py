"""The nesting of the arm `atomic`: its schedule, and its gradients against autograd on the equation."""

import pytest
import torch
from test_gradients import inputs, random_weights

from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.recipe.tables import Nest
from metasae.sae.architectures import Options, architecture
from metasae.sae.gradients import Arithmetic, forward, sae_gradients
from metasae.sae.kernels import kernels
from metasae.sae.spread import WHOLE
from metasae.train import objective
from metasae.train.atomic import Atomic, weight
from metasae.train.trainer import Trainer

K, N = 3, 40


def nested_loss(x, weights, ends, beta):
    """The page's equation, dense: the whole SAE's error and beta times that of each inner prefix."""
    z = objective.batch_topk(objective.encode(x, weights), K * len(x))
    loss = (x - z @ weights.W_dec_ND - weights.b_dec_D).pow(2).mean()
    for end in ends[:-1]:
        inner = z[:, :end] @ weights.W_dec_ND[:end] + weights.b_dec_D.detach()
        loss = loss + beta * (x - inner).pow(2).mean()
    return loss


@pytest.mark.parametrize("name", ["reference", "fast"])
@pytest.mark.parametrize("case", ["random", "ties", "zero", "one token"])
@pytest.mark.parametrize("shares", [(0.25,), (0.1, 0.5), (0.001,)])
def test_gradients_equal_autograd(name, case, shares):
    weights, x = random_weights(N, 16, 1), inputs(case)
    spec = Nest(shares=shares, weight=0.3, hold=0.5, gone=1.0)
    prefixes = Atomic(spec, 0.0, 100).prefixes(75, N, WHOLE)
    assert prefixes.weights == pytest.approx((0.15,) * len(shares) + (1.0,))
    leaves = type(weights)(**{key: tensor.clone().requires_grad_() for key, tensor in weights.tensors().items()})
    wanted = nested_loss(x, leaves, prefixes.ends, 0.15)
    wanted.backward()

    kind, how = architecture("batchtopk", Options(K)), Arithmetic(kernels(name), torch.float32)
    passed = forward(x, weights, kind, K, 0.0, how, prefixes)
    gradients = sae_gradients(passed, weights, kind, None, how)

    torch.testing.assert_close(gradients.l2, wanted.detach(), rtol=1e-5, atol=1e-9)
    for key, gradient in gradients.weights.tensors().items():
        grad = getattr(leaves, key).grad
        torch.testing.assert_close(gradient, grad, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


def test_the_weight_holds_then_falls_to_nothing():
    spec = Nest(weight=0.3, hold=0.25, gone=0.5)
    weights = [weight(spec, step, 100) for step in range(100)]
    assert weights[:26] == [0.3] * 26 and weights[50:] == [0.0] * 50
    assert weights[25:51] == pytest.approx([0.3 * (50 - step) / 25 for step in range(25, 51)])
    assert Atomic(spec, 0.0, 100).prefixes(50, N, WHOLE) is None
    assert weight(Nest(weight=0.3, hold=0.4, gone=0.4), 40, 100) == 0
    assert weight(Nest(weight=0.3, hold=1.0, gone=2.0), 99, 100) == 0.3


def test_it_cannot_be_gone_before_it_falls():
    with pytest.raises(UserError, match=r"gone = 0.2 comes before hold = 0.25"):
        Recipe.load({"train": {"nest": {"gone": 0.2}}})


def test_without_weight_and_margin_atomic_is_solo(small_recipe, batches):
    recipe = small_recipe(nest=Nest(weight=0.0), margin=0.0)
    solo, atomic = (Trainer(recipe, arm, 0, torch.zeros(16)) for arm in ("solo", "atomic"))
    for trainer in (solo, atomic):
        stream = batches()
        for _ in range(10):
            trainer.primary_step(stream.next())
    assert all(
        torch.equal(tensor, getattr(atomic.primary.weights, key))
        for key, tensor in solo.primary.weights.tensors().items()
    )


def test_first_latents_rebuild_more_alone_where_they_are_nested(small_recipe, batches):
    """What nesting is for: the prefix's own error is smaller with it than without."""
    errors = {}
    for beta in (0.0, 1.0):
        recipe = small_recipe(nest=Nest(weight=beta, gone=2.0), margin=0.0)
        trainer, stream = Trainer(recipe, "atomic", 0, torch.zeros(16)), batches()
        for _ in range(200):
            trainer.primary_step(stream.next())
        x, weights = stream.next(), trainer.primary.weights
        end = round(0.25 * recipe.sae.n)
        z = objective.batch_topk(objective.encode(x, weights), recipe.sae.k * len(x))
        errors[beta] = float((x - weights.b_dec_D - z[:, :end] @ weights.W_dec_ND[:end]).pow(2).mean())
    assert errors[1.0] < errors[0.0]
