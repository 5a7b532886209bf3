"""Values that another library leaves unset: thresholds that were never estimated, sizes of -1, a k that is missing."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae.data.split import Rows
from metasae.errors import UserError
from metasae.interop import export, load
from metasae.interop.thresholds import said_of_l0, said_of_thresholds
from metasae.measures.firing.calibrate import calibrate
from metasae.sae.sae import SAE
from tools import peers


def changed_pt(path, **tensors):
    """The folder of dictionary_learning with these tensors in its weights."""
    torch.save(torch.load(path / "ae.pt", weights_only=True) | tensors, path / "ae.pt")
    return path


def changed(path, tensors=None, config="cfg.json", **values):
    """A folder with these tensors and values of its config; `...` drops one."""
    file = path / "sae_weights.safetensors"
    if tensors:
        state = load_file(file) | tensors
        save_file({name: tensor for name, tensor in state.items() if tensor is not ...}, file)
    cfg = json.loads((path / config).read_text()) | values
    (path / config).write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))
    return path


def never_set(kind, folder):
    """A BatchTopK SAE of k = 5 whose threshold its library never estimated."""
    format, architecture, value = kind
    path = peers.make(format, architecture, "none", folder)
    if format == "dictionary_learning":
        return changed_pt(path, threshold=torch.tensor(value))
    if format == "saelens":
        return changed(path, {"topk_threshold": torch.tensor(value)})
    np.save(folder / "thresholds_joint.npy", np.full(peers.N, value, np.float32))
    return path


NEVER = [
    ("dictionary_learning", "BatchTopKSAE", -1.0),
    ("dictionary_learning", "BatchTopKSAE", 0.0),
    ("dictionary_learning", "BatchTopKSAE", math.inf),
    ("dictionary_learning", "MatryoshkaBatchTopKSAE", -1.0),
    ("saelens", "batchtopk", 0.0),
    ("saelens", "batchtopk rescaled", 0.0),
    ("saelens", "batchtopk", -1.0),
    ("paper", "batchtopk + npy", 10.0),
    ("paper", "batchtopk + npy", 0.0),
]


@pytest.mark.parametrize("kind", NEVER)
def test_a_threshold_that_was_never_set_is_none_until_calibrated_to_k(tmp_path, kind):
    path = never_set(kind, tmp_path / "theirs")
    sae = load(path)
    assert sae.threshold is None and sae.config.k == peers.K
    with pytest.raises(ValueError, match="no threshold yet: calibrate it first"):
        sae.encode(peers.inputs())
    with pytest.raises(UserError, match="no threshold yet, so no fixed rule of inference; calibrate it first"):
        export(path, "saelens", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calibration = calibrate(sae, Rows(peers.inputs(n_tokens=400)))
    assert calibration.rule == "rate" and calibration.l0 == pytest.approx(peers.K, abs=0.1)
    assert (sae.encode(peers.inputs(n_tokens=400)) > 0).sum(1).float().mean() == pytest.approx(peers.K, abs=0.1)


def test_the_mark_used_to_be_read_as_a_relu(tmp_path):
    """What the row of dictionary_learning gave: with -1 as the threshold far more than k latents fire."""
    sae = load(never_set(NEVER[0], tmp_path))
    sae.threshold = torch.full((peers.N,), -1.0)
    assert (sae.encode(peers.inputs()) > 0).sum(1).float().mean() > 3 * peers.K


def test_thresholds_of_single_latents_stay_as_they_are(tmp_path):
    """Infinity is a latent that never fires, and 0 or less one that a ReLU alone cuts, where others are set."""
    path = peers.make("saelens", "jumprelu", "none", tmp_path)
    threshold = torch.zeros(peers.N)
    threshold[1], threshold[2], threshold[3] = math.inf, -0.3, 0.5
    assert torch.equal(load(changed(path, {"threshold": threshold})).threshold, threshold)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_jumprelu_thresholds_that_were_never_set_are_refused(tmp_path, value):
    theirs = changed(peers.make("saelens", "jumprelu", "none", tmp_path / "a"), {"threshold": torch.full((48,), value)})
    for read in (load, SAE.load):
        with pytest.raises(UserError, match=r"none of its thresholds was ever set .*'standard' in its config"):
            read(theirs)
    path = peers.make("dictionary_learning", "JumpReluAutoEncoder", "none", tmp_path / "b")
    with pytest.raises(UserError, match="none of its thresholds was ever set"):
        load(changed_pt(path, threshold=torch.full((48,), value)))
    plain = changed(theirs, {"threshold": ...}, architecture="standard")
    assert not load(plain).threshold.any()


def test_relu_saes_of_ours_keep_thresholds_of_0(tmp_path):
    sae = load(peers.make("saelens", "standard", "none", tmp_path / "theirs"))
    sae.save(tmp_path / "ours")
    for path in (tmp_path / "ours", export(sae, "dictionary_learning", tmp_path / "out")):
        assert not load(path).threshold.any()


def test_missing_and_nan_thresholds_are_refused(tmp_path):
    path = peers.make("saelens", "jumprelu", "none", tmp_path / "a")
    with pytest.raises(UserError, match="lacks the tensor 'threshold'"):
        load(changed(path, {"threshold": ...}))
    with pytest.raises(UserError, match="log_threshold holds NaN"):
        load(changed(path, {"log_threshold": torch.full((48,), math.nan)}))
    with pytest.raises(UserError, match="none of its thresholds was ever set"):
        load(changed(path, {"log_threshold": torch.full((48,), -math.inf)}))
    with pytest.raises(UserError, match="threshold holds NaN"):
        load(never_set(("dictionary_learning", "BatchTopKSAE", math.nan), tmp_path / "b"))


@pytest.mark.parametrize("value", [-1, 0, ..., None])
def test_a_k_that_is_not_set_is_refused(tmp_path, value):
    path = changed(peers.make("sparsify", "topk", "none", tmp_path / "a"), k=value)
    with pytest.raises(UserError, match=r"lacks 'k'|k must be a positive whole number"):
        load(path)
    path = peers.make("dictionary_learning", "BatchTopKSAE", "none", tmp_path / "b")
    trainer = json.loads((path / "config.json").read_text())["trainer"] | {"k": None if value is ... else value}
    with pytest.raises(UserError, match="k must be a positive whole number"):
        load(changed(path, config="config.json", trainer=trainer))


def test_sizes_that_are_not_set_are_refused_or_told_by_the_weights(tmp_path):
    for format, kind in (("sparsify", "topk"), ("saelens", "jumprelu")):
        with pytest.raises(UserError, match="d_in must be a positive whole number, not -1"):
            load(changed(peers.make(format, kind, "none", tmp_path / format), d_in=-1))
    path = peers.make("dictionary_learning", "BatchTopKSAE", "none", tmp_path / "a")
    trainer = json.loads((path / "config.json").read_text())["trainer"]
    unset = changed(path, config="config.json", trainer=trainer | {"activation_dim": -1, "dict_size": None})
    assert load(unset).config.d_in == peers.D
    other = changed(path, config="config.json", trainer=trainer | {"activation_dim": 512})
    with pytest.raises(UserError, match="activation_dim is 512, but the weights have 16"):
        load(other)


def test_what_is_said_of_thresholds_before_measuring(tmp_path):
    never = load(never_set(NEVER[0], tmp_path / "a"))
    (line,) = said_of_thresholds(never, "x-s0", "rate")
    assert line.startswith("x-s0 comes without thresholds") and line.endswith("k = 5 by measure.threshold = rate")
    alone = load(peers.make("paper", "batchtopk", "none", tmp_path / "b"))
    assert "keeps the k = 5 largest of each token" in said_of_thresholds(alone, "x-s0", "rate")[0]
    usual = load(peers.make("dictionary_learning", "BatchTopKSAE", "none", tmp_path / "c"))
    assert said_of_thresholds(usual, "x-s0", "rate") == []
    assert said_of_l0(usual, "x-s0", 5.5) == said_of_l0(usual, "x-s0", 4) == []
    for l0 in (24.0, 2.0):
        said = f"has {l0:.3g} active latents per token, but was trained to keep k = 5"
        assert said in said_of_l0(usual, "x-s0", l0)[0]
    plain = load(peers.make("saelens", "standard", "none", tmp_path / "d"))
    assert said_of_l0(plain, "x-s0", 24) == [] == said_of_thresholds(plain, "x-s0", "rate")
