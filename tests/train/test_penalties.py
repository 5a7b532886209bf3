"""Penalties: closed-form gradients against autograd, small cases by hand, and the options around them."""

import math

import pytest
import torch

from metasae.recipe.registry import PENALTIES, named
from metasae.sae.kernels import reference
from metasae.sae.kernels.kept import Kept
from metasae.train.penalties import nearest
from metasae.train.penalties.adaptive import AdaptiveSigma
from metasae.train.penalties.cofiring import TOKENS
from metasae.train.penalties.scene import Charge, Scene


def scene(n=30, d=12, tokens=40, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, d, generator=generator)
    W = (W / W.norm(dim=1, keepdim=True)).requires_grad_(requires_grad)
    kept, _ = reference.select(torch.randn(tokens, n, generator=generator), 3 * tokens)
    return Scene(W, kept, torch.rand(n, generator=generator) ** 2, 3, 1)


def c2r(W, z):
    """C2R (arXiv 2606.30609) of rows [n, d] and activations [B, n], in plain dense autograd."""
    off = ~torch.eye(len(W), dtype=torch.bool)
    c, nearest = torch.where(off, W @ W.t(), -1.0).max(dim=1)
    norm = torch.linalg.vector_norm(z, dim=0)
    return ((norm + norm[nearest]) * c.clamp(min=0).pow(2)).mean()


def spec(name, s, z):
    """The penalty in plain dense autograd. One chunk holds all rows here, so OrtSAE's dealing does not matter.

    z: the activations [B, n] of `s.kept`.
    """
    W = s.W_dec_ND
    G = W @ W.t()
    off = ~torch.eye(len(W), dtype=torch.bool)
    if name == "c2r":
        return c2r(W, z)
    if name == "ortsae":
        return torch.where(off, G, -1.0).max(dim=1).values.clamp(min=0).pow(2).mean()
    if name == "firing_cosine":
        weight = s.rate_N[:, None] * s.rate_N[None, :]
        return (weight * G.pow(2) * off).sum() / s.rate_N.sum() ** 2
    on = s.kept.dense()[:TOKENS] > 0
    counts = (on.float().t() @ on.float()) * off
    return (counts * G.pow(2)).sum() / counts.sum().clamp(min=1)


@pytest.mark.parametrize("name", list(PENALTIES))
@pytest.mark.parametrize("tokens", [40, 1, 400])
def test_gradient_equals_autograd(name, tokens):
    equals_autograd(name, scene(tokens=tokens, requires_grad=True))


def equals_autograd(name, s):
    """s: a scene whose rows take a gradient."""
    z = s.kept.dense().requires_grad_()
    wanted = spec(name, s, z)
    wanted.backward()
    plain = Scene(s.W_dec_ND.detach(), s.kept, s.rate_N, s.step, s.seed)
    value, gradient, entries = Charge(*named(PENALTIES, name)(plain))
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient, s.W_dec_ND.grad, rtol=1e-4, atol=1e-6)
    assert (entries is None) == (z.grad is None)
    if entries is not None:
        kept = s.kept
        torch.testing.assert_close(entries, z.grad[kept.rows.long(), kept.latents.long()], rtol=1e-4, atol=1e-7)


def unit_scene(rows, z):
    """A scene of rows made to unit length, whose activations are the entries of z [B, n] above zero."""
    rows = (rows / rows.norm(dim=1, keepdim=True)).requires_grad_()
    return Scene(rows, Kept.where(z, z > 0), torch.full((len(rows),), 0.1), 3, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 17])
