"""Penalties: closed-form gradients against autograd, small cases by hand, and the options around them."""

import math

import pytest
import torch

from metasae.recipe.registry import PENALTIES, named
from metasae.sae.kernels import reference
from metasae.train.penalties.adaptive import AdaptiveSigma
from metasae.train.penalties.cofiring import TOKENS
from metasae.train.penalties.scene import Scene


def scene(n=30, d=12, tokens=40, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, d, generator=generator)
    W = (W / W.norm(dim=1, keepdim=True)).requires_grad_(requires_grad)
    kept, _ = reference.select(torch.randn(tokens, n, generator=generator), 3 * tokens)
    return Scene(W, kept, torch.rand(n, generator=generator) ** 2, 3, 1)


def spec(name, s):
    """The penalty in plain dense autograd. One chunk holds all rows here, so OrtSAE's dealing does not matter."""
    W = s.W_dec_ND
    G = W @ W.t()
    off = ~torch.eye(len(W), dtype=torch.bool)
    if name == "ortsae":
        return torch.where(off, G, -1.0).max(dim=1).values.clamp(min=0).pow(2).mean()
    if name == "c2r":
        weight = s.rate_N[:, None] * s.rate_N[None, :]
        return (weight * G.pow(2) * off).sum() / s.rate_N.sum() ** 2
    on = s.kept.dense()[:TOKENS] > 0
    counts = (on.float().t() @ on.float()) * off
    return (counts * G.pow(2)).sum() / counts.sum().clamp(min=1)


@pytest.mark.parametrize("name", list(PENALTIES))
@pytest.mark.parametrize("tokens", [40, 1, 400])
def test_gradient_equals_autograd(name, tokens):
    s = scene(tokens=tokens, requires_grad=True)
    wanted = spec(name, s)
    wanted.backward()
    plain = Scene(s.W_dec_ND.detach(), s.kept, s.rate_N, s.step, s.seed)
    value, gradient = named(PENALTIES, name)(plain)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient, s.W_dec_ND.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(PENALTIES))
def test_orthogonal_rows_cost_nothing(name):
    s = scene()
    rows = torch.eye(30)
    value, gradient = named(PENALTIES, name)(Scene(rows, s.kept, s.rate_N, 0, 0))
    assert abs(float(value)) < 1e-6 and gradient.abs().max() < 1e-6


def test_ortsae_by_hand():
    # two rows at 60 degrees: each is the other's nearest, cosine 1/2: P = 1/4
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    s = scene()
    value, gradient = named(PENALTIES, "ortsae")(Scene(rows, s.kept, s.rate_N, 0, 0))
    assert value.item() == pytest.approx(0.25)
    # dP/dw_0 = (2/2) (1/2) w_1, twice: once as i and once as the other's nearest
    assert gradient[0].tolist() == pytest.approx([0.5, math.sqrt(0.75)])


def test_opposite_rows_are_free_in_ortsae():
    s = scene()
    assert named(PENALTIES, "ortsae")(Scene(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), s.kept, s.rate_N, 0, 0))[0] == 0


def test_nothing_fires():
    s = scene()
    kept, _ = reference.select(torch.zeros(4, 30), 10)
    for name in ("cofiring", "c2r"):
        value, gradient = named(PENALTIES, name)(Scene(s.W_dec_ND, kept, torch.zeros(30), 0, 0))
        assert float(value) == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_adaptive_sigma_holds_kappa():
    sigma = AdaptiveSigma(0.3, 1.0)
    for e in (0.7, 0.8, 0.95):
        lambda2, sigma_sq = sigma.update(torch.full((5,), e))
        kappa = lambda2 / sigma_sq * math.exp(-sigma.mean_e / sigma_sq)
        assert kappa == pytest.approx(0.3 * math.exp(-0.7))
        assert sigma_sq == pytest.approx(sigma.mean_e)
