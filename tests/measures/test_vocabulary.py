"""Streamed cross-entropy and KL against float64 over the whole vocabulary."""

import pytest
import torch

from metasae.data.model import readout
from metasae.data.model.readout import LinearReadOut, WholeLogits
from metasae.measures.effect import effects
from metasae.measures.effect.effects import predictions

N, D, V = 37, 12, 101


def hidden_states(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(N, D, generator=generator) * scale
    return {"clean": clean, "sae": clean + 0.3 * torch.randn(N, D, generator=generator), "zero": torch.zeros(N, D)}


def weights(cap=None, bias=True):
    generator = torch.Generator().manual_seed(1)
    return LinearReadOut(
        torch.randn(V, D, generator=generator), torch.randn(V, generator=generator) if bias else None, cap
    )


def plain(head, hidden, targets):
    """The definition, in float64."""
    logits = {}
    for name, h in hidden.items():
        y = h.double() @ head.weight.double().t() + (0 if head.bias is None else head.bias.double())
        logits[name] = (y if head.cap is None else head.cap * torch.tanh(y / head.cap)).log_softmax(-1)
    ce = {name: -log[torch.arange(len(targets)), targets] for name, log in logits.items()}
    kl = {
        name: (logits["clean"].exp() * (logits["clean"] - log)).sum(-1)
        for name, log in logits.items()
        if name != "clean"
    }
    return ce, kl


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("slice_", [1, 7, 101, 8192])
@pytest.mark.parametrize("scale", [0.0, 1.0, 12.0])
def test_streamed_equals_whole(cap, slice_, scale, monkeypatch):
    monkeypatch.setattr(readout, "SLICE", slice_)
    monkeypatch.setattr(effects, "NUMBERS_AT_ONCE", 64)
    head, hidden = weights(cap, bias=cap is None), hidden_states(scale)
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(2))
    streamed_ce, streamed_kl = predictions(head, hidden, targets)
    ce, kl = plain(head, hidden, targets)
    assert set(streamed_ce) == {"clean", "sae", "zero"} and set(streamed_kl) == {"sae", "zero"}
    for name in ce:
        torch.testing.assert_close(streamed_ce[name], ce[name], rtol=2e-6, atol=1e-5)
    for name in kl:
        torch.testing.assert_close(streamed_kl[name], kl[name], rtol=1e-5, atol=1e-5)


def test_nothing_changed_is_exactly_zero():
    hidden = hidden_states()
    targets = torch.arange(N)
    ce, kl = predictions(weights(), {"clean": hidden["clean"], "sae": hidden["clean"].clone()}, targets)
    assert torch.equal(ce["sae"], ce["clean"])
    assert (kl["sae"] == 0).all()


def test_logits_given_whole():
    head, hidden = weights(), hidden_states()
    targets = torch.arange(N)
    whole = {name: torch.cat([head.logits(h, *ends) for ends in head.slices()], 1) for name, h in hidden.items()}
    (_, a), (_, b) = predictions(head, hidden, targets), predictions(WholeLogits(V), whole, targets)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)


def test_no_predictions():
    empty = {"clean": torch.zeros(0, D), "sae": torch.zeros(0, D)}
    ce, kl = predictions(weights(), empty, torch.zeros(0, dtype=torch.int64))
    assert ce["sae"].shape == (0,) and set(kl) == {"sae"}
