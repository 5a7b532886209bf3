"""The margin of the arm `atomic`: what it selects against a plain loop, and the thresholds it becomes."""

import pytest
import torch
from test_gradients import inputs, random_weights

from metasae.data.split import Rows
from metasae.errors import UserError
from metasae.measures.firing.calibrate import calibrate
from metasae.recipe.recipe import Recipe
from metasae.recipe.tables import Nest
from metasae.sae.architectures import Options, architecture
from metasae.sae.gradients import Arithmetic, forward
from metasae.sae.kernels import kernels
from metasae.train import checkpoint, objective
from metasae.train.trainer import Trainer

K, N = 3, 40


def slow_selection(a_BN, offset_N, keep):
    """The keep largest of a - offset above 0, one after the other, ties to the lower flat index; values of a."""
    scores = (a_BN - offset_N).flatten().tolist()
    order = sorted((-score, place) for place, score in enumerate(scores) if score > 0)[:keep]
    z = torch.zeros(a_BN.numel())
    for _, place in order:
        z[place] = a_BN.flatten()[place]
    return z.view_as(a_BN)


@pytest.mark.parametrize("name", ["reference", "fast"])
@pytest.mark.parametrize("case", ["random", "ties", "zero", "one token"])
@pytest.mark.parametrize("b_enc", [True, False])
def test_selects_what_a_plain_loop_selects(name, case, b_enc):
    weights, x = random_weights(N, 16, 1, b_enc), inputs(case)
    offset = torch.rand(N, generator=torch.Generator().manual_seed(2))
    # one latent without a margin, one whose margin nothing exceeds
    offset[0], offset[1] = 0, 1e3
    passed = forward(
        x,
        weights,
        architecture("batchtopk", Options(K)),
        K,
        0.0,
        Arithmetic(kernels(name), torch.float32),
        None,
        offset,
    )
    pre = (x - weights.b_dec_D) @ weights.W_enc_ND.t()
    pre = pre if weights.b_enc_N is None else pre + weights.b_enc_N
    wanted = slow_selection(pre, offset, K * len(x))
    torch.testing.assert_close(passed.kept.dense(), wanted, rtol=1e-5, atol=1e-5)
    assert not passed.kept.dense()[:, 1].any()


def test_a_stored_margin_that_fell_is_its_last_value():
    former = {"train": {"margin": {"start": 0.4, "end": 0.2}, "births": {"share": 0.1}}}
    assert Recipe.stored(former).train.margin == 0.2
    with pytest.raises(UserError, match="births"):
        Recipe.load({"train": {"births": {"share": 0.1}}})
    with pytest.raises(UserError, match=r"train\.margin"):
        Recipe.load({"train": {"margin": 0.6}})


def test_mean_activations_are_those_of_what_fired(small_recipe, batches):
    off = {"margin": 0.0, "nest": Nest(weight=0.0)}
    # in fp32, as the plain loop below computes
    recipe = small_recipe(**off, dtype="fp32")
    trainer, stream = Trainer(recipe, "atomic", 0, torch.zeros(16)), batches()
    total, count = torch.zeros(trainer.recipe.sae.n), torch.zeros(trainer.recipe.sae.n)
    for _ in range(20):
        x, weights = stream.next(), trainer.primary.weights
        z = objective.batch_topk(objective.encode(x, weights), trainer.recipe.sae.k * len(x))
        total = 0.99 * total + 0.01 * z.sum(0)
        count = 0.99 * count + 0.01 * (z > 0).sum(0)
        trainer.primary_step(x)
    wanted = torch.where(count > 0, total / count.clamp(min=1e-9), 0)
    torch.testing.assert_close(trainer.primary.mean_activation(), wanted, rtol=1e-3, atol=1e-4)


def trained(small_recipe, batches, arm="atomic", scale=1.0):
    recipe = small_recipe(margin=0.2, nest=Nest(weight=0.0), dtype="fp32")
    trainer, stream = Trainer(recipe, arm, 0, torch.zeros(16)), batches()
    for _ in range(40):
        trainer.primary_step(stream.next() * scale)
    return trainer


@pytest.mark.parametrize("rule", ["rate", "per_latent"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_thresholds_lie_above_a_common_one_by_the_margin(small_recipe, batches, rule, scale):
    trainer = trained(small_recipe, batches)
    sae = trainer.export(scale, {})["primary"]
    offset = 0.2 * trainer.primary.mean_activation() / scale
    torch.testing.assert_close(sae.offset, offset)
    b_enc, x = sae.b_enc.clone(), torch.cat([batches().next() for _ in range(20)]) / scale
    calibrated = calibrate(sae, Rows(x), batch=64, rule=rule)
    assert sae.offset is None and torch.equal(sae.b_enc, b_enc)
    assert calibrated.reached and calibrated.l0 == pytest.approx(trainer.recipe.sae.k, rel=0.01)
    assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(calibrated.l0, abs=0.02)
    common = sae.threshold - offset
    if rule == "rate":
        torch.testing.assert_close(common, common[:1].expand_as(common), rtol=1e-4, atol=1e-5)
    else:
        assert common[common.isfinite()].std() > 0


def test_resumed_to_the_bit(small_recipe, batches, tmp_path):
    recipe, stream = small_recipe(margin=0.3), batches()
    inputs = [stream.next() for _ in range(30)]
    whole, first, second = (Trainer(recipe, "atomic", 0, torch.zeros(16)) for _ in range(3))
    for x in inputs:
        whole.primary_step(x)
    for x in inputs[:11]:
        first.primary_step(x)
    checkpoint.save(first, [], 0, tmp_path)
    checkpoint.load(second, tmp_path)
    for x in inputs[11:]:
        second.primary_step(x)
    for key, tensor in whole.primary.weights.tensors().items():
        assert torch.equal(tensor, getattr(second.primary.weights, key)), key


def test_a_training_with_births_is_not_continued(small_recipe, tmp_path):
    trainer = Trainer(small_recipe(), "atomic", 0, torch.zeros(16))
    header = checkpoint.header_of(trainer, [], 0)
    checkpoint.check(header, trainer, tmp_path)
    with pytest.raises(UserError, match="with births; delete it"):
        checkpoint.check(header | {"births": {"records": []}}, trainer, tmp_path)


def test_other_arms_have_none(small_recipe, batches):
    for arm in ("solo", "joint"):
        trainer = Trainer(small_recipe(), arm, 0, torch.zeros(16))
        trainer.primary_step(batches().next())
        assert trainer.changes.offset(trainer.primary) is None and trainer.export(1.0, {})["primary"].offset is None
