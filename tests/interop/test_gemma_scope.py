"""Gemma Scope's params.npz: its rule, what its path says, and files that are not what they should be."""

import io
import zipfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from metasae.cli import app
from metasae.data.model.host import Host
from metasae.errors import UserError
from metasae.interop import detect, export, load
from metasae.recipe import recipe
from tools import peers
from tools.matrix import difference, outputs

PLACE = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def scope(folder, place=PLACE, **changes):
    """A folder laid out as in a repository of Gemma Scope, with these arrays; `...` drops one."""
    path = peers.make("gemma_scope", "jumprelu", "none", folder / place)
    arrays = {**np.load(path / "params.npz"), **changes}
    np.savez(path / "params.npz", **{name: array for name, array in arrays.items() if array is not ...})
    return path


def test_its_rule_token_by_token(tmp_path):
    path = scope(tmp_path)
    w, x = np.load(path / "params.npz"), peers.inputs(n_tokens=20)
    acts, out = outputs(load(path), x)
    for token, row in enumerate(x.numpy().astype(np.float64)):
        pre = row @ w["W_enc"] + w["b_enc"]
        z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
        assert np.allclose(acts[token], z, atol=1e-5) and np.allclose(
            out[token], z @ w["W_dec"] + w["b_dec"], atol=1e-4
        )
    assert 0 < (acts > 0).float().mean() < 1
    # the same by the file itself, and with another library's layout
    assert detect(path) == detect(path / "params.npz") == "gemma_scope"
    assert torch.equal(load(path / "params.npz")(x), load(path)(x))
    assert difference(outputs(load(export(path, "saelens", tmp_path / "out")), x), (acts, out)) < 1e-5


@pytest.mark.parametrize(
    ("place", "model", "hook"),
    [
        (PLACE, "google/gemma-2-2b", "blocks.20.hook_resid_post"),
        ("gemma-scope-9b-it-res/layer_9/width_131k/average_l0_22", "google/gemma-2-9b-it", "blocks.9.hook_resid_post"),
        ("gemma-scope-27b-pt-mlp/layer_3/width_16k/average_l0_5", "google/gemma-2-27b", "blocks.3.hook_mlp_out"),
        (
            "models--google--gemma-scope-2b-pt-att/snapshots/ab12/layer_0/width_16k/average_l0_104",
            "google/gemma-2-2b",
            "model.layers.0.self_attn.o_proj:in",
        ),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "google/gemma-2-2b", None),
        ("gemma-scope-2b-pt-other/layer_1", "google/gemma-2-2b", None),
        ("layer_4/width_16k/average_l0_5", None, None),
        ("gemma", None, None),
    ],
)
def test_model_and_hook_stand_in_the_path(tmp_path, place, model, hook):
    metadata = load(scope(tmp_path, place)).config.metadata
    assert metadata.get("model_name") == model and metadata.get("hook_name") == hook
    assert metadata.get("prepend_bos") == (True if model else None)
    assert metadata["imported"]["format"] == "gemma_scope"


def test_heads_before_they_are_joined_are_a_hook_point_here(build):
    """What an SAE of attention reads: TransformerLens's hook_z with its heads side by side."""
    host = Host.load(recipe.Model(path=str(build("gemma2")), dtype="fp32"), "model.layers.1.self_attn.o_proj:in")
    config = host.model.config
    assert host.d == config.num_attention_heads * config.head_dim


def test_half_precision_is_read_exactly(tmp_path):
    path = scope(tmp_path)
    arrays = {name: array.astype(np.float16) for name, array in np.load(path / "params.npz").items()}
    np.savez(path / "params.npz", **arrays)
    sae = load(path)
    assert torch.equal(sae.W_enc, torch.from_numpy(arrays["W_enc"]).float()) and sae.W_enc.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": ...}, "lacks the tensor 'threshold'"),
        ({"W_enc": ...}, "lacks a matrix 'W_enc'"),
        ({"W_enc": np.zeros(16, np.float32)}, "lacks a matrix 'W_enc'"),
        ({"W_enc": np.zeros((0, 48), np.float32)}, "lacks a matrix 'W_enc'"),
        ({"W_dec": np.zeros((16, 48), np.float32)}, r"W_dec has shape \(16, 48\), not \(48, 16\)"),
        ({"b_dec": np.zeros(48, np.float32)}, "b_dec has shape"),
        ({"more": np.zeros(3, np.float32)}, "holds the tensor 'more'"),
        ({"b_enc": np.zeros(48, np.int64)}, "'b_enc' is no plain array of floating-point numbers .dtype int64"),
        ({"b_enc": np.full(48, np.nan, np.float32)}, "b_enc holds NaN"),
        ({"W_dec": np.full((48, 16), 1e300)}, "W_dec holds NaN or inf"),
        ({"threshold": np.zeros(48, np.float32)}, "none of its thresholds was ever set"),
        ({"b_enc": np.array([{"a": 1}], object)}, "'b_enc' is no plain array .*pickled objects"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        load(scope(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_transcoders_and_compressed_or_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="a transcoder rebuilds another activation"):
        load(scope(tmp_path, "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_9"))
    path = scope(tmp_path / "b")
    content = (path / "params.npz").read_bytes()
    np.savez_compressed(path / "params.npz", **np.load(io.BytesIO(content)))
    with pytest.raises(UserError, match="is compressed, which"):
        load(path)
    (path / "params.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"not a file of np\.savez"):
        load(path)


def test_a_shape_beyond_the_record_asks_for_no_memory(tmp_path):
    path = scope(tmp_path)
    with zipfile.ZipFile(path / "params.npz", "w") as archive:
        record = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            record, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
        )
        archive.writestr("W_enc.npy", record.getvalue() + bytes(64))
    with pytest.raises(UserError, match=r"'W_enc' is no plain array .*but fewer numbers"):
        load(path)


def test_it_is_read_and_not_written(tmp_path):
    path = scope(tmp_path)
    with pytest.raises(UserError, match="gemma_scope can be read but not written; choose one of metasae, saelens"):
        export(path, "gemma_scope", tmp_path / "out")
    asked = CliRunner().invoke(app, ["export", str(path), "--to", "gemma_scope", "--out", str(tmp_path / "out")])
    assert asked.exit_code and not (tmp_path / "out").exists()
    asked = CliRunner().invoke(app, ["import", str(path), "--out", str(tmp_path / "ours")])
    assert asked.exit_code == 0
