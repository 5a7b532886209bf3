"""The measures see an imported TopK SAE fire by its own rule: k latents of each token, not all that are positive."""

import numpy as np
import pytest
import torch

from metasae.interop import load
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.firing.firings import fire
from metasae.measures.firing.selection import Screen
from tools import peers


class Split:
    """Rows x [T, d] held in memory."""

    def __init__(self, x):
        self.x, self.n_tokens = x, len(x)
        self.documents = self.tokens = self.positions = np.arange(len(x), dtype=np.int32)

    def blocks(self, size):
        return self.x.split(size)


def test_firings_are_those_of_encode(tmp_path):
    sae, x = load(peers.make("sparsify", "topk", "none", tmp_path)), peers.inputs()
    firings = fire(sae, Split(x), batch=64)
    assert torch.allclose(torch.from_numpy(firings.csr.toarray()), sae.encode(x), atol=1e-6)
    assert np.diff(firings.indptr).max() == peers.K


def test_reconstructions_are_those_of_forward(tmp_path):
    sae, x = load(peers.make("sparsify", "topk", "none", tmp_path)), peers.inputs()
    assert torch.allclose(Screen(sae, sae.threshold).reconstruct(x), sae(x), atol=1e-5)


def test_calibration_keeps_the_rule_and_counts_its_firings(tmp_path):
    sae, x = load(peers.make("sparsify", "topk", "none", tmp_path)), peers.inputs()
    calibrated = calibrate(sae, Split(x), batch=64)
    assert calibrated.rule == "own" and calibrated.l0 == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))
