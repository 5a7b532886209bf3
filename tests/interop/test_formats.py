"""Which format a path holds, what goes along on export, and that a failure leaves nothing behind."""

import json

import pytest
import torch
from safetensors.torch import load_file

from metasae.errors import UserError
from metasae.files import write_tensors
from metasae.interop import detect, export, load
from metasae.interop.detection import WRITTEN
from metasae.sae.sae import SAE, SAEConfig
from tools import peers
from tools.matrix import outputs, random_sae

PROVENANCE = {
    "hook_name": "blocks.4.hook_resid_pre",
    "model_name": "tiny",
    "dataset_path": "docs",
    "context_size": 64,
    "prepend_bos": True,
    "metasae": {
        "version": "0.1.0",
        "arm": "joint",
        "seed": 3,
        "data_fingerprint": "ab12",
        "recipe": {"seeds": [0, 3], "train": {"lambda2": 0.3}},
    },
    "calibration": {"threshold": 0.5, "l0": 5.0},
}
MEASURES = {
    "conditions": {"n_tokens": 200_000, "rule": "rate", "data": "ab12"},
    "fidelity": {"fvu": 0.16, "l0": 32.05, "dead": 0.0},
    "cooccurrence": {"mean_abs_phi": 0.012, "mean_pos_phi": 0.02},
}
MEASURED = {"fvu": 0.16, "l0": 32.05, "mean_abs_phi": 0.012, "n_tokens": 200_000, "rule": "rate", "data": "ab12"}


def sae_of(format):
    sae = random_sae("topk, no b_enc" if format == "sparsify" else "threshold per latent, no b_enc", "none")
    sae.config.metadata = json.loads(json.dumps(PROVENANCE))
    return sae


@pytest.fixture
def arm(tmp_path):
    """A trained arm's folder: primary/, meta/ and measures.json."""
    folder = tmp_path / "joint-s3"
    sae_of("saelens").save(folder / "primary")
    random_sae("one threshold", "token").save(folder / "meta")
    (folder / "measures.json").write_text(json.dumps(MEASURES))
    return folder


@pytest.mark.parametrize("format", WRITTEN)
def test_provenance_and_measurements_go_along_and_come_back(arm, tmp_path, format):
    if format == "sparsify":
        sae_of("sparsify").save(arm / "primary")
    out = export(arm / "primary", format, tmp_path / "out" / format)
    back = load(out)
    assert detect(out) == ("metasae" if format in ("metasae", "saelens") else format)
    metadata = back.config.metadata
    assert PROVENANCE.items() <= metadata.items() and metadata["measured"] == MEASURED
    assert back.config.k == peers.K
    x = peers.inputs()
    assert all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(outputs(back, x), outputs(SAE.load(arm / "primary"), x), strict=True)
    )
    # once more from there, measurements included
    again = load(export(back, format, tmp_path / "again"))
    assert again.config.metadata["measured"] == MEASURED and again.config.metadata.get("imported") == metadata.get(
        "imported"
    )


def test_the_sae_that_is_exported_stays_as_it_was(arm, tmp_path):
    sae = sae_of("paper")
    before = json.dumps(sae.config.metadata)
    for format in ("saelens", "dictionary_learning", "paper"):
        export(sae, format, tmp_path / format)
    assert json.dumps(sae.config.metadata) == before and "measured" not in sae.config.metadata


def test_measurements_of_the_primary_are_not_said_of_the_meta_sae(arm, tmp_path):
    assert "measured" not in load(export(arm / "meta", "saelens", tmp_path / "out")).config.metadata


def test_where_an_import_came_from_is_noted(tmp_path):
    path = peers.make("dictionary_learning", "GatedAutoEncoder", "none", tmp_path / "trainer_0")
    sae = load(path)
    assert sae.config.metadata["imported"] == {
        "format": "dictionary_learning",
        "architecture": "gated",
        "from": "trainer_0",
    }
    assert {
        "model_name": "tiny",
        "hook_name": "blocks.1.hook_resid_post",
        "context_size": 64,
    }.items() <= sae.config.metadata.items()
    sparsify = peers.make("sparsify", "topk", "none", tmp_path / "checkpoint" / "layers.8.mlp")
    (tmp_path / "checkpoint" / "config.json").write_text(
        json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 2048, "dataset": "pile"})
    )
    assert {"model_name": "EleutherAI/pythia-70m", "hook_name": "blocks.8.hook_mlp_out"}.items() <= load(
        sparsify
    ).config.metadata.items()


def test_a_checkpoint_of_a_training_run_finds_the_config_above_it(tmp_path):
    path = peers.make("dictionary_learning", "BatchTopKSAE", "none", tmp_path / "trainer_0")
    (path / "checkpoints").mkdir()
    (path / "ae.pt").rename(path / "checkpoints" / "ae_500.pt")
    assert detect(path / "checkpoints" / "ae_500.pt") == "dictionary_learning"
    assert load(path / "checkpoints" / "ae_500.pt").config.architecture == "batchtopk"


