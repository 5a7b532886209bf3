"""What is known of a model without its weights."""

import pytest
import transformers

from metasae.data.model.host import Host
from metasae.doctor.presence import presence_of
from metasae.recipe.recipe import Recipe

BEFORE_5_24 = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24)


def at(point="blocks.0.hook_resid_pre", **model):
    return Recipe.load({"model": model, "hook": {"point": point}})


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "bert"])
@pytest.mark.parametrize("point", ["blocks.1.hook_resid_pre", "inner"])
def test_width_and_size_are_those_of_the_loaded_model(build, family, point):
    inner = {
        "gpt2": "transformer.h.1.mlp.c_fc",
        "llama": "model.layers.1.mlp.up_proj",
        "neox": "gpt_neox.layers.1.mlp.dense_h_to_4h",
    }
    inner |= {"gemma2": "model.layers.1.mlp.up_proj", "bert": "encoder.layer.1.intermediate.dense"}
    point = inner[family] + ":out" if point == "inner" else point
    recipe = at(point, path=str(build(family)), dtype="bf16")
    host, presence = Host.load(recipe.model, point), presence_of(recipe)
    if presence.problem and BEFORE_5_24 and point.endswith(":out"):
        # their models do not run without storage: rotary embeddings ask for autocast there, BERT's mask looks at its
        # numbers
        assert "is known only when the model runs" in presence.problem
        return
    assert presence.problem is None and presence.place == str(build(family))
    assert presence.d == host.d
    assert presence.bytes == sum(parameter.numel() * 2 for parameter in host.model.parameters())
    assert presence.vocabulary == (400 if host.causal else 0)


def test_a_wrong_hook_point_is_a_problem_of_a_model_that_is_here(build):
    presence = presence_of(at("blocks.7.hook_resid_pre", path=str(build("gpt2"))))
    assert presence.place and "did you mean 'blocks.2.hook_resid_pre'" in presence.problem and presence.d is None


def test_a_missing_folder_and_a_missing_package():
    assert "does not exist" in presence_of(at("blocks.0.hook_resid_pre", path="nowhere")).problem
    assert "pip install" in presence_of(at("blocks.0.hook_resid_pre", path="package:absent_package/model")).problem


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub cache of our own, out of reach of any hub; hub(**files) puts files of the model `some/model` into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))

    def put(**files):
        snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
        snapshot.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models--some--model" / "refs").mkdir(exist_ok=True)
        (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
        for name, text in files.items():
            (snapshot / name).write_text(text)

    return put


def test_a_hub_model_that_cannot_be_had_is_one_line(hub):
    presence = presence_of(at("blocks.0.hook_resid_pre", name="some/model"))
    assert presence.place is None and "HF_HUB_OFFLINE is set" in presence.problem and "\n" not in presence.problem


def test_a_hub_model_is_here_when_all_its_weight_files_are(hub):
    from metasae.doctor.presence import _in_hub_cache

    model = at(name="some/model").model
    assert not _in_hub_cache(model)
    hub(
        **{
            "model.safetensors.index.json": '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}',
            "one.safetensors": "",
        }
    )
    assert not _in_hub_cache(model)
    hub(**{"two.safetensors": ""})
    assert _in_hub_cache(model)


def test_looking_keeps_no_weights_in_memory(build, monkeypatch):
    """The skeleton is built without storage, so that a model larger than memory can be looked at."""
    built = []
    original = transformers.AutoModelForCausalLM.from_config

    def watched(config, **options):
        built.append(original(config, **options))
        return built[-1]

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", watched)
    presence_of(at("blocks.1.hook_resid_pre", path=str(build("gpt2"))))
    assert all(parameter.is_meta for parameter in built[0].parameters())
