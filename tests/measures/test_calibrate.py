import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae, random_split

from metasae.data.split import Rows
from metasae.errors import UserError
from metasae.measures.firing import selection
from metasae.measures.firing.calibrate import RULES, Calibration, Largest, calibrate, rate
from metasae.measures.firing.selection import count_firings
from metasae.sae.kernels import reference
from metasae.sae.sae import SAE, SAEConfig


def calibrate_rate(sae, split, k, batch=2048):
    """What `calibrate` finds by the rule `rate` for another k; the SAE is left as it was."""
    twin = copy.deepcopy(sae)
    twin.config = replace(sae.config, k=k)
    return calibrate(twin, split, batch)


def realised_l0(sae, split, threshold):
    x, _, _ = sae.normalise(split.x)
    return float((sae.pre_activations(x) > threshold).sum()) / split.n_tokens


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("k", [1, 3, 7.5])
def test_realised_l0_is_k(normalize, k):
    sae, split = random_sae(normalize=normalize), random_split(400)
    calibrated = calibrate_rate(sae, split, k, batch=33)
    assert calibrated.l0 == k and calibrated.reached and calibrated.n_tokens == 400
    assert realised_l0(sae, split, calibrated.threshold) == pytest.approx(k, abs=1 / 400)
    sae.threshold = torch.full([24], calibrated.threshold)
    assert float((sae.encode(split.x) > 0).sum()) / 400 == pytest.approx(k, abs=1 / 400)


def test_threshold_is_the_order_statistic_whatever_the_batch():
    sae, split = random_sae(seed=3), random_split(150, seed=4)
    pre = torch.cat([sae.pre_activations(block) for block in split.blocks(10)]).flatten().sort(descending=True).values
    assert calibrate_rate(sae, split, 2, batch=10).threshold == float(pre[300])


@pytest.mark.parametrize("batch", [7, 50, 400])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [0.5, 3, 30])
def test_firings_found_on_the_way_are_those_of_a_pass_at_the_threshold(batch, ties, k):
    sae, split = random_sae(seed=5), random_split(400, seed=6)
    if ties:
        # whole weights and whole inputs: pre-activations are whole numbers
        for parameter in sae.parameters():
            parameter.data.round_()
        split.x.round_()
    calibrated = rate(sae, split, k, batch)
    dense = (
        (torch.cat([sae.pre_activations(block) for block in split.blocks(50)]) > float(calibrated.values[0]))
        .sum(0)
        .tolist()
    )
    assert count_firings(sae, torch.from_numpy(calibrated.values), split, batch).tolist() == dense
    assert calibrated.fired.tolist() == dense
    calibration = calibrate(sae, split, batch) if sae.config.k == k else calibrate_rate(sae, split, k, batch)
    assert calibration.l0 == sum(dense) / 400


def test_running_cut_drops_nothing_that_matters():
    rng = np.random.default_rng(0)
    stream = np.abs(rng.standard_normal(400_000)).astype(np.float32)
    largest = Largest(1000)
    for part in np.split(stream, 40):
        largest.add(np.zeros(len(part), np.int32), part)
    assert largest.cut > 0, "the cut must have risen on the way"
    threshold = largest.threshold()
    assert threshold == float(np.sort(stream)[-1001]) and largest.above(threshold, 1) == [1000]


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
    latents = np.arange(len(values), dtype=np.int32) % 3
    largest.add(latents, values)
    threshold = largest.threshold()
    assert above == int((values > threshold).sum())
    assert largest.above(threshold, 3).tolist() == np.bincount(latents[values > threshold], minlength=3).tolist()


def test_ties_are_counted_across_parts():
    largest = Largest(70_000)
    for _ in range(8):
        largest.add(np.zeros(30_000, np.int32), np.full(30_000, 2.0, np.float32))
    assert largest.threshold() == largest.cut == 2.0
    assert largest.above(2.0, 2).tolist() == [0, 0] and largest.above(1.9, 2).tolist() == [240_000, 0]
    largest.add(np.ones(60_000, np.int32), np.full(60_000, 3.0, np.float32))
    assert largest.above(2.0, 2).tolist() == [0, 60_000]
    assert largest.threshold() == 2.0


def test_too_few_positives_are_said():
    sae = SAE(SAEConfig(d_in=2, d_sae=3))
    sae.W_enc.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, -1.0]]))
    split = FakeSplit([[1.0, 1.0], [2.0, 1.0]])
    calibrated = calibrate_rate(sae, split, 2)
    assert (calibrated.threshold, calibrated.l0, calibrated.reached) == (0.0, 1.0, False)


def test_one_token():
    assert calibrate_rate(random_sae(), random_split(1), 2).l0 == 2


