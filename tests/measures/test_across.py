"""A planted run with three seeds: what is found across its SAEs, and what is kept when it is asked again."""

import json
import shutil

import pytest

import metasae
from drawing import undrawn
from metasae.arms.folder import RunFolder
from metasae.compare import across
from metasae.compare.across import measure_across
from metasae.compare.compare import compare

SMALL = {
    "planted": {"d": 24, "independent": 24, "words": 6, "top_rate": 0.12, "noise": 0.03},
    "sae.n": 48, "sae.k": 3, "meta.n": 6,
    "train.tokens": 20_000, "train.batch": 500, "train.lr": 1e-2, "train.dead_after": 10_000,
    "measure.tokens": 6_000, "measure.calibration_tokens": 3_000, "measure.meta_steps": 20, "measure.critics": 1,
    "measure.shifts": 1, "measure.pursuit_k": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    with undrawn():
        metasae.run("planted", out=out, overrides=SMALL, show=False)
    return out


def arms_of(folder, arms=("solo", "control", "joint"), seeds=(0, 1, 2)):
    return [RunFolder(folder).arm(arm, seed) for seed in seeds for arm in arms]


def test_seeds_stand_in_a_ring_and_splits_have_a_base_rate(folder):
    numbers = json.loads((folder / "across.json").read_text())
    assert {name: entry["seeds"]["with"] for name, entry in numbers.items() if name.startswith("joint")} == {
        "joint-s0": "joint-s1", "joint-s1": "joint-s2", "joint-s2": "joint-s0",
    }  # fmt: skip
    sides = ("with", "parents", "children")
    between = {
        (name, part): tuple(numbers[name][part][side] for side in sides)
        for name in ("joint-s1", "solo-s1", "solo-s2")
        for part in ("splits", "merges")
    }
    # solo's latents in another seed of joint, beside solo's in another seed of solo
    assert between == {
        ("joint-s1", "splits"): ("joint-s2", "solo-s1", "joint-s2"),
        ("joint-s1", "merges"): ("joint-s2", "joint-s2", "solo-s1"),
        ("solo-s1", "splits"): ("solo-s2", "solo-s1", "solo-s2"),
        ("solo-s1", "merges"): ("solo-s2", "solo-s2", "solo-s1"),
        ("solo-s2", "splits"): ("solo-s0", "solo-s2", "solo-s0"),
        ("solo-s2", "merges"): ("solo-s0", "solo-s0", "solo-s2"),
    }
    assert 0 < numbers["joint-s0"]["seeds"]["mean_r"] <= 1
    assert numbers["solo-s0"]["splits"]["n_parents"] == numbers["joint-s0"]["splits"]["n_parents"] > 0
    # control has solo's weights to the bit, so what was found for solo is its own too
    assert numbers["control-s1"] == numbers["solo-s1"] | {"same_weights_as": "solo-s1"}
    measures = json.loads((folder / "arms" / "control-s0" / "measures.json").read_text())
    assert measures["conditions"]["same_weights_as"] == "solo-s0" and "own_meta_e" in measures["decomposability"]


def test_what_is_found_reaches_the_comparison(folder):
    pair = json.loads((folder / "compare.json").read_text())["pairs"]["joint vs solo"]
    keys = (
        "seeds.mean_r", "seeds.ve_over_r", "seeds.chance_r", "splits.mean_score", "merges.mean_score",
        "truth.blend_rate", "truth.mcc",
        "cooccurrence.phi_at_equal_rates", "cooccurrence.dependence.value",
    )  # fmt: skip
    for key in keys:
        assert pair[key]["n_seeds"] == 3, key
    assert pair["cooccurrence.mean_abs_phi"]["n_blocks"] == pair["fidelity.fvu"]["n_blocks"] == 8


def test_two_seeds_give_one_number_and_one_seed_none(folder):
    two = measure_across(arms_of(folder, ("solo", "joint"), (0, 1)))
    assert set(two) == {"joint-s0", "solo-s0"}
    assert set(two["joint-s0"]) == set(two["solo-s0"]) == {"seeds", "splits", "merges"}
    assert two["joint-s0"]["splits"]["with"] == "joint-s1" and two["solo-s0"]["splits"]["with"] == "solo-s1"


def test_one_seed_has_a_list_to_look_at_and_no_measure(folder, tmp_path):
    one = measure_across(arms_of(folder, ("solo", "joint"), (0,)))
    assert set(one) == {"joint-s0"} and set(one["joint-s0"]) == {"same_seed_splits", "same_seed_merges"}
    splits = one["joint-s0"]["same_seed_splits"]
    assert (splits["with"], splits["parents"], splits["children"]) == ("solo-s0", "solo-s0", "joint-s0")
    assert splits["n_parents"] > 0 and all("lives_on" in split for split in splits["ranked"])
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("*-s1", "*-s2"))
    (tmp_path / "run" / "across.json").write_text(json.dumps(one))
    comparison = compare(tmp_path / "run")
    assert not [key for key in comparison["arms"]["joint"]["means"] if key.startswith(("splits", "merges"))]


def test_splits_of_an_earlier_score_are_not_compared(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    numbers = json.loads((folder / "across.json").read_text())
    for entry in numbers.values():
        for part in ("splits", "merges"):
            del entry[part]["n_kept"]
    (tmp_path / "run" / "across.json").write_text(json.dumps(numbers))
    pair = compare(tmp_path / "run")["pairs"]["joint vs solo"]
    assert "seeds.mean_r" in pair and not [key for key in pair if key.startswith(("splits", "merges"))]
    known = RunFolder(tmp_path / "run").across()
    assert measure_across(arms_of(folder), known) == json.loads((folder / "across.json").read_text())


def test_what_was_found_with_the_same_two_is_kept(folder, monkeypatch):
    numbers = measure_across(arms_of(folder))
    monkeypatch.setattr(
        across, "PARTS", dict.fromkeys(across.PARTS, lambda one, other: pytest.fail("worked out again"))
    )
    assert measure_across(arms_of(folder), numbers) == numbers
