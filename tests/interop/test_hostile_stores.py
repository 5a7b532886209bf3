"""Hostile input beside the SAE formats: headers of safetensors that lie, firing stores with any numbers, notes that
name code to run.
"""

import json
import struct

import numpy as np
import pytest
import torch
from arm_folders import Tokenizer, random_firings, write_arm

from metasae.errors import UserError
from metasae.interop import load
from metasae.interop.formats import export_activations
from metasae.jobs.start import find_targets, recipe_of
from metasae.sae.sae import SAE
from metasae.steering.writing import run_steer
from tools import peers

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HEADERS = {
    "a header of exabytes": struct.pack("<Q", 1 << 62) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "two tensors in the same bytes": safetensors({"W_enc": F32, "W_dec": F32}),
    "a hole": safetensors({"W_enc": F32 | {"data_offsets": [8, 16]}}, bytes(16)),
    "bytes beyond the file": safetensors({"W_enc": F32 | {"shape": [1 << 20], "data_offsets": [0, 1 << 22]}}),
    "bytes behind the tensors": safetensors({"W_enc": F32}, bytes(8) + b"PK\x03\x04"),
    "a shape that overflows": safetensors({"W_enc": F32 | {"shape": [1 << 40, 1 << 40]}}),
    "a negative shape": safetensors({"W_enc": F32 | {"shape": [-2]}}),
    "offsets in the wrong order": safetensors({"W_enc": F32 | {"data_offsets": [8, 0]}}),
    "an unknown dtype": safetensors({"W_enc": F32 | {"dtype": "OBJ"}}),
    "a header without end": safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a header that is no JSON": safetensors(b"\x80\x04\x95"),
    "a name twice": safetensors(f'{{"W_enc":{json.dumps(F32)},"W_enc":{json.dumps(F32)}}}'.encode()),
}


@pytest.mark.parametrize("format", ["saelens", "sparsify", "metasae"])
@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_lies(tmp_path, name, format):
    if format == "metasae":
        folder = write_arm(tmp_path / "arm", random_firings()) / "primary"
    else:
        folder = peers.make(format, {"saelens": "jumprelu", "sparsify": "topk"}[format], "none", tmp_path / "in")
    (next(folder.glob("*.safetensors"))).write_bytes(HEADERS[name])
    with pytest.raises(UserError, match=r"is damaged|lacks the tensor|has shape") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["delphi", "neuronpedia", "paper_cache"])
@pytest.mark.parametrize(
    ("file", "numbers", "words"),
    [
        ("indices.bin", [10**6, -1], "a number is not from 0 to 12"),
        ("by_latent/tokens.bin", [10**6, -5], "a number is not from 0 to 366"),
        ("by_latent/values.bin", [np.nan, np.inf, -1.0, 0.0], "an activation is no positive number"),
    ],
)
def test_a_store_with_numbers_that_are_no_places(tmp_path, format, file, numbers, words):
    from metasae.measures.firing.by_latent import write_by_latent

    for number in numbers:
        folder = write_arm(tmp_path / str(number), random_firings())
        if "by_latent" in file:
            write_by_latent(folder / "firings")
        array = np.memmap(folder / "firings" / file, "<f4" if "values" in file else "<i4", "r+")
        array[7] = number
        array.flush()
        with pytest.raises(
            UserError, match=f"the firings of .* are damaged: {words}; delete .* and measure it again"
        ) as caught:
            export_activations(folder, format, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_store_of_another_number_of_latents(tmp_path):
    folder = write_arm(tmp_path / "arm", random_firings())
    path = folder / "firings" / "index.json"
    for number, words in (
        (10**15, "they are of 1000000000000000 latents, the SAE has 13"),
        ("13", "does not say how many latents"),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"n_latents": number}))
        with pytest.raises(UserError, match=words):
            export_activations(folder, "delphi", tmp_path / "out")


def test_an_explanation_file_of_gigabytes_or_of_no_end(tmp_path, monkeypatch):
    folder = write_arm(tmp_path / "arm", random_firings())
    for text, words in (("[" * 200_000, "is not valid JSON"), ('{"latents": 3}', "latents must be a JSON object")):
        (folder / "interp.json").write_text(text)
        with pytest.raises(UserError, match=words):
            export_activations(folder, "neuronpedia", tmp_path / "out", tokenizer=Tokenizer())
    monkeypatch.setattr("metasae.interop.checked.JSON_BYTES", 5_000)
    (folder / "interp.json").write_text("{" + " " * 6_000 + "}")
    with pytest.raises(UserError, match="too many for a config"):
        export_activations(folder, "neuronpedia", tmp_path / "out", tokenizer=Tokenizer())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[" * 200_000, '{"d_in": ' + "9" * 10_000 + "}"])
def test_our_own_loader_takes_a_config_without_end_as_one_line_too(tmp_path, text):
    folder = write_arm(tmp_path / "arm", random_firings()) / "primary"
    (folder / "cfg.json").write_text(text)
    with pytest.raises(UserError, match="is not valid JSON"):
        SAE.load(folder)


# As newer and older releases of transformers meet a model with code of its own.
REFUSED = r"^(cannot load the model '.*model': |the model '.*model' brings Python code of its own)"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPT2Config
class Evil(GPT2Config):
    pass
"""


@pytest.fixture
def evil_sae(tmp_path):
    """(an SAE folder whose notes name a model that brings its own code and say that it may run, the file this code
    makes).
    """
    model, mark = tmp_path / "model", tmp_path / "harmed"
    model.mkdir()
    (model / "evil.py").write_text(CODE.format(mark=str(mark)))
    (model / "config.json").write_text(
        json.dumps({"model_type": "evil", "architectures": ["Evil"], "auto_map": {"AutoConfig": "evil.Evil"}})
    )
    recipe = {"model": {"path": str(model), "trust_remote_code": True}, "hook": {"point": "blocks.0.hook_resid_pre"}}
    folder = write_arm(tmp_path / "arm", random_firings(), metasae={"arm": "joint", "seed": 0, "recipe": recipe})
    return folder, mark


def test_an_export_runs_no_code_that_an_sae_names(tmp_path, evil_sae):
    folder, mark = evil_sae
    with pytest.raises(UserError, match=REFUSED) as caught:
        export_activations(folder, "neuronpedia", tmp_path / "out")
    assert "\n" not in str(caught.value) and not mark.exists() and not (tmp_path / "out").exists()


def test_steering_runs_no_code_that_an_sae_names(evil_sae):
    folder, mark = evil_sae
    with pytest.raises(UserError):
        run_steer(folder / "primary", ["1=5"], ["a"])
    assert not mark.exists()


def test_measuring_trusts_no_code_that_an_sae_names(evil_sae):
    assert not recipe_of(find_targets(evil_sae[0] / "primary")[0])["model"]["trust_remote_code"]


def test_a_threshold_of_nan_is_refused_and_of_infinity_never_fires(tmp_path):
    folder = write_arm(tmp_path / "arm", random_firings()) / "primary"
    sae = SAE.load(folder)
    for value, fires in ((float("nan"), None), (float("inf"), False)):
        sae.threshold[3] = value
        sae.save(folder)
        if fires is None:
            with pytest.raises(UserError, match="threshold holds NaN"):
                load(folder)
        else:
            assert not load(folder).encode(torch.randn(50, 8))[:, 3].any()