@pytest.mark.parametrize(
    "case", ["random", "dead", "all dead", "one fires", "doubled", "all alike", "opposite", "large"]
)
def test_c2r_equals_autograd_where_it_is_hard(case, n):
    """Latents of norm 0, rows that are equal or opposite, one latent and two, activations of very different sizes."""
    generator = torch.Generator().manual_seed(n)
    rows, z = torch.randn(n, 5, generator=generator), torch.randn(9, n, generator=generator)
    if case in ("dead", "all dead"):
        z[:, :: 1 if case == "all dead" else 2] = -1.0
    if case == "one fires":
        z = torch.zeros(9, n).index_fill_(1, torch.tensor([n - 1]), 2.0)
    if case == "doubled":
        # exact products, so that the first of equal rows is the nearest for both
        rows = torch.eye(5)[torch.arange(n) % 3]
    if case == "all alike":
        rows = torch.eye(5)[:1].expand(n, 5).clone()
    if case == "opposite":
        rows = torch.tensor([1.0, -1.0]).repeat(n)[:n, None] * torch.ones(1, 5)
    if case == "large":
        z *= 10.0 ** torch.arange(-6, 3)[:, None]
    equals_autograd("c2r", unit_scene(rows, z))


def test_c2r_by_hand():
    # two rows at 60 degrees, activations of norm 5 and 2: P = (1/2) 2 (5 + 2) / 4
    s = unit_scene(torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]]), torch.tensor([[3.0, 2.0], [4.0, 0.0]]))
    value, gradient, entries = named(PENALTIES, "c2r")(Scene(s.W_dec_ND.detach(), s.kept, s.rate_N, 0, 0))
    assert value.item() == pytest.approx(7 / 4)
    # (2/2) 7 (1/2) w_1, twice: once as i and once as the other's nearest
    assert gradient[0].tolist() == pytest.approx([3.5, 7 * math.sqrt(0.75)])
    # dP/da = (1/2)(1/4 + 1/4), times z / a
    assert entries.tolist() == pytest.approx([0.25 * 3 / 5, 0.25, 0.25 * 4 / 5])


def test_a_tile_of_cosines_changes_nothing(monkeypatch):
    s = scene()
    whole = named(PENALTIES, "c2r")(s)
    monkeypatch.setattr(nearest, "TILE", 4 * 30)
    for one, other in zip(whole, named(PENALTIES, "c2r")(s), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", list(PENALTIES))
def test_orthogonal_rows_cost_nothing(name):
    s = scene()
    rows = torch.eye(30)
    value, gradient, _ = Charge(*named(PENALTIES, name)(Scene(rows, s.kept, s.rate_N, 0, 0)))
    assert abs(float(value)) < 1e-6 and gradient.abs().max() < 1e-6


def test_ortsae_by_hand():
    # two rows at 60 degrees: each is the other's nearest, cosine 1/2: P = 1/4
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    s = scene()
    value, gradient, _ = named(PENALTIES, "ortsae")(Scene(rows, s.kept, s.rate_N, 0, 0))
    assert value.item() == pytest.approx(0.25)
    # dP/dw_0 = (2/2) (1/2) w_1, twice: once as i and once as the other's nearest
    assert gradient[0].tolist() == pytest.approx([0.5, math.sqrt(0.75)])


def test_opposite_rows_are_free_in_ortsae():
    s = scene()
    assert named(PENALTIES, "ortsae")(Scene(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), s.kept, s.rate_N, 0, 0))[0] == 0


def test_nothing_fires():
    s = scene()
    kept, _ = reference.select(torch.zeros(4, 30), 10)
    for name in ("cofiring", "c2r", "firing_cosine"):
        value, gradient, entries = named(PENALTIES, name)(Scene(s.W_dec_ND, kept, torch.zeros(30), 0, 0))
        assert entries is None or entries.numel() == 0
        assert float(value) == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_adaptive_sigma_holds_kappa():
    sigma = AdaptiveSigma(0.3, 1.0)
    for e in (0.7, 0.8, 0.95):
        lambda2, sigma_sq = sigma.update(torch.full((5,), e))
        kappa = lambda2 / sigma_sq * math.exp(-sigma.mean_e / sigma_sq)
        assert kappa == pytest.approx(0.3 * math.exp(-0.7))
        assert sigma_sq == pytest.approx(sigma.mean_e)
