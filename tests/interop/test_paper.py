"""The paper's checkpoints: which thresholds belong to which, and its own inference, eps included, written out."""

import numpy as np
import pytest
import torch

from metasae.errors import UserError
from metasae.interop import export, load
from tools import peers
from tools.matrix import outputs, random_sae


def checkpoint(folder, kind="batchtopk", normalisation="input_unit_norm", name="joint_primary_sae.pt"):
    path = peers.make("paper", kind, normalisation, folder / "made")
    path.rename(folder / name)
    for npy in (folder / "made").glob("*.npy"):
        npy.unlink()
    return folder / name


def thresholds(folder, label, value):
    path = folder / f"thresholds_{label}.npy"
    np.save(path, np.full(peers.N, value, np.float32))
    return path


def test_thresholds_are_found_by_the_label_of_the_checkpoint(tmp_path):
    joint, solo = checkpoint(tmp_path), checkpoint(tmp_path, name="solo_primary_sae.pt")
    for label, value in (("joint", 0.25), ("solo", 0.5), ("jo", 9.0)):
        thresholds(tmp_path, label, value)
    assert load(joint).threshold[0] == 0.25 and load(solo).threshold[0] == 0.5
    assert load(joint).config.metadata["thresholds"] == "thresholds_joint.npy"
    assert load(joint, thresholds=tmp_path / "thresholds_jo.npy").threshold[0] == 9.0


def test_another_ones_thresholds_are_not_taken(tmp_path):
    solo = checkpoint(tmp_path, name="solo_primary_sae.pt")
    checkpoint(tmp_path)
    thresholds(tmp_path, "joint", 0.25)
    assert load(solo).config.rule == "topk" and "thresholds" not in load(solo).config.metadata


def test_thresholds_of_the_default_label_belong_to_a_lone_checkpoint(tmp_path):
    path = checkpoint(tmp_path, name="run7.pt")
    thresholds(tmp_path, "sae", 0.25)
    assert load(path).threshold[0] == 0.25 and load(tmp_path).threshold[0] == 0.25
    checkpoint(tmp_path, name="run8.pt")
    assert load(path).config.rule == "topk"


def test_a_folder_of_several_checkpoints_asks_which(tmp_path):
    checkpoint(tmp_path)
    checkpoint(tmp_path, name="solo_primary_sae.pt")
    with pytest.raises(
        UserError, match=r"holds 2 checkpoints \(joint_primary_sae.pt, solo_primary_sae.pt\); name one of them"
    ):
        load(tmp_path)


def test_thresholds_for_an_sae_with_its_own_rule_are_refused(tmp_path):
    path = checkpoint(tmp_path, "vanilla")
    with pytest.raises(UserError, match="a 'vanilla' SAE has its own rule"):
        load(path, thresholds=thresholds(tmp_path, "joint", 0.25))
    # found beside it, they are not asked for
    assert not load(path).threshold.any()


def test_the_papers_inference_with_thresholds(tmp_path):
    """Written out token by token, with the eps on both ways and b_enc unused."""
    path = peers.make("paper", "batchtopk + npy", "input_unit_norm", tmp_path)
    w = {name: tensor.double() for name, tensor in torch.load(path, weights_only=True)["state_dict"].items()}
    limit = np.load(tmp_path / "thresholds_joint.npy")
    x = peers.inputs(n_tokens=20)
    acts, out = outputs(load(path), x)
    assert w["b_enc"].any()
    for token, row in enumerate(x.double()):
        mean, std = row.mean(), row.std()
        u = (row - mean) / (std + 1e-5)
        z = torch.zeros(peers.N).double()
        for latent in range(peers.N):
            pre = max(float((u - w["b_dec"]) @ w["W_enc"][:, latent]), 0.0)
            z[latent] = pre if pre > limit[latent] else 0.0
        assert torch.allclose(acts[token].double(), z, rtol=1e-5, atol=1e-5)
        expected = (z @ w["W_dec"] + w["b_dec"]) * (std + 1e-5) + mean
        assert torch.allclose(out[token].double(), expected, rtol=2e-6, atol=2e-6)


def test_a_dead_latents_threshold_of_ten_is_passed_by_a_larger_pre_activation(tmp_path):
    path = checkpoint(tmp_path, normalisation="none")
    values = np.load(thresholds(tmp_path, "joint", 10.0))
    values[0] = 1e6
    np.save(tmp_path / "thresholds_joint.npy", values)
    sae = load(path)
    x = peers.inputs()[:1]
    lift = 1 + 20 / sae.pre_activations(x).max()
    assert not sae.encode(x).any() and sae.encode((x - sae.b_dec) * lift + sae.b_dec).any()


def test_what_is_exported_has_what_the_papers_scripts_read(tmp_path):
    sae = random_sae("threshold per latent, no b_enc", "token")
    sae.config.metadata |= {
        "hook_name": "blocks.20.hook_resid_pre",
        "model_name": "gpt2-large",
        "metasae": {"arm": "solo", "seed": 1},
    }
    sae.threshold[5] = float("inf")
    out = export(sae, "paper", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"solo_primary_sae.pt", "thresholds_solo.npy"}
    cfg = torch.load(out / "solo_primary_sae.pt", weights_only=True)["cfg"]
    expected = {
        "sae_type": "batchtopk",
        "layer": 20,
        "site": "resid_pre",
        "model_name": "gpt2-large",
        "input_unit_norm": True,
        "top_k": peers.K,
    }
    assert expected.items() <= cfg.items() and cfg["dtype"] is torch.float32
    saved = np.load(out / "thresholds_solo.npy")
    assert saved.dtype == np.float32 and np.array_equal(saved, sae.threshold.numpy())


@pytest.mark.parametrize("arm", ["../../evil", "a/b", 7, "", None])
def test_a_label_is_a_plain_word(tmp_path, arm):
    sae = random_sae("one threshold", "none")
    sae.config.metadata["metasae"] = {"arm": arm}
    out = export(sae, "paper", tmp_path / "out")
    assert [path.name for path in out.iterdir()] == ["sae_primary_sae.pt"] and not (tmp_path / "evil").exists()
