"""A run pushed with the hub's real client to a stand-in of the hub, read back from there; and what is never sent."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hub_server import HubServer

from metasae.compare.compare import compare
from metasae.errors import UserError
from metasae.interop import load
from metasae.interop.push import push
from metasae.sae.sae import SAE, SAEConfig
from runs import write_arm

RECIPE = """description = "tiny"
arms = ["solo", "joint"]
seeds = [0, 1]
[model]
name = "maker/small"
[text]
source = "/home/me/stories.txt"
"""


def make_sae(folder, seed, n=12, d=6):
    metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "model_name": "maker/small",
        "dataset_path": "stories",
        "context_size": 16,
    }
    sae = SAE(SAEConfig(d, n, k=3, metadata=metadata | {"metasae": {"arm": folder.parent.name, "seed": seed}}))
    sae.init_weights(torch.Generator().manual_seed(seed))
    sae.threshold = torch.full([n], 0.25)
    sae.save(folder)


@pytest.fixture
def run(tmp_path):
    """A finished run of two arms and two seeds: measured, compared, trained weights, and what a push leaves behind."""
    folder = tmp_path / "tiny"
    for seed in (0, 1):
        for arm, fvu in (("solo", 0.30 + 0.01 * seed), ("joint", 0.33 + 0.01 * seed)):
            write_arm(folder, arm, seed, fidelity__fvu=fvu)
            make_sae(folder / "arms" / f"{arm}-s{seed}" / "primary", seed)
        make_sae(folder / "arms" / f"joint-s{seed}" / "meta", seed, n=4)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "run.json").write_text("{}")
    compare(folder)
    (folder / "figures").mkdir()
    (folder / "figures" / "phi.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (folder / "arms" / "joint-s0" / "firings").mkdir()
    (folder / "arms" / "joint-s0" / "firings" / "values.bin").write_bytes(bytes(40))
    return folder


class Recorder:
    """Stands in for HfApi: notes the calls and copies the files of a commit to a folder."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def create_repo(self, repo, **options):
        self.calls.append(("create_repo", repo, options))

    def create_branch(self, repo, **options):
        self.calls.append(("create_branch", repo, options))

    def create_commit(self, repo, operations, **options):
        self.calls.append(("create_commit", repo, options))
        for operation in operations:
            place = self.folder / operation.path_in_repo
            place.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                place.write_bytes(file.read())
        return SimpleNamespace(oid="c" * 40, commit_url="https://huggingface.co/owner/name/commit/" + "c" * 40)


ARMS, FILES = ("joint-s0", "joint-s1", "solo-s0", "solo-s1"), ("cfg.json", "sae_weights.safetensors")
SENT = [
    "README.md",
    *[f"arms/{arm}/primary/{name}" for arm in ARMS for name in FILES],
    *[f"arms/{arm}/meta/{name}" for arm in ARMS[:2] for name in FILES],
    *[f"arms/{arm}/measures.json" for arm in ARMS],
    *["compare.json", "compare.md", "figures/phi.png", "recipe.toml"],
]  # fmt: skip


def test_a_run_goes_up_in_one_commit_and_comes_back_as_it_was(tmp_path, run):
    api = Recorder(tmp_path / "remote")
    result = push(run, "owner/name", license="apache-2.0", private=True, api=api)
    assert [call[0] for call in api.calls] == ["create_repo", "create_commit"]
    assert api.calls[0][2] == {"private": True, "exist_ok": True} and api.calls[1][2] == {
        "commit_message": f"metasae: {len(SENT) - 1} files",
        "revision": "main",
    }
    assert result["files"] == sorted(SENT) and result["commit"] == "c" * 40 and not result["dry_run"]
    sent = sorted(
        str(path.relative_to(tmp_path / "remote")) for path in (tmp_path / "remote").rglob("*") if path.is_file()
    )
    assert sent == sorted(SENT)
    for name in set(SENT) - {"README.md"}:
        assert (tmp_path / "remote" / name).read_bytes() == (run / name).read_bytes()
    x = torch.randn(5, 6)
    for part in ("primary", "meta"):
        assert torch.equal(load(tmp_path / "remote/arms/joint-s1" / part)(x), SAE.load(run / "arms/joint-s1" / part)(x))
    assert "arms/joint-s0/firings/values.bin" in result["left_out"] and "run.json" in result["left_out"]
    assert result["local_paths"] == ["/home/me/stories.txt"], "it becomes public with the recipe, so it is said"


