"""The closed-form gradients against autograd on the page of equations, in float64 where the kernels allow it."""

import pytest
import torch

from metasae.sae.architectures import Options, architecture
from metasae.sae.gradients import Arithmetic, Auxiliary, forward, sae_gradients
from metasae.sae.kernels import kernels
from metasae.sae.weights import Weights
from metasae.train import objective
from metasae.train.penalties.decomposability import Probe, decomposability, full_gradient, probe


def random_weights(n, d, seed, b_enc=True):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    noise = torch.randn(n, d, generator=generator)
    return Weights(
        rows + 0.3 * noise / d**0.5,
        rows,
        0.2 * torch.randn(d, generator=generator),
        0.1 * torch.randn(n, generator=generator) if b_enc else None,
    )


def autograd(x, weights, **settings):
    leaves = Weights(**{name: tensor.clone().requires_grad_() for name, tensor in weights.tensors().items()})
    losses = objective.sae_losses(x, leaves, **settings)
    losses.total.backward()
    return losses, {name: tensor.grad for name, tensor in leaves.tensors().items()}


def inputs(case, batch=24, d=16):
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(5))
    if case == "ties":
        x = x[: batch // 2].repeat(2, 1)
    if case == "zero":
        x = torch.zeros(batch, d)
    if case == "one token":
        x = x[:1]
    return x


@pytest.mark.parametrize("name", ["reference", "fast"])
@pytest.mark.parametrize("case", ["random", "ties", "zero", "one token"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dead_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("b_enc", [True, False])
def test_sae_gradients_equal_autograd(name, case, detach, dead_share, b_enc):
    n, d, k, k_aux, coef = 40, 16, 3, 5, 1 / 32
    weights, x = random_weights(n, d, 1, b_enc), inputs(case)
    dead = torch.arange(n) < dead_share * n
    expected, wanted = autograd(x, weights, keep=k * len(x), dead_N=dead, k_aux=k_aux, aux_coef=coef, detach=detach)

    how = Arithmetic(kernels(name), torch.float32)
    kind = architecture("batchtopk", Options(k))
    passed = forward(x, weights, kind, k, 0.0, how)
    gradients = sae_gradients(passed, weights, kind, Auxiliary(dead, k_aux, coef, detach), how)

    torch.testing.assert_close(gradients.l2, expected.l2.detach(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(gradients.aux, expected.aux.detach(), rtol=1e-5, atol=1e-9)
    for key, gradient in gradients.weights.tensors().items():
        grad = wanted[key] if wanted[key] is not None else torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, grad, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["reference", "fast"])
@pytest.mark.parametrize("mode", ["raw", "token"])
@pytest.mark.parametrize("weighted", [True, False])
def test_penalty_gradient_equals_autograd(name, mode, weighted):
    n, d, k_m, sigma_sq = 40, 16, 2, 0.8
    weights, meta = random_weights(n, d, 2), random_weights(10, d, 3)
    share = torch.rand(n, generator=torch.Generator().manual_seed(1)) * 2 if weighted else None
    leaf = weights.W_dec_ND.clone().requires_grad_()
    wh = objective.meta_reconstruction(leaf.detach(), meta, k_m * n, mode)
    p = torch.exp(-(leaf - wh).pow(2).sum(1) / sigma_sq)
    p = (p if share is None else share * p).mean()
    p.backward()
    if not weighted:
        torch.testing.assert_close(p, objective.decomposability_penalty(leaf, wh, sigma_sq))

    kind = architecture("batchtopk", Options(k_m))
    view = probe(weights.W_dec_ND, meta, kind, k_m, 0.0, mode, Arithmetic(kernels(name), torch.float32))
    value, factor = decomposability(view, sigma_sq, share)
    torch.testing.assert_close(value, p.detach(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(factor[:, None] * view.difference_ND, leaf.grad, rtol=1e-4, atol=1e-7)

    leaf = weights.W_dec_ND.clone().requires_grad_()
    wh = objective.meta_reconstruction(leaf, meta, k_m * n, mode)
    p = torch.exp(-(leaf - wh).pow(2).sum(1) / sigma_sq)
    (p if share is None else share * p).mean().backward()
    torch.testing.assert_close(
        full_gradient(weights.W_dec_ND, meta, view, mode, sigma_sq, share), leaf.grad, rtol=1e-4, atol=1e-7
    )


def test_penalty_by_hand():
    # one row, w = (1, 0), wh = (0, 1): e = 2, p = exp(-2 / 4); dP/dw = -(2 / (1 * 4)) p (1, -1)
    view = Probe(torch.tensor([2.0]), torch.tensor([[1.0, -1.0]]), None, 0.0)
    p, factor = decomposability(view, 4.0)
    assert p.item() == pytest.approx(0.6065306597)
    assert factor.item() == pytest.approx(-0.5 * 0.6065306597)
