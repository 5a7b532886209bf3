"""What SAELens wrote over the years: configs of versions 3 to 6, fine-tuned factors, checkpoints of a training run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from metasae.errors import UserError
from metasae.interop import load
from tools import peers
from tools.matrix import difference, outputs

NAMES = {"model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128, "prepend_bos": True}


def checkpoint(folder, architecture="standard", normalisation="none", **changes):
    """A folder whose cfg has these changes; `...` drops a key."""
    path = peers.make("saelens", architecture, normalisation, folder)
    cfg = json.loads((path / "cfg.json").read_text()) | changes
    (path / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not ...}))
    return path


def retensored(path, **more):
    tensors = load_file(path / "sae_weights.safetensors") | more
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not ...}, path / "sae_weights.safetensors")


def old(folder, architecture="standard", **changes):
    """As versions 3 to 5 wrote it: no metadata, and names and activation function at the top."""
    top = {**NAMES, "sae_lens_training_version": "3.5.0", "hook_layer": 8, "metadata": ...}
    first = {"activation_fn_str": "relu", "finetuning_scaling_factor": False, "normalize_activations": "none"}
    return checkpoint(folder, architecture, **{**top, **first, **changes})


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_an_old_config_reads_as_a_new_one(tmp_path, architecture):
    new = load(peers.make("saelens", architecture, "none", tmp_path / "new"))
    read = load(old(tmp_path / "old", architecture))
    assert torch.equal(read(peers.inputs()), new(peers.inputs()))
    assert NAMES.items() <= read.config.metadata.items()


def test_an_old_topk_is_an_activation_function(tmp_path):
    path = old(tmp_path / "old", "standard", activation_fn_str="topk", activation_fn_kwargs={"k": 7})
    sae = load(path)
    assert (sae.config.rule, sae.config.k) == ("topk", 7)
    assert (sae.encode(peers.inputs()) > 0).sum(1).max() == 7


def test_an_old_config_without_an_architecture_is_standard(tmp_path):
    path = old(tmp_path / "old", hook_name=..., hook_point="blocks.2.hook_mlp_out", normalize_activations=False)
    cfg = json.loads((path / "cfg.json").read_text())
    del cfg["architecture"]
    (path / "cfg.json").write_text(json.dumps(cfg))
    sae = load(path)
    assert sae.config.architecture == "standard" and sae.config.metadata["hook_name"] == "blocks.2.hook_mlp_out"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation function 'tanh-relu' is not known here"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "k must be a positive whole number, not None"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": 3}, "activation_fn_kwargs must be a JSON object"),
        ({"hook_name": "blocks.3.attn.hook_z", "reshape_activations": ...}, "joins the heads of hook_z"),
        ({"normalize_activations": True}, "'expected_average_only_in' needs a scale"),
    ],
)
def test_an_old_config_that_cannot_be_read_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load(old(tmp_path / "old", **changes))


def test_a_new_config_goes_by_its_architecture_alone(tmp_path):
    """Version 6 drops keys of older ones, so they must not change what is read."""
    path = checkpoint(tmp_path, "standard", activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    assert load(path).config.rule == "threshold"


def test_a_factor_from_finetuning_multiplies_the_activations(tmp_path):
    path = old(tmp_path / "old", finetuning_scaling_factor=True)
    factor = torch.rand(peers.N) + 0.5
    plain = load(path)
    retensored(path, scaling_factor=factor)
    tuned, x = load(path), peers.inputs()
    acts = plain.encode(x)
    assert torch.equal(tuned.encode(x), acts)
    assert torch.allclose(tuned(x), (acts * factor) @ plain.W_dec + plain.b_dec, rtol=1e-5, atol=1e-5)
    retensored(path, scaling_factor=torch.ones(peers.N))
    assert torch.equal(load(path)(x), plain(x))


def test_a_factor_that_nothing_asks_for_is_refused(tmp_path):
    path = old(tmp_path / "old")
    retensored(path, scaling_factor=torch.full([peers.N], 2.0))
    with pytest.raises(UserError, match="scaling_factor, but finetuning_scaling_factor is false"):
        load(path)


def test_a_jumprelu_checkpoint_with_log_thresholds(tmp_path):
    path = peers.make("saelens", "jumprelu", "none", tmp_path)
    theirs = peers.run("saelens", path, peers.inputs())
    threshold = load_file(path / "sae_weights.safetensors")["threshold"]
    retensored(path, threshold=..., log_threshold=threshold.log())
    assert difference(outputs(load(path), peers.inputs()), theirs) < 1e-5


def test_a_batchtopk_sae_with_a_mean_k(tmp_path):
    path = checkpoint(tmp_path / "a", "batchtopk", k=31.6)
    assert load(path).config.k == 32
    retensored(path, topk_threshold=...)
    with pytest.raises(UserError, match="lacks the tensor 'topk_threshold'"):
        load(path)
    retensored(path, threshold=torch.full([peers.N], 0.4))
    assert torch.equal(load(path).threshold, torch.full([peers.N], 0.4))


def test_a_checkpoint_whose_scale_is_none_or_nonsense_is_refused(tmp_path):
    path = peers.make("saelens", "standard", "expected_average_only_in", tmp_path)
    for text in ("null", "0", "-1", "NaN", '"x"', "true", "1e999"):
        (path / "activation_scaler.json").write_text(f'{{"scaling_factor": {text}}}')
        with pytest.raises(UserError, match="needs a scale that is not in the folder"):
            load(path)
    (path / "activation_scaler.json").write_text("{")
    with pytest.raises(UserError, match=r"activation_scaler.json is not valid JSON"):
        load(path)


def test_a_scaler_beside_a_finished_sae_is_not_applied(tmp_path):
    path = peers.make("saelens", "standard", "none", tmp_path)
    before = load(path)(peers.inputs())
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.2}')
    assert torch.equal(load(path)(peers.inputs()), before)


def test_a_dead_row_of_a_rescaled_topk_sae_stays_silent(tmp_path):
    path = peers.make("saelens", "topk rescaled", "none", tmp_path)
    tensors = load_file(path / "sae_weights.safetensors")
    tensors["W_dec"][4] = 0.0
    retensored(path, W_dec=tensors["W_dec"])
    sae = load(path)
    assert not sae.encode(peers.inputs())[:, 4].any() and torch.isfinite(sae(peers.inputs())).all()
