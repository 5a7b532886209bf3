"""The identities that bring other forms of SAE to ours: each against the other form written out in float64."""

import math
from dataclasses import replace

import pytest
import torch

from metasae.errors import UserError
from metasae.interop.identities import (
    SAETensors,
    assemble,
    centred,
    gated,
    has_unit_rows,
    norms_into_encoder,
    tensors_of,
    unscaled,
)
from metasae.sae.sae import SAE, SAEConfig

D, N = 7, 5000


def drawn(seed=0, n=N):
    """Wider than the block of columns that is doubled at once; with a zero row, an infinite, a zero and a negative
    threshold.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    W_dec, threshold = draw(n, D), draw(n).abs()
    W_dec[2] = 0.0
    threshold[3], threshold[4], threshold[5] = math.inf, 0.0, -1.0
    return SAETensors(draw(D, n), draw(n), W_dec, draw(D) * 5, threshold)


def x(tokens=20):
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(9)).double() * 3


def run(p, x):
    """(activations, outputs) by the one form, in float64."""
    p = SAETensors(*(getattr(p, name).double() for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")))
    pre = (x - p.b_dec) @ p.W_enc + p.b_enc
    acts = torch.where(pre > p.threshold, pre.relu(), 0.0)
    return acts, acts @ p.W_dec + p.b_dec


def close(a, b, tolerance=1e-5):
    assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_an_input_that_is_not_centred():
    p = drawn()
    pre = x() @ p.W_enc.double() + p.b_enc.double()
    acts, out = run(centred(p), x())
    close(acts, torch.where(pre > p.threshold, pre.relu(), 0.0))
    close(out, acts @ p.W_dec.double() + p.b_dec.double())
    close(centred(centred(p), -1.0).b_enc, p.b_enc)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_a_gate_is_a_threshold(spread):
    p = drawn()
    r, b_gate, b_mag = (torch.randn(N, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    r = r * spread
    u = (x() - p.b_dec.double()) @ p.W_enc.double()
    gate, magnitude = u + b_gate.double(), r.double().exp() * u + b_mag.double()
    expected = (gate > 0) * magnitude.relu()
    folded = gated(replace(p, b_enc=b_mag), r, b_gate)
    acts, _ = run(folded, x())
    # fp32 weights are rounded, so a sum of d products is uncertain by this share of its parts
    rounding = 1e-6 * (r.double().exp() * ((x() - p.b_dec.double()).abs() @ p.W_enc.double().abs()) + 1)
    # of 100,000 entries some lie within rounding of their gate; all others agree
    clear = gate.abs() * r.double().exp() > rounding
    assert clear.float().mean() > 0.999
    assert ((acts - expected).abs()[clear] <= rounding[clear]).all()
    # both sides of the gate occur: open with nothing to say, and shut on a positive magnitude
    assert (
        ((gate > 0) & (magnitude <= 0)).any() and ((gate <= 0) & (magnitude > 0)).any() and (folded.threshold < 0).any()
    )


def test_norms_go_into_the_encoder():
    p = drawn()
    norm = p.W_dec.double().norm(dim=1)
    acts, out = run(p, x())
    scaled_acts, same_out = run(norms_into_encoder(p, threshold=True), x())
    close(scaled_acts, acts * norm, 1e-4)
    close(same_out, out, 1e-4)
    scaled = norms_into_encoder(p, threshold=True)
    alive = norm > 0
    assert torch.allclose(scaled.W_dec[alive].norm(dim=1), torch.ones(int(alive.sum()))) and not scaled.W_dec[2].any()
    assert scaled.threshold[3] == math.inf and not torch.isnan(scaled.threshold).any()
    # thresholds in the units of the scaled pre-activations stay
    assert torch.equal(norms_into_encoder(p, threshold=False).threshold, p.threshold)


def test_a_zero_row_with_an_infinite_threshold_stays_silent():
    p = drawn(n=8)
    p.W_dec[3] = 0.0
    acts, out = run(norms_into_encoder(p, threshold=True), x())
    assert not acts[:, 3].any() and torch.isfinite(out).all()


def test_an_sae_of_scaled_inputs():
    p = drawn()
    acts, out = run(p, 0.3 * x())
    same_acts, same_out = run(unscaled(p, 0.3), x())
    close(same_acts, acts, 1e-4)
    close(same_out, out / 0.3, 1e-4)


def test_unit_rows_are_recognised():
    rows = torch.nn.functional.normalize(torch.randn(30, D, generator=torch.Generator().manual_seed(0)), dim=1)
    unit = SAETensors(torch.zeros(D, 30), torch.zeros(30), rows, torch.zeros(D), torch.zeros(30))
    assert has_unit_rows(unit)
    rows[4] *= 1.001
    assert not has_unit_rows(unit)


def test_assembled_parts_are_copies_and_come_apart_again():
    p = drawn(n=12)
    sae = assemble(p, SAEConfig(D, 12), "here")
    p.threshold[0] = 9.0
    p.W_enc[0, 0] = 9.0
    again = tensors_of(sae)
    assert torch.equal(again.threshold, drawn(n=12).threshold) and torch.equal(again.W_enc, drawn(n=12).W_enc)
    with pytest.raises(UserError, match="no threshold yet"):
        tensors_of(SAE(SAEConfig(D, 12)))


def test_numbers_beyond_fp32_are_refused():
    p = drawn(n=12)
    beyond = gated(p, torch.full([12], 200.0), torch.zeros(12))
    with pytest.raises(UserError, match="here: its weights lead to a W_enc beyond the range of fp32"):
        assemble(beyond, SAEConfig(D, 12), "here")
