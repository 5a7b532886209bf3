import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae, random_split

from metasae.errors import UserError
from metasae.measures import calibrate
from metasae.measures.calibrate import Largest, calibrate_rate
from metasae.sae.sae import SAE, SAEConfig


def realised_l0(sae, split, threshold):
    x, _, _ = sae.normalise(split.x)
    return float((sae.pre_activations(x) > threshold).sum()) / split.n_tokens


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("k", [1, 3, 7.5])
def test_realised_l0_is_k(normalize, k):
    sae, split = random_sae(normalize=normalize), random_split(400)
    found = calibrate_rate(sae, split, k, batch=33)
    assert found.l0 == k and found.reached and found.n_tokens == 400
    assert realised_l0(sae, split, found.threshold) == pytest.approx(k, abs=1 / 400)
    sae.threshold = torch.full([24], found.threshold)
    assert float((sae.encode(split.x).acts > 0).sum()) / 400 == pytest.approx(k, abs=1 / 400)


def test_threshold_is_the_order_statistic_whatever_the_batch():
    sae, split = random_sae(seed=3), random_split(150, seed=4)
    pre = torch.cat([sae.pre_activations(block) for block in split.blocks(10)]).flatten().sort(descending=True).values
    assert calibrate_rate(sae, split, 2, batch=10).threshold == float(pre[300])


def test_running_cut_drops_nothing_that_matters(monkeypatch):
    rng = np.random.default_rng(0)
    stream = np.abs(rng.standard_normal(400_000)).astype(np.float32)
    largest = Largest(1000)
    for part in np.split(stream, 40):
        largest.add(part[part > largest.cut], int((part == largest.cut).sum()))
    assert largest.cut > 0, "the cut must have risen on the way"
    threshold, above = largest.threshold()
    assert (threshold, above) == (float(np.sort(stream)[-1001]), 1000)


@pytest.mark.parametrize("values, count, above", [
    ([5, 4, 4, 4, 1], 2, 1),  # one above 4, four at or above: 1 is nearer to 2
    ([5, 4, 4, 1, 1], 2, 1),  # 1 and 3 are as near: the sparser side
    ([5, 4, 4, 4, 1], 3, 4),
    ([4, 4, 4, 4], 3, 4),
    ([4, 4, 4, 4], 1, 0),
    ([3, 2], 2, 2),
    ([3, 2], 5, 2),
    ([], 5, 0),
])  # fmt: skip
def test_ties_take_the_nearest_side(values, count, above):
    values = np.asarray(values, np.float32)
    largest = Largest(count)
    largest.add(values, 0)
    threshold, found = largest.threshold()
    assert found == above == int((values > threshold).sum())


def test_ties_are_counted_across_parts():
    largest = Largest(70_000)
    for _ in range(8):
        part = np.full(30_000, 2.0, np.float32)
        largest.add(part[part > largest.cut], int((part == largest.cut).sum()))
    assert largest.cut == 2.0
    assert largest.threshold() == (2.0, 0)
    largest.add(np.full(60_000, 3.0, np.float32), 0)
    assert largest.threshold() == (2.0, 60_000)


def test_too_few_positives_are_said():
    sae = SAE(SAEConfig(d_in=2, d_sae=3))
    sae.W_enc.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, -1.0]]))
    split = FakeSplit([[1.0, 1.0], [2.0, 1.0]])
    found = calibrate_rate(sae, split, 2)
    assert (found.threshold, found.l0, found.reached) == (0.0, 1.0, False)


def test_one_token():
    assert calibrate_rate(random_sae(), random_split(1), 2).l0 == 2


def test_user_errors():
    with pytest.raises(UserError, match="no calibration tokens"):
        calibrate_rate(random_sae(), random_split(0), 2)
    split = random_split(4)
    split.x[2, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        calibrate_rate(random_sae(), split, 2)


@pytest.mark.parametrize("margin", [1.15, 0.5])
def test_a_guess_decides_nothing(margin, monkeypatch):
    sae, split = random_sae(16, 200), random_split(3000, d=16)
    plain = calibrate_rate(sae, split, 5, batch=100)
    monkeypatch.setattr(calibrate, "SAMPLE", 200)
    monkeypatch.setattr(calibrate, "SAMPLE_MARGIN", margin)
    found = calibrate_rate(sae, split, 5, batch=100)
    assert found.threshold == pytest.approx(plain.threshold, rel=1e-6) and found.l0 == plain.l0
