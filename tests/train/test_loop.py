"""The alternation, control = solo, and a run that is killed and resumed."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from metasae.errors import Interrupted, UserError
from metasae.progress.progress import Task
from metasae.progress.stop import StopRequest
from metasae.sae.optimiser import learning_rate
from metasae.train import checkpoint, loop
from metasae.train.loop import train
from metasae.train.trainer import Trainer

TASK = Task(None, None)


def run(recipe, arm, folder, batches, **options):
    trainer = Trainer(recipe, arm, 0, torch.full((16,), 0.3))
    train(trainer, batches(), folder, TASK, **options)
    return trainer


def same_weights(one, other):
    return all(torch.equal(tensor, getattr(other, name)) for name, tensor in one.tensors().items())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_control_equals_solo_bit_for_bit(small_recipe, batches, tmp_path, dtype, kernels):
    recipe = small_recipe(dtype=dtype, kernels=kernels)
    solo, control = (run(recipe, arm, tmp_path / arm, batches) for arm in ("solo", "control"))
    assert same_weights(solo.primary.weights, control.primary.weights)
    for one, other in zip(lines(tmp_path / "solo"), lines(tmp_path / "control"), strict=True):
        assert all(other[key] == value for key, value in one.items() if key != "meta_step")
    assert control.meta is not None and control.done.meta == 30


def test_every_line_of_control_has_the_penalty_it_reports(small_recipe, batches, tmp_path):
    # 43 steps: the last line covers 3, and the penalty, which control works out for its lines only, is above zero in it
    # too
    run(small_recipe(tokens=64 * 43), "control", tmp_path, batches)
    assert len(lines(tmp_path)) == 5 and all(line["penalty"] > 0 for line in lines(tmp_path))


def test_joint_differs_from_solo(small_recipe, batches, tmp_path):
    solo, joint = (run(small_recipe(), arm, tmp_path / arm, batches) for arm in ("solo", "joint"))
    assert not same_weights(solo.primary.weights, joint.primary.weights)


def test_sequential_leaves_the_primary_as_solo_and_trains_the_meta_afterwards(small_recipe, batches, tmp_path):
    order = []
    solo = run(small_recipe(), "solo", tmp_path / "a", batches)
    sequential = run(small_recipe(), "sequential", tmp_path / "b", batches, after_step=order.append)
    assert same_weights(solo.primary.weights, sequential.primary.weights)
    assert order == ["primary"] * 40 + ["meta"] * 30


def test_turns(small_recipe, batches, tmp_path):
    order = []
    run(small_recipe(), "joint", tmp_path, batches, after_step=order.append)
    assert order == (["primary"] * 4 + ["meta"] * 3) * 10


def test_penalty_leaves_the_meta_sae_untouched(small_recipe, batches):
    trainer = Trainer(small_recipe(), "joint", 0, torch.zeros(16))
    before = {name: tensor.clone() for name, tensor in trainer.meta.weights.tensors().items()}
    trainer.primary_step(batches().next())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.meta.weights.tensors().items())
    assert trainer.meta.silent_N.sum() == 0 and not trainer.meta.optimiser.state()


def test_rows_are_unit_after_every_step(small_recipe, batches):
    trainer, source = Trainer(small_recipe(), "joint", 0, torch.zeros(16)), batches()
    while action := trainer.next_action():
        learner = trainer.primary if action == "primary" else trainer.meta
        trainer.primary_step(source.next()) if action == "primary" else trainer.meta_step()
        assert (learner.weights.W_dec_ND.norm(dim=1) - 1).abs().max() < 1e-6


def test_training_lowers_the_loss_and_dead_latents_are_counted_in_tokens(small_recipe, batches, tmp_path):
    run(small_recipe(tokens=64 * 200), "solo", tmp_path, batches)
    first, *_, last = lines(tmp_path)
    assert last["fvu"] < 0.6 * first["fvu"]
    assert last["l0"] == 3.0
    # 64 tokens a batch: no latent can be dead for 500 tokens before step 8
    assert first["dead"] >= 0 and last["tokens"] == 64 * 200


def test_same_seed_same_start_other_seed_other_start(small_recipe):
    recipe = small_recipe()
    joint, solo, other = (
        Trainer(recipe, arm, seed, torch.zeros(16)) for arm, seed in (("joint", 0), ("solo", 0), ("solo", 1))
    )
    assert same_weights(joint.primary.weights, solo.primary.weights)
    assert not same_weights(other.primary.weights, solo.primary.weights)
    assert not torch.equal(joint.meta.weights.W_dec_ND, joint.primary.weights.W_dec_ND[:8])


def test_stop_request_saves_and_the_next_run_ends_the_same(small_recipe, batches, tmp_path):
    whole = run(small_recipe(), "joint", tmp_path / "whole", batches)
    stop, count = StopRequest(), []

    def after(action):
        count.append(action)
        if len(count) == 24:
            os.kill(os.getpid(), signal.SIGTERM)

    with stop.listening(), pytest.raises(Interrupted):
        run(small_recipe(), "joint", tmp_path / "cut", batches, stop=stop, after_step=after)
    cut = run(small_recipe(), "joint", tmp_path / "cut", batches)
    assert same_weights(whole.primary.weights, cut.primary.weights)
    assert same_weights(whole.meta.weights, cut.meta.weights)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def train_until_killed(recipe, batches, folder, kill_at):
    """Trains until this process kills itself after so many steps."""
    steps = []

    def after(action):
        steps.append(action)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    run(recipe, "joint", folder, batches, after_step=after)


# 70 steps in all: (4 primary, 3 meta) x 10; checkpoints after primary steps 7, 14, ... Step 20 is inside a meta phase.
@pytest.mark.parametrize("kill_at", [3, 20, 53])
def test_killed_and_resumed_is_bit_identical(small_recipe, batches, tmp_path, kill_at):
    recipe = small_recipe()
    whole = run(recipe, "joint", tmp_path / "whole", batches)
    # forked, as a fresh process takes seconds to load torch
    child = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(recipe, batches, tmp_path / "cut", kill_at)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed = run(recipe, "joint", tmp_path / "cut", batches)
    assert same_weights(whole.primary.weights, resumed.primary.weights)
    assert same_weights(whole.meta.weights, resumed.meta.weights)
    assert torch.equal(whole.primary.silent_N, resumed.primary.silent_N)
    for learner, other in ((whole.primary, resumed.primary), (whole.meta, resumed.meta)):
        for key, value in learner.optimiser.state().items():
            assert torch.equal(value, other.optimiser.state()[key]), key
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def test_damaged_or_foreign_checkpoint_is_one_clear_error(small_recipe, batches, tmp_path):
    recipe = small_recipe()
    run(recipe, "joint", tmp_path, batches)
    path = tmp_path / checkpoint.FILE
    with pytest.raises(UserError, match=r"another train\.lambda2"):
        checkpoint.load(Trainer(small_recipe(lambda2=0.1), "joint", 0, torch.zeros(16)), tmp_path)
    with pytest.raises(UserError, match="belongs to joint-s0"):
        checkpoint.load(Trainer(recipe, "control", 0, torch.zeros(16)), tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(Trainer(recipe, "joint", 0, torch.zeros(16)), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(small_recipe, batches, tmp_path):
    with pytest.raises(UserError, match="no longer finite at step"):
        run(small_recipe(lr=1e30, clip=1e30), "solo", tmp_path, batches)


def test_learning_rate_by_hand():
    rates = [learning_rate(step, 10, 1.0, 1, 0.2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 1.0, 0.5])
    assert learning_rate(5, 10, 3.0, 0, 0.0) == 3.0


def test_what_is_logged_before_a_penalty_is_charged_decides_nothing(small_recipe, batches, tmp_path, monkeypatch):
    recipe = small_recipe(penalty_start=0.5, adaptive_sigma=True)
    one = run(recipe, "joint", tmp_path / "ten", batches)
    monkeypatch.setattr(loop, "LOG_EVERY", 7)
    other = run(recipe, "joint", tmp_path / "seven", batches)
    assert one.sigma.kappa == other.sigma.kappa and same_weights(one.primary.weights, other.primary.weights)
    # and costs nothing: the loss is what is charged
    first = lines(tmp_path / "ten")[0]
    assert first["penalty"] > 0 and first["loss"] == pytest.approx(first["l2"] + first["aux"])
