"""Addresses on the hub, against a stand-in that copies from a local folder what the real client would download."""

import fnmatch
import shutil

import huggingface_hub
import pytest
import torch

from metasae.data.text import hub as reach
from metasae.errors import UserError
from metasae.interop import load
from tools import peers

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository folder to fill; `calls` holds what was asked for, `fetched` what was copied."""
    remote, cache = tmp_path / "remote", tmp_path / "cache" / "snapshots" / COMMIT
    remote.mkdir()

    class Hub:
        repo, calls = remote, []

        @property
        def fetched(self):
            return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())

    def download(repo, *, revision=None, allow_patterns, local_files_only):
        Hub.calls.append((repo, revision, local_files_only))
        if revision == "gone":
            raise OSError("404 Client Error.\n\nRevision Not Found")
        for file in remote.rglob("*"):
            name = str(file.relative_to(remote))
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / name)
        cache.mkdir(parents=True, exist_ok=True)
        return str(cache)

    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(reach, "unreachable", lambda: "")
    return Hub()


def test_one_folder_of_a_large_repository_is_fetched(hub):
    for layer in (3, 33):
        peers.make("saelens", "jumprelu", "none", hub.repo / f"blocks.{layer}.hook_resid_pre")
    (hub.repo / "blocks.3.hook_resid_pre" / "sparsity.safetensors").write_bytes(b"x")
    sae = load("hf:someone/saes/blocks.3.hook_resid_pre@v1.0")
    assert torch.equal(sae(peers.inputs()), load(hub.repo / "blocks.3.hook_resid_pre")(peers.inputs()))
    assert hub.calls == [("someone/saes", "v1.0", False)]
    assert hub.fetched == ["blocks.3.hook_resid_pre/cfg.json", "blocks.3.hook_resid_pre/sae_weights.safetensors"]
    assert sae.config.metadata["imported"]["from"] == f"hf:someone/saes/blocks.3.hook_resid_pre@{COMMIT}"


@pytest.mark.parametrize("name", ["", "/params.npz"])
def test_gemma_scope_by_its_folder_or_its_file(hub, name):
    place = "layer_20/width_16k/average_l0_71"
    for folder in (place, "layer_21/width_16k/average_l0_70"):
        peers.make("gemma_scope", "jumprelu", "none", hub.repo / folder)
    sae = load(f"hf:google/gemma-scope-2b-pt-res/{place}{name}")
    assert torch.equal(sae(peers.inputs()), load(hub.repo / place)(peers.inputs()))
    assert hub.fetched == [f"{place}/params.npz"] and sae.config.metadata["imported"]["format"] == "gemma_scope"


def test_every_format_is_found(hub):
    peers.make("sparsify", "topk", "none", hub.repo / "layers.4")
    (hub.repo / "config.json").write_text('{"model": "pythia"}')
    peers.make("dictionary_learning", "BatchTopKSAE", "none", hub.repo / "runs" / "trainer_0")
    peers.make("paper", "batchtopk + npy", "none", hub.repo / "runs" / "joint")
    peers.make("saelens", "standard", "none", hub.repo)
    assert load("hf:someone/saes/layers.4").config.metadata["model_name"] == "pythia"
    assert load("hf:someone/saes/runs/trainer_0/").config.architecture == "batchtopk"
    assert load("hf:someone/saes/runs/joint/joint_primary_sae.pt").config.rule == "threshold"
    assert load("hf:someone/saes").config.architecture == "standard"
    assert load("hf:someone/saes/runs/trainer_0/ae.pt").config.architecture == "batchtopk"


def test_brackets_and_stars_in_a_folder_are_taken_as_they_are(hub):
    peers.make("sparsify", "topk", "none", hub.repo / "a[1]*")
    peers.make("sparsify", "topk", "none", hub.repo / "a1x")
    load("hf:someone/saes/a[1]*")
    assert all(name.startswith("a[1]*/") for name in hub.fetched)


NONE = (
    "hf:",
    "hf:saes",
    "hf:/saes",
    "hf:a/b/../c",
    "hf:a/b/./c",
    "hf:../b",
    "hf:a/..",
    "hf:a/b//c",
    "hf:a/b/c@",
    "hf:a b/c",
    "hf:a/b@x@y",
)


@pytest.mark.parametrize("address", NONE)
def test_what_is_no_address_asks_for_nothing(hub, address):
    with pytest.raises(UserError, match="is no address of an SAE on the hub"):
        load(address)
    assert not hub.calls


def test_what_cannot_be_had_is_one_line(hub):
    with pytest.raises(UserError, match=r"hf:a/b/c@gone cannot be loaded: 404 Client Error$"):
        load("hf:a/b/c@gone")
    with pytest.raises(UserError, match="hf:a/b/absent: no SAE there; check the revision and the folder"):
        load("hf:a/b/absent")


def test_without_the_hub_its_cache_is_used_or_the_reason_given(hub, monkeypatch):
    monkeypatch.setattr(reach, "unreachable", lambda: "HF_HUB_OFFLINE is set")
    peers.make("sparsify", "topk", "none", hub.repo / "layers.4")
    load("hf:someone/saes/layers.4")
    assert hub.calls == [("someone/saes", None, True)]
    with pytest.raises(UserError, match="hf:a/b/c@gone cannot be loaded: HF_HUB_OFFLINE is set"):
        load("hf:a/b/c@gone")


def test_the_real_client_offline_is_one_line(monkeypatch):
    monkeypatch.setattr(reach, "unreachable", lambda: "HF_HUB_OFFLINE is set")
    with pytest.raises(UserError, match="hf:nobody/nothing/x cannot be loaded: HF_HUB_OFFLINE is set"):
        load("hf:nobody/nothing/x")
