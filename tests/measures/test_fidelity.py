import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae, random_split

from metasae.measures.effect.fidelity import decode_firings, measure_fidelity, moments_of
from metasae.measures.firing.firings import fire
from metasae.sae.sae import SAE, SAEConfig


@pytest.mark.parametrize("normalize", ["none", "token"])
def test_reconstruction_from_firings_is_the_sae(normalize):
    sae, split = random_sae(normalize=normalize, threshold=0.5), random_split(37)
    firings = fire(sae, split, 5)
    torch.testing.assert_close(decode_firings(sae, firings, 4, split.x[4:20]), sae(split.x[4:20]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("batch", [3, 1000])
def test_against_the_definitions(normalize, batch):
    sae, split = random_sae(normalize=normalize, threshold=0.5), random_split(53, document_length=9)
    fidelity = measure_fidelity(sae, split, fire(sae, split, batch), moments_of(split, batch), batch)
    x, x_hat, acts = split.x.double(), sae(split.x).double(), sae.encode(split.x)
    assert fidelity["fvu"] == pytest.approx(
        float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-5
    )
    assert fidelity["l2"] == pytest.approx(float((x_hat - x).square().mean()), rel=1e-5)
    assert fidelity["l0"] == pytest.approx(float((acts > 0).sum() / 53))
    rates = (acts > 0).double().mean(0)
    assert fidelity["dead"] == float((rates == 0).double().mean()) and fidelity["dense"] == float(
        (rates > 0.1).double().mean()
    )
    # six documents of nine tokens are six blocks; the second left out
    rest = torch.cat([torch.arange(9), torch.arange(18, 53)])
    without = {name: values[1] for name, values in fidelity["leave_one_out"].items()}
    error, variance = (x_hat - x)[rest].square().sum(), (x - x.mean(0))[rest].square().sum()
    assert without["fvu"] == pytest.approx(float(error / variance), rel=1e-5) and without["l2"] == pytest.approx(
        float(error) / (44 * 8), rel=1e-5
    )
    assert (
        without["l0"] == pytest.approx(float((acts[rest] > 0).sum() / 44))
        and len(fidelity["leave_one_out"]["fvu"]) == 6
    )


def test_by_hand():
    # one latent along e1, threshold 1: tokens (2, 0), (0, 0) -> (2, 0), (0, 0); the third, (1, 3), does not fire
    sae = SAE(SAEConfig(d_in=2, d_sae=2))
    sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    sae.W_enc.copy_(sae.W_dec.t())
    sae.threshold = torch.tensor([1.0, 1.0])
    split = FakeSplit([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]], 2)
    fidelity = measure_fidelity(sae, split, fire(sae, split), moments_of(split))
    # error 1 + 9; mean (1, 1): variance (1+1) + (1+1) + (0+4)
    assert fidelity["fvu"] == pytest.approx(10 / 8) and fidelity["l2"] == pytest.approx(10 / 6)
    assert fidelity["l0"] == pytest.approx(1 / 3) and fidelity["dead"] == 0.5 and fidelity["dense"] == 0.5


def test_constant_activations_have_no_fvu():
    sae = random_sae(threshold=0.2)
    split = FakeSplit(torch.ones(5, 8))
    fidelity = measure_fidelity(sae, split, fire(sae, split), moments_of(split))
    assert fidelity["fvu"] is None and fidelity["l2"] > 0


def test_a_large_mean_does_not_spoil_the_variance():
    sae, split = random_sae(threshold=0.5), random_split(64)
    split.x += 3000
    fidelity = measure_fidelity(sae, split, fire(sae, split), moments_of(split))
    x, x_hat = split.x.double(), sae(split.x).double()
    assert fidelity["fvu"] == pytest.approx(
        float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-3
    )


def test_nothing_fires_and_one_token():
    sae, split = random_sae(threshold=1e9), random_split(1)
    fidelity = measure_fidelity(sae, split, fire(sae, split), moments_of(split))
    assert fidelity["dead"] == 1 and fidelity["l0"] == 0 and fidelity["fvu"] is None
    assert (
        fidelity["rates"]["quantiles_of_live"]["0.5"] is None and np.sum(fidelity["rates"]["histogram"]["counts"]) == 0
    )
