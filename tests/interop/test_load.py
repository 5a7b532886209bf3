"""`metasae.load`: the SAE of a run, an arm, a folder, another library's format or an address."""

import json

import huggingface_hub
import pytest
import torch

import metasae
from metasae.data.text import hub
from metasae.errors import UserError
from metasae.sae.sae import SAE
from tools import peers
from tools.matrix import random_sae


def train(run, arm, seed):
    """The folder of an arm whose SAE differs from every other one's."""
    folder = run / "arms" / f"{arm}-s{seed}"
    sae = random_sae("one threshold", "none", seed=10 * len(arm) + seed)
    sae.config.metadata["metasae"] = {"arm": arm, "seed": seed}
    sae.save(folder / "primary")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run of two arms; joint has two seeds and a meta SAE, and one more arm is not trained yet."""
    folder = tmp_path / "run"
    for arm, seed in (("solo", 0), ("joint", 0), ("joint", 1)):
        train(folder, arm, seed)
    random_sae("ReLU", "none", seed=99).save(folder / "arms" / "joint-s0" / "meta")
    (folder / "arms" / "control-s0").mkdir()
    return folder


def same(a, b):
    return all(map(torch.equal, (*a.parameters(), a.threshold), (*b.parameters(), b.threshold)))


def refused(words, path, **chosen):
    with pytest.raises(UserError, match=words) as caught:
        metasae.load(path, **chosen)
    assert "\n" not in str(caught.value)


def test_the_one_arm_of_a_run_needs_no_name(tmp_path):
    arm_folder = train(tmp_path / "run", "joint", 3)
    expected = SAE.load(arm_folder / "primary")
    for chosen in ({}, {"arm": "joint"}, {"seed": 3}, {"arm": "joint", "seed": 3}):
        assert same(metasae.load(tmp_path / "run", **chosen), expected)


@pytest.mark.parametrize(
    ("chosen", "folder"),
    [({"arm": "solo"}, "solo-s0"), ({"seed": 1}, "joint-s1"), ({"arm": "joint", "seed": 0}, "joint-s0")],
)
def test_arm_and_seed_choose_one_of_several(run, chosen, folder):
    sae = metasae.load(run, **chosen)
    assert same(sae, SAE.load(run / "arms" / folder / "primary"))
    # text as good as a path
    assert same(metasae.load(str(run), **chosen), sae)
    assert f"{sae.config.metadata['metasae']['arm']}-s{sae.config.metadata['metasae']['seed']}" == folder


def test_several_that_fit_are_named(run):
    refused("is a run folder; choose one by arm= and seed=: solo-s0, joint-s0, joint-s1$", run)
    refused("choose one by arm= and seed=: joint-s0, joint-s1$", run, arm="joint")
    refused("choose one by arm= and seed=: solo-s0, joint-s0$", run, seed=0)


def test_a_wrong_arm_and_a_wrong_seed_say_what_there_is(run):
    refused("none of its SAEs has arm='jont', seed=None: solo-s0, joint-s0, joint-s1$", run, arm="jont")
    refused("none of its SAEs has arm='solo', seed=1: solo-s0", run, arm="solo", seed=1)
    refused("none of its SAEs has arm=None, seed=7", run, seed=7)
    refused("none of its SAEs has arm='control'", run, arm="control")


def test_a_run_without_a_trained_arm_says_so(tmp_path):
    (tmp_path / "run" / "arms" / "solo-s0").mkdir(parents=True)
    for chosen in ({}, {"arm": "solo"}):
        refused("no arm of .* is trained yet; run `metasae run` on it first", tmp_path / "run", **chosen)


def test_arm_and_seed_belong_to_run_folders(run):
    for path in (run / "arms" / "joint-s0", run / "arms" / "joint-s0" / "primary", run / "absent", "hf:owner/name"):
        for chosen in ({"arm": "joint"}, {"seed": 0}):
            refused("arm and seed choose an SAE of a run folder, but '.*' is not a run folder", path, **chosen)


def test_an_arm_folder_stands_for_its_primary_and_an_sae_folder_for_itself(run):
    arm_folder = run / "arms" / "joint-s0"
    for path, folder in ((arm_folder, "primary"), (arm_folder / "primary", "primary"), (arm_folder / "meta", "meta")):
        assert same(metasae.load(path), SAE.load(arm_folder / folder))
        assert "imported" not in metasae.load(path).config.metadata
    refused("is no SAE of a known format", run / "arms" / "control-s0")


@pytest.mark.parametrize(
    ("format", "kind"),
    [("saelens", "gated"), ("dictionary_learning", "AutoEncoder"), ("sparsify", "topk"), ("paper", "jumprelu")],
)
def test_a_format_of_others_is_found_out(tmp_path, format, kind):
    path = peers.make(format, kind, "none", tmp_path / "theirs")
    sae = metasae.load(path)
    assert sae.config.metadata["imported"]["format"] == format
    assert same(metasae.load(path, format), sae)


def test_an_address_is_fetched_and_what_is_none_is_refused(run, monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda: "")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(run))
    sae = metasae.load("hf:owner/name/arms/joint-s1/primary@v1")
    assert same(sae, SAE.load(run / "arms" / "joint-s1" / "primary"))
    refused("'hf:nobody' is no address of an SAE on the hub; write hf:OWNER/NAME/folder", "hf:nobody")
    refused("hf:owner/name/arms/absent: no SAE there", "hf:owner/name/arms/absent")


def test_a_config_that_was_damaged_is_one_line(run):
    config = run / "arms" / "solo-s0" / "primary" / "cfg.json"
    config.write_text(json.dumps([1]))
    refused("must hold a JSON object", run, arm="solo")
