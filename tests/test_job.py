"""The main job from text to report on a tiny model; resuming, refusing, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import metasae
from metasae import job
from metasae.errors import UserError


@pytest.fixture
def text_file(stories, tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return path


@pytest.fixture
def recipe(build, text_file):
    def make(family="gpt2"):
        return {
            "model": {"path": str(build(family)), "dtype": "fp32"},
            "hook": {"point": "blocks.1.hook_resid_pre"},
            "text": {"source": str(text_file), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
            "harvest": {"shard_tokens": 2000},
            "sae": {"n": 64, "k": 4},
            "meta": {"n": 8, "k": 2},
            "train": {"tokens": 6000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2, "dead_after": 1000, "checkpoint_every": 10},
            "measure": {"tokens": 2000, "calibration_tokens": 2000, "output_tokens": 400, "meta_steps": 20},
            "arms": ["solo", "control", "joint"],
            "seeds": 2,
        }

    return make


def weights(folder, arm):
    return load_file(folder / "arms" / arm / "primary" / "sae_weights.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_from_text_to_verdict(recipe, tmp_path, family):
    out = tmp_path / "runs" / "a"
    result = metasae.run(recipe(family), out=out, show=False)
    assert result["verdict"]
    for name in ("recipe.toml", "run.json", "compare.json", "compare.md", "report.html", "figures"):
        assert (out / name).exists(), name
    for seed in (0, 1):
        solo, control, joint = (weights(out, f"{arm}-s{seed}") for arm in ("solo", "control", "joint"))
        assert all(torch.equal(solo[name], control[name]) for name in solo)
        assert not torch.equal(solo["W_dec"], joint["W_dec"])
        measures = json.loads((out / f"arms/joint-s{seed}/measures.json").read_text())
        assert measures["fidelity"]["fvu"] < 1
        assert ("ce_delta" in measures["fidelity"]) == (family == "gpt2")
    assert not list(out.rglob("*.part")) and not list(out.rglob("checkpoints"))
    sae = metasae.SAE.load(out / "arms/joint-s0/primary")
    x = torch.randn(3, 32)
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6


def test_a_second_call_does_nothing_again_and_more_arms_join(recipe, tmp_path):
    out = tmp_path / "runs" / "a"
    first = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(first, out=out, show=False)
    before = {path: path.stat().st_mtime_ns for path in (out / "arms").rglob("*") if path.is_file()}
    metasae.run(first | {"arms": ["solo", "joint"]}, out=out, show=False)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert (out / "arms/joint-s0/measures.json").exists()


def test_another_recipe_in_the_same_folder_is_refused(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "a", show=False)
    with pytest.raises(UserError, match=r"train\.lr = 0\.001, not 0\.1"):
        metasae.run(values, out=tmp_path / "a", overrides={"train.lr": 0.1}, show=False)


def test_runs_side_by_side_share_one_harvest(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    index = next((tmp_path / "runs/activations").iterdir()) / "index.json"
    stamp = index.stat().st_mtime_ns
    metasae.run(values, out=tmp_path / "runs/b", overrides={"train.lr": 0.01}, show=False)
    assert len(list((tmp_path / "runs/activations").iterdir())) == 1 and index.stat().st_mtime_ns == stamp


def test_a_killed_run_ends_like_an_undisturbed_one(recipe, tmp_path):
    values = recipe() | {"seeds": [0]}
    whole, cut = tmp_path / "whole/run", tmp_path / "cut/run"
    metasae.run(values, out=whole, show=False)
    script = tmp_path / "child.py"
    script.write_text(f"import metasae\nmetasae.run({values!r}, out={str(cut)!r}, show=False)\n")
    child = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    deadline = time.time() + 60
    while not (cut / "arms/solo-s0/checkpoints/latest.safetensors").exists() and time.time() < deadline and child.poll() is None:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    metasae.run(values, out=cut, show=False)
    for arm in ("solo-s0", "control-s0", "joint-s0"):
        assert all(torch.equal(tensor, weights(cut, arm)[name]) for name, tensor in weights(whole, arm).items())
        assert (whole / "arms" / arm / "metrics.jsonl").read_bytes() == (cut / "arms" / arm / "metrics.jsonl").read_bytes()
        assert json.loads((whole / "arms" / arm / "measures.json").read_text()) == json.loads((cut / "arms" / arm / "measures.json").read_text())


def test_a_nan_in_a_cached_shard_is_named(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    shard = next((tmp_path / "runs/activations").rglob("train-00001.safetensors"))
    tensors = load_file(shard)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["activations"][5, 3] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(UserError, match=r"train-00001"):
        metasae.run(values, out=tmp_path / "runs/b", show=False)
    assert (tmp_path / "runs/a/arms/solo-s0/measures.json").exists()


def test_a_truncated_cache_or_sae_is_named(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    file = tmp_path / "runs/a/arms/solo-s0/primary/sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "runs/a/arms/solo-s0/measures.json").unlink()
    with pytest.raises(UserError, match=r"sae_weights.safetensors is damaged"):
        metasae.run(values, out=tmp_path / "runs/a", show=False)
    shard = next((tmp_path / "runs/activations").rglob("train-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00000"):
        metasae.run(values, out=tmp_path / "runs/b", show=False)


def test_seeds_give_other_batches_and_other_weights(recipe, tmp_path):
    metasae.run(recipe() | {"arms": ["solo"]}, out=tmp_path / "a", show=False)
    assert not torch.equal(weights(tmp_path / "a", "solo-s0")["W_dec"], weights(tmp_path / "a", "solo-s1")["W_dec"])


def test_a_full_disk_is_one_clear_error(recipe, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(UserError, match="No space left"):
        metasae.run(values, out=tmp_path / "a", show=False)


def test_input_scale_by_hand():
    class Two:
        d, mean_square = 4, 16.0

    assert job.input_scale(Two(), "global") == 0.5
    assert job.input_scale(Two(), "token") == 1.0
