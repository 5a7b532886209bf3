import json

import pytest
import torch
from torch import nn

from metasae import UserError
from metasae.data.model.hooks import FAMILIES as KNOWN
from metasae.data.model.hooks import layers_of
from metasae.data.model.host import activations_at

ENCODERS = ["bert", "roberta", "xlm-roberta"]
SEQUENTIAL = [
    "gpt2",
    "neox-sequential",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi3",
    "smollm3",
    "gemma2",
    "gemma3",
    "gemma3-sees",
]
FAMILIES = [*SEQUENTIAL, "neox", *ENCODERS]
LIST = {
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "neox-sequential": "gpt_neox.layers",
    "gemma3-sees": "model.language_model.layers",
}
LIST |= dict.fromkeys(ENCODERS, "encoder.layer")
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def batch(length=11, rows=3):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids)


@pytest.fixture(scope="module")
def noisy(load):
    """noisy(family) -> Host whose parameters are all moved, so that no zero bias and no unit norm hides a mistake."""
    hosts = {}

    def make(family):
        if family not in hosts:
            hosts[family] = load(family, "blocks.0.hook_resid_pre")
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for parameter in hosts[family].model.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return hosts[family]

    return make


def sites(host, layer, kinds):
    """kind -> tensor at `blocks.layer.hook_kind`, all from one pass."""
    points = [host.at(f"blocks.{layer}.hook_{kind}") for kind in kinds]
    return dict(zip(kinds, activations_at(points, *batch()), strict=True))


def own_mlp(family, block, x):
    """What the block's MLP writes, by its own modules."""
    if family in ENCODERS:
        return block.output.dense(block.intermediate(block.attention.output.LayerNorm(x["resid_mid"])))
    if family == "gpt2":
        return block.mlp(block.ln_2(x["resid_mid"]))
    if family.startswith(("gemma2", "gemma3")):
        return block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(x["resid_mid"])))
    return block.mlp(block.post_attention_layernorm(x["resid_pre" if family == "neox" else "resid_mid"]))


def own_attention(family, block, x, whole):
    """What the block's attention writes, by hooks of our own on a whole pass."""
    module, end = {
        "gpt2": lambda: (block.attn, None),
        "neox": lambda: (block.attention, None),
        "neox-sequential": lambda: (block.attention, None),
        **dict.fromkeys(ENCODERS, lambda: (block.attention.self, block.attention.output.dense)),
    }.get(
        family,
        lambda: (block.self_attn, block.post_attention_layernorm if family.startswith(("gemma2", "gemma3")) else None),
    )()
    outputs = []
    handle = module.register_forward_hook(
        lambda _module, _args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    whole()
    handle.remove()
    return outputs[0] if end is None else end(outputs[0])


def test_every_family_with_inner_places_is_tested(build):
    assert {json.loads((build(family) / "config.json").read_text())["model_type"] for family in FAMILIES} == set(KNOWN)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_is_the_models_hidden_states(noisy, family):
    host = noisy(family)
    ids, mask = batch()
    states = host.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    path = LIST.get(family, "model.layers")
    end = "normalized_resid_post" if family in ENCODERS else "resid_post"
    points = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)] + [
        f"blocks.{layer}.hook_{end}" for layer in range(2)
    ]
    points += [f"{path}.{layer}:in" for layer in range(3)] + [f"{path}.{layer}" for layer in range(2)]
    together = activations_at([host.at(point) for point in points], ids, mask)
    for point, state, tensor in zip(
        points, [*states[:3], *states[1:3], *states[:3], *states[1:3]], together, strict=True
    ):
        assert torch.equal(tensor, state), point
    assert [name for name, _ in host.model.named_modules() if name == f"{path}.2"] and layers_of(host.model, 3)[
        0
    ] == path


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_each_site_is_the_tensor_of_its_name(noisy, family, layer):
    host = noisy(family)
    block = layers_of(host.model, 3)[1][layer]
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post", *(["resid_mid"] if family != "neox" else [])]
    x = sites(host, layer, [*kinds, *(["normalized_resid_post"] if family in ENCODERS else [])])
    for kind in kinds:
        assert torch.equal(host.at(f"blocks.{layer}.hook_{kind}").activations(*batch()), x[kind]), kind
    assert torch.allclose(own_mlp(family, block, x), x["mlp_out"], **CLOSE)
    assert torch.allclose(own_attention(family, block, x, lambda: host.output(*batch())), x["attn_out"], **CLOSE)
    if family == "neox":
        assert torch.allclose(x["resid_pre"] + x["attn_out"] + x["mlp_out"], x["resid_post"], **CLOSE)
        return
    assert torch.allclose(x["resid_pre"] + x["attn_out"], x["resid_mid"], **CLOSE)
    if family in ENCODERS:
        stream = block.attention.output.LayerNorm(x["resid_mid"])
        assert torch.allclose(stream + x["mlp_out"], x["resid_post"], **CLOSE)
        assert torch.allclose(block.output.LayerNorm(x["resid_post"]), x["normalized_resid_post"], **CLOSE)
    else:
        assert torch.allclose(x["resid_mid"] + x["mlp_out"], x["resid_post"], **CLOSE)


def test_blocks_side_by_side_have_no_middle(load):
    with pytest.raises(UserError, match=r"hook_resid_mid.*known:"):
        load("neox", "blocks.1.hook_resid_mid")


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


def test_blocks_that_see_or_hear_are_not_those_that_read():
    blocks = nn.ModuleList(nn.Identity() for _ in range(3))
    model = nn.ModuleDict(
        {"vision_tower": nn.ModuleDict({"layers": blocks}), "audio": nn.ModuleDict({"layers": blocks})}
    )
    with pytest.raises(UserError, match="no list of 3 layers"):
        layers_of(model, 3)
    model["decoder"] = nn.ModuleDict({"layers": nn.ModuleList(nn.Identity() for _ in range(3))})
    assert layers_of(model, 3)[0] == "decoder.layers"
