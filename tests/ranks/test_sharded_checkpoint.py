"""Checkpoints of several ranks: resumed as if nothing had happened, also on another number of ranks; a killed rank ends
the job.
"""

import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from arms import D, arm_trained, values

from metasae.errors import UserError
from metasae.ranks.ranks import ALONE
from metasae.recipe.recipe import Recipe
from metasae.train.sharded import checkpoint as sharded
from metasae.train.sharded.trainer import trainer_of
from spawned import on_ranks, results, start

# (4 primary, 3 meta) x 4; checkpoints after primary steps 7 and 14
RECIPE = values(16)


def kill_rank_1(ranks, done):
    if done == 20 and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def kept_by_step(traces):
    steps = range(len(traces[0]["primary"]))
    return [np.sort(np.concatenate([trace["primary"][step] for trace in traces])) for step in steps]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """On 2 ranks: a run left alone, and one broken off after 20 actions, 13 of them primary ones."""
    folder = tmp_path_factory.mktemp("two")
    whole = on_ranks(2, arm_trained, RECIPE, "joint", str(folder / "whole"))
    on_ranks(2, arm_trained, RECIPE, "joint", str(folder / "cut"), 20)
    return folder, whole


def resumed(two, tmp_path, size):
    folder, _ = two
    shutil.copytree(folder / "cut", tmp_path / "cut")
    if size == 1:
        return [arm_trained(ALONE, RECIPE, "joint", str(tmp_path / "cut"))]
    return on_ranks(size, arm_trained, RECIPE, "joint", str(tmp_path / "cut"))


def test_a_rank_that_is_killed_ends_the_job_and_the_next_one_ends_as_if_it_had_not(two, tmp_path):
    folder, whole = two
    begun = time.monotonic()
    started = start(2, arm_trained, RECIPE, "joint", str(tmp_path / "run"), None, kill_rank_1)
    first, second = results(started, 100)
    # a rank that did not notice would wait for longer, however busy the machine is
    assert time.monotonic() - begun < 90
    assert second is None and started[1][0].exitcode == -signal.SIGKILL
    assert first[0] == "failed" and first[1].startswith("UserError: another rank ended before the job was done"), first
    again = on_ranks(2, arm_trained, RECIPE, "joint", str(tmp_path / "run"))
    assert len(again[0]["primary"]) == 16 - 7
    for one, other in zip(again, whole, strict=True):
        for name, tensor in one["state"].items():
            assert np.array_equal(tensor, other["state"][name]), name
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (folder / "whole/metrics.jsonl").read_bytes()


def test_one_rank_that_is_asked_to_stop_stops_all_and_nothing_is_lost(two, tmp_path):
    _, whole = two
    for told in results(start(2, arm_trained, RECIPE, "joint", str(tmp_path), None, None, 11)):
        assert told[1].startswith("Interrupted: stopped at step 8; saved"), told
    traces = on_ranks(2, arm_trained, RECIPE, "joint", str(tmp_path))
    assert len(traces[0]["primary"]) == 16 - 8
    for name, tensor in traces[0]["state"].items():
        assert np.array_equal(tensor, whole[0]["state"][name]), name


@pytest.mark.parametrize("size", [1, 3])
def test_two_ranks_go_on_as_one_and_as_three(two, tmp_path, size):
    _, whole = two
    traces = resumed(two, tmp_path, size)
    assert len(traces[0]["primary"]) == 16 - 7
    for ours, theirs in zip(kept_by_step(traces), kept_by_step(whole)[7:], strict=True):
        assert np.array_equal(ours, theirs)
    for name, tensor in traces[0]["state"].items():
        np.testing.assert_allclose(tensor, whole[0]["state"][name], atol=3e-5, err_msg=name)


def test_adams_counts_of_steps_come_back_where_the_trainer_works(two, tmp_path, monkeypatch):
    read = {}
    monkeypatch.setattr(sharded.checkpoint, "restore", lambda trainer, header, tensors: read.update(tensors) or ([], 0))
    trainer = trainer_of(Recipe.load(RECIPE), "joint", 0, torch.full((D,), 0.3), "cpu", ALONE)
    # torch's stand-in for another device
    trainer.device = torch.device("meta")
    sharded.load(trainer, two[0] / "cut")
    steps = [tensor for name, tensor in read.items() if name.endswith(".step")]
    assert len(steps) > 4 and all(step.device.type == "meta" for step in steps)


def test_prefixes_and_further_penalties_go_on_on_other_numbers_of_ranks(tmp_path):
    penalties = {"penalties": {"ortsae": 0.3, "c2r": 2.0, "cofiring": 0.3}, "penalty_every": 2, "penalty_start": 0.2}
    recipe = values(16, sae={"architecture": "matryoshka", "prefixes": [0.1, 0.5]}, train=penalties)
    whole = on_ranks(2, arm_trained, recipe, "joint", str(tmp_path / "whole"))
    on_ranks(2, arm_trained, recipe, "joint", str(tmp_path / "cut"), 20)
    for size in (1, 3):
        place = str(shutil.copytree(tmp_path / "cut", tmp_path / str(size)))
        traces = (
            on_ranks(size, arm_trained, recipe, "joint", place)
            if size > 1
            else [arm_trained(ALONE, recipe, "joint", place)]
        )
        for ours, theirs in zip(kept_by_step(traces), kept_by_step(whole)[7:], strict=True):
            assert np.array_equal(ours, theirs)
        for name, tensor in traces[0]["state"].items():
            np.testing.assert_allclose(tensor, whole[0]["state"][name], atol=3e-5, err_msg=name)


def test_one_rank_goes_on_as_two(two, tmp_path):
    _, whole = two
    arm_trained(ALONE, RECIPE, "joint", str(tmp_path), 20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["latest.safetensors"]
    traces = on_ranks(2, arm_trained, RECIPE, "joint", str(tmp_path))
    for ours, theirs in zip(kept_by_step(traces), kept_by_step(whole)[7:], strict=True):
        assert np.array_equal(ours, theirs)
    # one checkpoint is left, and it is whole: no part that was being written, none of the other kind
    (place,) = (tmp_path / "checkpoints").iterdir()
    assert place.name == "sharded-000000016-000000012"
    assert sorted(path.suffix for path in place.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_a_damaged_or_foreign_checkpoint_is_one_clear_error(two, tmp_path):
    folder, _ = two
    shutil.copytree(folder / "cut", tmp_path / "cut")
    with pytest.raises(UserError, match=r"another train\.lambda2"):
        arm_trained(ALONE, values(16, train={"lambda2": 0.1}), "joint", str(tmp_path / "cut"))
    file = sorted((tmp_path / "cut/checkpoints").glob("sharded-*/*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="is damaged"):
        arm_trained(ALONE, RECIPE, "joint", str(tmp_path / "cut"))
    file.unlink()
    with pytest.raises(UserError, match="1 of 2 files are there"):
        arm_trained(ALONE, RECIPE, "joint", str(tmp_path / "cut"))
