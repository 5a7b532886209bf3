"""Runs whose arms are trained on activations with spike-ins: exact resume, the same bits on two ranks, what is said."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import metasae
from drawing import undrawn
from metasae.arms import train as arm_training
from metasae.arms.folder import RunFolder
from metasae.errors import Interrupted, UserError
from metasae.recipe.recipe import Recipe

pytestmark = pytest.mark.usefixtures("no_drawing")

SPIKES = {"n": 8, "amplitudes": [0.5, 0.8], "rates": [0.01, 0.05]}


@pytest.fixture(scope="module")
def recipe(build, stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "harvest": {"shard_tokens": 500, "batch_tokens": 64},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 6000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2, "dead_after": 1000,
            "checkpoint_every": 10,
        },
        "spikes": SPIKES,
        "measure": {
            "tokens": 1500, "calibration_tokens": 500, "output_tokens": 0, "meta_steps": 5, "critics": 1,
            "across": False,
            "explorer": False, "keep_firings": False, "lift": False, "shifts": 0, "pursuit_k": 0,
        },
        "arms": ["solo", "joint"],
        "seeds": [0, 1],
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("spiked") / "run"
    with undrawn():
        metasae.run(recipe, out=out, show=False)
    return out


def weights(out, label):
    return load_file(out / "arms" / label / "primary" / "sae_weights.safetensors")


def assert_same_weights(one, other, label):
    theirs = weights(other, label)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(one, label).items())


def test_every_arm_is_scored_against_the_draw_of_its_seed(run):
    arms = RunFolder(run).arms()
    scores = {arm.label: arm.measures()["spikes"] for arm in arms}
    assert len(scores) == 4 and {label: part["draw"] for label, part in scores.items()} == {
        "solo-s0": 0, "joint-s0": 0, "solo-s1": 1, "joint-s1": 1
    }  # fmt: skip
    for part in scores.values():
        assert 0 <= part["recovery_f1"] <= 1 and part["added_energy"] > 0 and part["loudness"] > 0
        assert part["n"] > 0 and 0 < part["ceiling_f1"] <= 1
        assert len(part["leave_one_out"]["recovery_f1"]) > 1
        assert set(part["by_kind"]) == {"concept", "sense", "parent", "child", "atom"}
    assert scores["solo-s0"]["ceiling_f1"] == scores["joint-s0"]["ceiling_f1"]


def test_scores_are_those_of_the_public_class(run, recipe):
    """What a run writes is what `metasae.Spikes` says of the same SAE on the same tokens."""
    arm = RunFolder(run).arm("solo", 0)
    spikes = metasae.Spikes.load(run / "spikes" / "s0.safetensors")
    harvest = json.loads((run / "run.json").read_text())["stages"]["harvest"]
    from metasae.data.cache.cache import ActivationCache

    split = ActivationCache(harvest["cache"], Recipe.load(recipe).split_tokens).split("evaluation")
    sae, columns = arm.sae(), (split.tokens, split.documents, split.positions)
    x = torch.cat(list(split.blocks(512)))
    scores = spikes.score(sae.encode, x, *columns, rows=sae.W_dec)
    mine = arm.measures()["spikes"]
    for key in ("recovery_f1", "ceiling_f1", "told_apart", "blend_rate", "cosine", "added_energy", "n"):
        assert mine[key] == pytest.approx(scores[key], abs=1e-6), key


def test_arms_differ_from_those_without_and_text_is_measured_without(run, recipe, tmp_path):
    metasae.run(recipe | {"spikes": {"n": 0}, "arms": ["solo"], "seeds": [0]}, out=tmp_path / "plain", show=False)
    plain = RunFolder(tmp_path / "plain").arm("solo", 0)
    assert not torch.equal(plain.sae().W_dec, RunFolder(run).arm("solo", 0).sae().W_dec)
    assert "spikes" not in plain.measures() and not (tmp_path / "plain" / "spikes").exists()
    # the same held-out tokens without spike-ins
    assert plain.measures()["conditions"]["data"] == RunFolder(run).arm("solo", 0).measures()["conditions"]["data"]


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(run, recipe, tmp_path, monkeypatch):
    train = arm_training.train

    def stopped(trainer, batches, folder, task, stop, **options):
        train(trainer, batches, folder, task, stop, **options | {"until": 15})
        raise Interrupted("here")

    monkeypatch.setattr(arm_training, "train", stopped)
    with pytest.raises(Interrupted):
        metasae.run(recipe | {"arms": ["solo"]}, out=tmp_path / "run", show=False)
    monkeypatch.setattr(arm_training, "train", train)
    metasae.run(recipe | {"arms": ["solo"]}, out=tmp_path / "run", show=False)
    assert_same_weights(run, tmp_path / "run", "solo-s0")
    assert (run / "spikes/s0.safetensors").read_bytes() == (tmp_path / "run/spikes/s0.safetensors").read_bytes()


def test_windows_meet_the_same_spike_ins_and_resume(recipe, tmp_path, monkeypatch):
    windowed = recipe | {"harvest": {**recipe["harvest"], "window_tokens": 1500}, "seeds": [0]}
    metasae.run(windowed, out=tmp_path / "whole", show=False)
    train, calls = arm_training.train, []

    def stopped(*arguments, **options):
        calls.append(0)
        if len(calls) == 4:
            raise Interrupted("here")
        return train(*arguments, **options)

    monkeypatch.setattr(arm_training, "train", stopped)
    with pytest.raises(Interrupted):
        metasae.run(windowed, out=tmp_path / "parts", show=False)
    monkeypatch.setattr(arm_training, "train", train)
    metasae.run(windowed, out=tmp_path / "parts", show=False)
    for label in ("solo-s0", "joint-s0"):
        assert_same_weights(tmp_path / "whole", tmp_path / "parts", label)
        assert RunFolder(tmp_path / "whole").arm(*label.split("-s")[:1], 0).measures()["spikes"]["n"] > 0


def test_a_draw_that_is_gone_is_said(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "spikes")
    with pytest.raises(UserError, match="holds no spike-ins"):
        metasae.run(recipe, out=tmp_path / "run", overrides={"measure.tokens": 1400}, show=False)


def test_other_spike_ins_in_the_same_folder_are_refused(run, recipe):
    with pytest.raises(UserError, match=r"spikes\.n"):
        metasae.run(recipe, out=run, overrides={"spikes.n": 12}, show=False)


def test_planted_worlds_have_their_own_truth():
    with pytest.raises(UserError, match="known features of its own"):
        Recipe.load("planted", {"spikes.n": 8})


@pytest.mark.parametrize("key, value", [("spikes.amplitudes", [0.5, 0.2]), ("spikes.rates", [0.01, 0.5])])
def test_wrong_ranges_are_refused(key, value):
    with pytest.raises(UserError, match="spikes"):
        Recipe.load("demo", {key: value})


def test_moments_of_a_spiked_split_are_those_of_its_rows(run, recipe):
    from metasae.data.cache.cache import ActivationCache
    from metasae.measures.truth.spikes import Spikes

    harvest = json.loads((run / "run.json").read_text())["stages"]["harvest"]
    split = ActivationCache(harvest["cache"]).split("train")
    spiked = Spikes.of_split(split, 8, 0, (0.5, 0.8), (0.01, 0.05)).spiked(split)
    rows = torch.cat(list(spiked.blocks(500))).double()
    assert torch.allclose(spiked.mean, rows.mean(0), atol=1e-5)
    assert spiked.mean_square == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-5)
    order = np.random.default_rng(0).permutation(split.n_tokens)[:300]
    assert torch.equal(spiked.rows(order), rows[order].float())


def test_saes_say_what_they_met_and_are_measured_alike_elsewhere(run, tmp_path):
    arm = RunFolder(run).arm("solo", 1)
    note = arm.sae().config.metadata["metasae"]["spikes"]
    assert note["n"] == SPIKES["n"] and note["draw"] == 1 and "known features were added" in note["note"]
    metasae.measure([arm.folder / "primary"], out=tmp_path / "again", show=False)
    again = RunFolder(tmp_path / "again").arm("solo", 1).measures()["spikes"]
    assert again == arm.measures()["spikes"]
    assert "with 8 spike-ins" in (run / "compare.md").read_text()