READ = """
import sys, torch
from metasae.interop import load
for revision in sys.argv[2:]:
    sae = load("hf:owner/name/arms/joint-s1/primary@" + revision)
    told = sae(torch.linspace(-2, 2, 18).view(3, 6)), sae.config.metadata["metasae"]["arm"]
    torch.save(told, f"{sys.argv[1]}/{revision}.pt")
"""


def test_the_real_client_writes_and_reads_a_stand_in_of_the_hub(tmp_path, run, monkeypatch):
    import huggingface_hub
    from huggingface_hub import HfApi

    monkeypatch.setenv("MY_TOKEN", "hf_secret")
    with HubServer() as server:
        if huggingface_hub.__version__.startswith("0."):
            # it reads a commit's address by its own endpoint, whatever that of the HfApi is
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        api = HfApi(endpoint=server.url, token=os.environ["MY_TOKEN"])
        result = push(run, "owner/name", license="mit", revision="v1", token_from_env="MY_TOKEN", api=api)
        assert sorted(server.revisions["v1"]) == sorted(SENT) and server.revisions["main"] == {}
        assert result["commit"] == server.commits["v1"] and server.tokens == {"Bearer hf_secret"}
        assert "hf_secret" not in json.dumps(result)
        hub = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        revisions = ("v1", result["commit"])
        command = [sys.executable, "-c", READ, str(tmp_path), *revisions]
        subprocess.run(command, env=os.environ | hub, check=True, timeout=100)
        for revision in revisions:
            outputs, arm = torch.load(tmp_path / f"{revision}.pt", weights_only=True)
            assert arm == "joint-s1" and torch.equal(
                outputs, SAE.load(run / "arms/joint-s1/primary")(torch.linspace(-2, 2, 18).view(3, 6))
            )
        fetched = {path for method, path in server.requests if "/resolve/" in path}
        assert all("joint-s1/primary" in path or path.endswith("joint-s1/config.json") for path in fetched), (
            "that folder only"
        )