def test_a_config_of_something_else_beside_a_paper_checkpoint_does_not_matter(tmp_path):
    path = peers.make("paper", "topk", "none", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert detect(path) == detect(tmp_path) == "paper" and load(path).config.rule == "topk"


@pytest.mark.parametrize(
    ("format", "kind", "rule", "architecture"),
    [
        ("saelens", "batchtopk", "threshold", "batchtopk"),
        ("saelens", "gated", "threshold", "gated"),
        ("saelens", "topk", "topk", "topk"),
        ("dictionary_learning", "MatryoshkaBatchTopKSAE", "threshold", "matryoshka"),
        ("dictionary_learning", "AutoEncoderTopK", "topk", "topk"),
        ("sparsify", "topk", "topk", "topk"),
        ("paper", "batchtopk", "topk", "batchtopk"),
        ("paper", "batchtopk + npy", "threshold", "batchtopk"),
    ],
)
def test_the_rule_the_architecture_and_k_are_kept(tmp_path, format, kind, rule, architecture):
    config = load(peers.make(format, kind, "none", tmp_path)).config
    assert (config.rule, config.architecture) == (rule, architecture)
    assert config.k == (1 if kind == "gated" else peers.K)


def test_a_wrong_path_or_format_is_one_clear_line(arm, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert load(arm).config == load(arm / "primary").config
    for path, words in [
        (tmp_path / "absent", "no SAE at '.*absent'"),
        (tmp_path / "empty", "is no SAE of a known format; no sae_weights.safetensors"),
        (tmp_path / "notes.txt", "known files: sae_weights.safetensors"),
        (arm / "primary" / "cfg.json", "name its folder"),
    ]:
        with pytest.raises(UserError, match=words):
            load(path)
    (arm / "primary" / "cfg.json").rename(arm / "cfg.json")
    with pytest.raises(UserError, match=r"no file .*primary/cfg.json"):
        load(arm / "primary")
    (arm / "cfg.json").rename(arm / "primary" / "cfg.json")
    with pytest.raises(UserError, match="unknown format 'saelen'; did you mean 'saelens'"):
        load(arm / "primary", "saelen")
    with pytest.raises(UserError, match="unknown format 'onnx'"):
        export(arm / "primary", "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="thresholds belong to the paper's checkpoints"):
        load(arm / "primary", thresholds=tmp_path / "t.npy")
    with pytest.raises(UserError, match="no SAE at"):
        load(tmp_path / "absent", "sparsify")


def test_a_format_that_is_named_is_taken(arm, tmp_path):
    sae = sae_of("saelens")
    assert torch.equal(load(arm / "primary", "saelens")(peers.inputs()), sae(peers.inputs()))
    with pytest.raises(UserError, match=r"no file .*config.json"):
        load(arm / "primary", "dictionary_learning")


def test_an_uncalibrated_sae_is_not_exported(tmp_path):
    for format in WRITTEN:
        with pytest.raises(UserError, match="no threshold yet"):
            export(SAE(SAEConfig(4, 8)), format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_touch_what_is_there(arm, tmp_path):
    with pytest.raises(UserError, match="not an empty folder; choose another one"):
        export(sae_of("saelens"), "saelens", arm)
    with pytest.raises(UserError, match="not an empty folder"):
        export(sae_of("saelens"), "saelens", arm / "measures.json")
    (tmp_path / "empty").mkdir()
    assert export(sae_of("saelens"), "saelens", tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize("format", WRITTEN)
def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, format):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for target in ("safetensors.torch.save_file", "torch.save"):
        monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match="No space left on device"):
        export(sae_of(format), format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_saelens_folders_are_standard_jumprelu_or_topk_by_what_they_need(tmp_path):
    for rule, architecture, tensors in [
        ("ReLU", "standard", {"W_enc", "b_enc", "W_dec", "b_dec"}),
        ("one threshold", "jumprelu", {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}),
        ("topk", "topk", {"W_enc", "b_enc", "W_dec", "b_dec"}),
    ]:
        out = export(random_sae(rule, "token"), "saelens", tmp_path / architecture)
        assert json.loads((out / "cfg.json").read_text())["architecture"] == architecture
        assert set(load_file(out / "sae_weights.safetensors")) == tensors


def test_negative_thresholds_are_those_of_a_relu(tmp_path):
    sae = random_sae("ReLU", "none")
    ours = sae(peers.inputs())
    sae.threshold = -torch.rand(peers.N)
    for format in ("saelens", "dictionary_learning"):
        out = export(sae, format, tmp_path / format)
        assert torch.allclose(load(out)(peers.inputs()), ours) and torch.allclose(
            peers.run(format, out, peers.inputs())[1].float(), ours, atol=1e-5
        )


def test_a_foreign_folder_with_a_k_of_its_own_meaning_loads(tmp_path):
    path = peers.make("saelens", "jumprelu", "none", tmp_path)
    cfg = json.loads((path / "cfg.json").read_text())
    cfg["metadata"] |= {"k": "about 60", "undone_with_eps": True}
    (path / "cfg.json").write_text(json.dumps(cfg))
    sae = load(path)
    assert sae.config.k == 1 and sae.config.metadata["k"] == "about 60" and sae.config.normalize == "none"


def test_float64_weights_are_rounded_to_fp32(tmp_path):
    path = peers.make("saelens", "jumprelu", "none", tmp_path, torch.float64)
    x = peers.inputs()
    assert torch.allclose(load(path)(x).double(), peers.run("saelens", path, x)[1], rtol=1e-5, atol=1e-5)
    tensors = load_file(path / "sae_weights.safetensors")
    write_tensors(path / "sae_weights.safetensors", {**tensors, "b_enc": tensors["b_enc"].fill_(1e300)})
    with pytest.raises(UserError, match="b_enc holds NaN or inf"):
        load(path)