def test_user_errors():
    with pytest.raises(UserError, match="no calibration tokens"):
        calibrate_rate(random_sae(), random_split(0), 2)
    split = random_split(4)
    split.x[2, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        calibrate_rate(random_sae(), split, 2)


@pytest.mark.parametrize("margin", [0.5, 1.5])
def test_a_guess_decides_nothing(margin, monkeypatch):
    sae, split = random_sae(16, 200), random_split(3000, d=16)
    plain = calibrate_rate(sae, split, 5, batch=100)
    monkeypatch.setattr(selection, "CUT_MARGIN", margin)
    calibrated = calibrate_rate(sae, split, 5, batch=100)
    assert calibrated.threshold == pytest.approx(plain.threshold, rel=1e-6) and calibrated.l0 == plain.l0


def test_a_first_block_that_misleads():
    # what the first block keeps lies far above what the others do
    sae, split = random_sae(16, 200), random_split(600, d=16)
    split.x[:100] *= 50
    pre = sae.pre_activations(split.x).flatten().sort(descending=True).values
    calibrated = calibrate_rate(sae, split, 5, batch=100)
    assert calibrated.l0 == 5 and calibrated.threshold == pytest.approx(float(pre[3000]), rel=1e-5)


def plain_errors(sae, split, batch):
    """Relative count errors against BatchTopK, from dense activations, and (never selected, of them firing)."""
    chosen = sum(
        (reference.select(sae.pre_activations(block), sae.config.k * len(block))[0].dense() > 0).sum(0)
        for block in split.blocks(batch)
    )
    fired = (sae.encode(split.x) > 0).sum(0)
    live = chosen > 0
    return ((fired - chosen)[live] / chosen[live]).double().numpy(), int((~live).sum()), int((fired[~live] > 0).sum())


@pytest.mark.parametrize("rule", ["rate", "per_latent", "eer"])
def test_errors_per_latent_are_those_of_dense_activations(rule):
    sae, split = random_sae(k=2), random_split(1000)
    calibrated = calibrate(sae, split, 50, rule=rule)
    errors, never, firing = plain_errors(sae, split, 50)
    assert calibrated.rule == rule and calibrated.k == 2 and calibrated.n_tokens == 1000
    assert calibrated.l0 == pytest.approx(float((sae.encode(split.x) > 0).sum()) / 1000, abs=2e-3)
    assert calibrated.rate_error == pytest.approx(errors.mean(), abs=1e-3)
    assert calibrated.rate_error_abs == pytest.approx(np.abs(errors).mean(), abs=1e-3)
    assert list(calibrated.rate_error_quantiles) == ["0.05", "0.25", "0.5", "0.75", "0.95"]
    assert calibrated.rate_error_quantiles["0.75"] == pytest.approx(np.quantile(errors, 0.75), abs=1e-3)
    assert (calibrated.never_selected, calibrated.fire_unselected) == (never, firing)
    assert calibrated.fallbacks is None if rule != "eer" else calibrated.fallbacks > 0
    finite = sae.threshold[torch.isfinite(sae.threshold)]
    assert calibrated.threshold == pytest.approx(float(finite.mean()), rel=1e-6)


def test_errors_by_hand():
    # k = 1, so batches of two keep two: 4 and 3, then 2 and 1: latent 0 three times, latent 1 once. Of all eight
    # numbers four lie above 1.5, which is latent 1's: at that global threshold latent 0 fires on 4, 3 and 2, latent 1
    # on its 1.75
    sae = SAE(SAEConfig(d_in=3, d_sae=3, k=1))
    sae.W_enc.copy_(torch.eye(3))
    split = FakeSplit([[4.0, 1.75, 0.0], [3.0, 1.5, 0.0], [2.0, 1.0, 0.0], [0.5, 0.25, 0.0]])
    calibrated = calibrate(sae, split, 2)
    assert (calibrated.threshold, calibrated.l0, calibrated.rate_error, calibrated.never_selected) == (1.5, 1.0, 0.0, 1)
    # a latent that is selected in no batch but lies above the global threshold: 2.5 loses to 4 and 3, and 1 wins with
    # 0.5
    sae = SAE(SAEConfig(d_in=3, d_sae=3, k=1))
    sae.W_enc.copy_(torch.eye(3))
    calibrated = calibrate(sae, FakeSplit([[4.0, 0.0, 2.5], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.0]]), 2)
    assert (calibrated.threshold, calibrated.never_selected, calibrated.fire_unselected) == (0.5, 1, 1)
    assert (calibrated.rate_error, calibrated.rate_error_abs) == (-0.25, 0.25)
    assert calibrated.rate_error_quantiles["0.5"] == -0.25 and calibrated.rate_error_quantiles["0.25"] == -0.375