def test_what_the_hub_refuses_is_one_line_without_the_token(run, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setenv("MY_TOKEN", "hf_secret")
    with HubServer() as server:
        server.refuse = "hf_secret has no right to write here"
        with pytest.raises(
            UserError, match=r"owner/name cannot be written: .*; check the name, the token in MY_TOKEN"
        ) as caught:
            push(
                run,
                "owner/name",
                license="mit",
                token_from_env="MY_TOKEN",
                api=HfApi(endpoint=server.url, token="hf_secret"),
            )
    assert "\n" not in str(caught.value) and "hf_secret" not in str(caught.value)


def test_a_dry_run_says_all_and_sends_nothing(tmp_path, run):
    api = Recorder(tmp_path / "remote")
    result = push(run, "owner/name", license="mit", dry_run=True, api=api)
    assert (
        api.calls == []
        and result["files"] == sorted(SENT)
        and result["commit"] is None
        and result["card"].startswith("---\nlicense: ")
    )
    assert result["bytes"] == sum((run / name).stat().st_size for name in SENT if name != "README.md") + len(
        result["card"].encode()
    )


@pytest.mark.parametrize("part", ["primary", "meta"])
def test_one_sae_lies_at_the_top_of_its_repository(tmp_path, run, part):
    api = Recorder(tmp_path / "remote")
    push(run / "arms/joint-s0" / part, "owner/name", license="other", revision="branch", api=api)
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == [
        "README.md",
        "cfg.json",
        "sae_weights.safetensors",
    ]
    assert api.calls[1] == ("create_branch", "owner/name", {"branch": "branch", "exist_ok": True})
    x = torch.randn(5, 6)
    assert torch.equal(load(tmp_path / "remote")(x), SAE.load(run / "arms/joint-s0" / part)(x))


def refused(run, words, repo="owner/name", **options):
    api = Recorder(run / "never")
    with pytest.raises(UserError, match=words) as caught:
        push(run, repo, **{"license": "mit", "api": api, **options})
    assert "\n" not in str(caught.value) and api.calls == []


@pytest.mark.parametrize("license", ["", "MIT License", "mit\nx: y", "../x"])
def test_a_licence_must_be_given(run, license):
    refused(run, "the licence of the weights must be given, as license=mit", license=license)


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../b", "a/..", "a b/c", "", "https://huggingface.co/a/b", "a/b\n"])
def test_what_is_no_repository(run, repo):
    refused(run, "is no repository; write OWNER/NAME", repo=repo)


def test_what_is_no_branch(run):
    for revision in ("../x", "a b", "-f", "a\nb"):
        refused(run, "cannot be a branch", revision=revision)


def test_unfinished_runs_stay_here(run):
    arm = run / "arms" / "joint-s1"
    for gone, words in [
        ("arms/joint-s1/measures.json", "joint-s1 is not measured; `metasae run"),
        ("arms/joint-s1/primary/cfg.json", "joint-s1 is not trained"),
        ("compare.json", "it has no compare.json"),
        ("recipe.toml", "it has no recipe.toml"),
    ]:
        (run / gone).rename(run / "held")
        refused(run, words)
        (run / "held").rename(run / gone)
    shutil.copytree(arm, run / "held")
    shutil.rmtree(arm)
    refused(run, "joint-s1 is not trained")
    (run / "held").rename(arm)
    comparison = json.loads((run / "compare.json").read_text())
    (run / "compare.json").write_text(json.dumps(comparison | {"missing": ["joint-s1"]}))
    refused(run, "compared before 'joint-s1' was measured; run `metasae compare")
    (run / "compare.json").write_text(json.dumps({"missing": []}))
    refused(run, "of another version of metasae; run `metasae compare")


def test_saes_measured_elsewhere_need_no_recipe_of_their_own(tmp_path, run):
    (run / "run.json").unlink()
    shutil.rmtree(run / "arms" / "solo-s1")
    compare(run)
    assert push(run, "owner/name", license="mit", dry_run=True)["files"]


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("name", ["extra.pt", "notes.pkl", "pytorch_model.bin", "thresholds.npy", "last.ckpt"])
def test_pickles_beside_the_weights_are_refused(run, name):
    (run / "arms/joint-s0/primary" / name).write_bytes(pickle.dumps(Harm()))
    refused(run, f"{name} is refused: a push takes safetensors and JSON only")


def test_files_that_are_not_what_their_name_says_are_refused(run):
    bad = pickle.dumps(Harm())
    for name, words in [
        ("arms/joint-s0/primary/sae_weights.safetensors", "is damaged, or no safetensors file|is damaged"),
        ("arms/joint-s1/meta/cfg.json", "is not valid JSON"),
        ("arms/solo-s0/measures.json", "is not valid JSON"),
        ("compare.md", "it is no text"),
        ("figures/phi.png", "it is no PNG image"),
    ]:
        content = (run / name).read_bytes()
        (run / name).write_bytes(bad)
        refused(run, words)
        (run / name).write_bytes(content)
    (run / "recipe.toml").write_text("= 3")
    refused(run, "recipe.toml is not valid TOML")


def test_weights_that_are_not_finite_are_not_published(run):
    sae = SAE.load(run / "arms/solo-s1/primary")
    sae.W_dec[3, 2] = float("nan")
    sae.save(run / "arms/solo-s1/primary")
    refused(run, "W_dec holds NaN or inf")


def test_links_out_of_the_folder_are_refused_and_those_within_are_followed(tmp_path, run):
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": 1}')
    for name in ("arms/joint-s0/measures.json", "compare.md", "figures/phi.png", "arms/joint-s0/interp.json"):
        path = run / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
        refused(run, "it is a link out of|is not a file|it is no")
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    outside = tmp_path / "outside"
    (run / "arms/joint-s0/primary").rename(outside)
    (run / "arms/joint-s0/primary").symlink_to(outside)
    refused(run, "it is a link out of")
    (run / "arms/joint-s0/primary").unlink()
    outside.rename(run / "held")
    (run / "arms/joint-s0/primary").symlink_to(run / "held")
    assert push(run, "owner/name", license="mit", dry_run=True)["files"] == sorted(SENT)


def test_what_is_neither_run_nor_sae(tmp_path):
    refused(tmp_path, "is neither a run folder nor an SAE folder")
    refused(tmp_path / "absent", "is neither a run folder nor an SAE folder")


def test_the_address_on_the_card_is_one_for_load():
    with pytest.raises(UserError, match="is no address of an SAE on the hub"):
        load("hf:nobody")
