"""Runs whose training activations come a window at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file

import metasae
from drawing import undrawn
from metasae.arms import train as windows
from metasae.data.cache.rolling import training_windows
from metasae.errors import Interrupted, UserError

pytestmark = pytest.mark.usefixtures("no_drawing")

ARMS = ("solo", "control", "joint", "sequential")


@pytest.fixture(scope="module")
def recipe(build, stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "harvest": {"shard_tokens": 500, "batch_tokens": 64, "window_tokens": 1500},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 6000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2, "dead_after": 1000,
            "checkpoint_every": 10,
        },
        "measure": {
            "tokens": 500, "calibration_tokens": 500, "output_tokens": 0, "meta_steps": 5, "critics": 1,
            "across": False,
            "explorer": False, "keep_firings": False, "lift": False, "shifts": 0, "pursuit_k": 0,
        },
        "arms": ARMS,
        "seeds": [0],
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with undrawn():
        metasae.run(recipe, out=out, show=False)
    return out


def assert_same_arms(one, other, arms=ARMS):
    for arm in arms:
        for which in ("primary", *(("meta",) if arm in ("control", "joint", "sequential") else ())):
            mine, theirs = (
                load_file(out / "arms" / f"{arm}-s0" / which / "sae_weights.safetensors") for out in (one, other)
            )
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items()), (arm, which)
        assert (one / f"arms/{arm}-s0/metrics.jsonl").read_bytes() == (
            other / f"arms/{arm}-s0/metrics.jsonl"
        ).read_bytes()


def test_the_seconds_of_an_arm_are_those_of_its_steps(undisturbed):
    stages = json.loads((undisturbed / "run.json").read_text())["stages"]
    assert all(0 < stages[f"train {arm}-s0"]["seconds"] < 60 for arm in ARMS)


def test_every_arm_is_trained_on_every_window_and_no_activations_stay(undisturbed, recipe):
    known = training_windows(undisturbed / "windows")
    steps = -(-recipe["train"]["tokens"] // recipe["train"]["batch"])
    assert len(known) > 2 and known[-1].stop >= steps > known[-2].stop
    assert not list((undisturbed / "windows").rglob("*.safetensors"))
    lines = [json.loads(line) for line in (undisturbed / "arms/joint-s0/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == steps
    assert lines[-1]["fvu"] < lines[0]["fvu"]


def test_control_equals_solo_and_joint_does_not(undisturbed):
    solo, control, joint = (
        load_file(undisturbed / f"arms/{arm}-s0/primary/sae_weights.safetensors")
        for arm in ("solo", "control", "joint")
    )
    assert all(torch.equal(solo[name], control[name]) for name in solo)
    assert not torch.equal(solo["W_dec"], joint["W_dec"])


@pytest.mark.parametrize("place", [2, 5, 9])
def test_a_run_that_is_stopped_between_or_within_windows_ends_with_the_same_bits(
    recipe, undisturbed, tmp_path, monkeypatch, place
):
    calls, real = [], windows.train_arm

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == place:
            args[6].asked = True  # after the next step
        return real(*args, **options)

    monkeypatch.setattr(windows, "train_arm", stopped)
    with pytest.raises(Interrupted):
        metasae.run(recipe, out=tmp_path / "run", show=False)
    monkeypatch.setattr(windows, "train_arm", real)
    metasae.run(recipe, out=tmp_path / "run", show=False)
    assert_same_arms(tmp_path / "run", undisturbed)


def test_an_arm_that_joins_later_is_trained_on_the_same_windows(recipe, undisturbed, tmp_path):
    metasae.run(recipe | {"arms": ["solo"]}, out=tmp_path / "run", show=False)
    metasae.run(recipe | {"arms": ["solo", "joint"]}, out=tmp_path / "run", show=False)
    assert_same_arms(tmp_path / "run", undisturbed, ["solo", "joint"])
    assert not list((tmp_path / "run" / "windows").rglob("*.safetensors"))


def test_windows_go_with_neither_several_points_nor_planted_worlds(recipe):
    for changes in (
        {"hook": {"point": "blocks.1.hook_resid_pre", "also": ["blocks.2.hook_resid_pre"]}},
        {"text": {"source": "planted"}},
    ):
        with pytest.raises(UserError, match="window_tokens"):
            metasae.Recipe.load(recipe | changes)


def test_a_sweep_refuses_windows(recipe, tmp_path):
    from metasae.sweep.launch import sweep

    with pytest.raises(UserError, match="window_tokens"):
        sweep(recipe, grid=["train.lambda2=0.1,0.3"], out=tmp_path / "sweep", show=False)
    assert not (tmp_path / "sweep").exists()