def test_per_latent_keeps_every_count_and_l0():
    sae, split = random_sae(k=3), random_split(500)
    calibrated = calibrate(sae, split, 25, rule="per_latent")
    assert calibrated.l0 == 3 and calibrated.reached
    assert (calibrated.rate_error, calibrated.rate_error_abs, calibrated.fire_unselected) == (0, 0, 0)
    assert calibrated.never_selected == int(torch.isinf(sae.threshold).sum())


@pytest.mark.parametrize("batch", [20, 500])
def test_relative_thresholds_against_plain_loops(batch):
    """Of one dense matrix: what BatchTopK selects block by block, its mean per latent, and one sort of what is left."""
    sae, split = random_sae(k=3), random_split(500)
    pre = torch.cat([sae.pre_activations(sae.normalise(block)[0]) for block in split.blocks(500)])
    calibrated = calibrate(sae, split, batch, rule="relative")
    total, count = np.zeros(24), np.zeros(24)
    for start in range(0, 500, batch):
        block = pre[start : start + batch]
        kept, _ = reference.select(block, 3 * len(block))
        for latent, value in zip(kept.latents.tolist(), kept.values.tolist(), strict=True):
            total[latent], count[latent] = total[latent] + value, count[latent] + 1
    means = [total[i] / count[i] if count[i] else total.sum() / count.sum() for i in range(24)]
    offset = 0.2 * torch.tensor(means).float()
    common = float((pre - offset).flatten().sort(descending=True).values[1500])
    torch.testing.assert_close(sae.threshold, offset + common, rtol=1e-5, atol=1e-5)
    assert calibrated.l0 == 3 and calibrated.reached and calibrated.rule == "relative" and sae.offset is None


def test_too_few_positives_for_every_rule():
    # every latent is positive on half the tokens, but k asks for all
    sae = SAE(SAEConfig(d_in=4, d_sae=4, k=4))
    sae.W_enc.copy_(torch.eye(4))
    split = FakeSplit(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    for rule in RULES:
        sae.threshold = None
        calibrated = calibrate(sae, split, 20, rule=rule)
        assert calibrated.l0 == pytest.approx(2, abs=0.3) and not calibrated.reached
    assert calibrated.never_selected == 0


def test_an_sae_with_thresholds_keeps_them():
    sae, split = random_sae(threshold=0.7), random_split(90)
    calibrated = calibrate(sae, split, 20, rule="per_latent")
    assert calibrated.rule == "own" and calibrated.threshold == pytest.approx(0.7) and torch.all(sae.threshold == 0.7)
    assert calibrated.l0 == pytest.approx(float((sae.encode(split.x) > 0).sum()) / 90)
    assert (
        calibrated.rate_error is None and calibrated.rate_error_quantiles is None and calibrated.never_selected is None
    )


def test_latents_that_never_fire_have_no_threshold_to_average():
    sae = SAE(SAEConfig(d_in=2, d_sae=2, k=1))
    sae.W_enc.copy_(torch.eye(2))
    calibrated = calibrate(sae, FakeSplit(-torch.ones(5, 2)), rule="per_latent")
    assert (
        calibrated.threshold is None
        and calibrated.l0 == 0
        and calibrated.rate_error is None
        and calibrated.never_selected == 2
    )
    json.dumps(calibrated.as_dict(), allow_nan=False)


@pytest.mark.parametrize("rule", ["rate", "per_latent", "eer"])
def test_a_calibrated_sae_travels_through_its_folder(rule, tmp_path):
    sae, split = random_sae(k=1), random_split(40)
    calibrated = calibrate(sae, split, 10, rule=rule)
    sae.config.metadata["calibration"] = asdict(calibrated)
    sae.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    assert Calibration(**loaded.config.metadata["calibration"]) == calibrated
    assert torch.equal(loaded.threshold, sae.threshold)
    assert torch.equal(loaded.encode(split.x), sae.encode(split.x))


def test_a_calibration_of_an_earlier_version_is_read():
    old = Calibration(**{"threshold": 0.6, "l0": 32.0, "n_tokens": 50000, "k": 32, "rule": "rate"})
    assert old.reached and old.rate_error is None and old.as_dict()["reached"]


def test_an_unknown_rule_and_an_empty_split():
    with pytest.raises(UserError, match="did you mean 'per_latent'"):
        calibrate(random_sae(), random_split(5), rule="per-latent")
    for rule in RULES:
        with pytest.raises(UserError, match="no calibration tokens"):
            calibrate(random_sae(), random_split(0), rule=rule)


def test_a_meta_sae_over_decoder_rows_is_calibrated():
    primary, meta = random_sae(8, 24), random_sae(8, 6, k=2)
    assert calibrate(meta, Rows(primary.W_dec)).l0 == 2
