"""SAEs that are there already, measured into a folder of their own."""

import json

import pytest
from typer.testing import CliRunner

import metasae
from metasae import measuring
from metasae.cli import app
from metasae.errors import UserError
from metasae.sae.sae import SAE

SMALL = {
    "planted": {"d": 24, "independent": 24, "words": 6, "top_rate": 0.12, "noise": 0.03},
    "sae.n": 48, "sae.k": 3, "meta.n": 6, "train.tokens": 20_000, "train.batch": 500, "train.lr": 1e-2, "train.dead_after": 10_000,
    "measure.tokens": 4_000, "measure.calibration_tokens": 2_000, "measure.meta_steps": 10, "measure.shifts": 0, "measure.pursuit_k": 0,
    "arms": ["solo", "joint"], "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "planted"
    metasae.run("planted", out=out, overrides=SMALL, show=False)
    return out


def test_a_run_measured_again_gives_the_same_numbers(run, tmp_path):
    before = (run / "arms" / "joint-s1" / "measures.json").read_text()
    found = metasae.measure([run], tmp_path / "again", show=False)
    assert found["pairs"]["joint vs solo"]["fidelity.fvu"]["n_seeds"] == 2
    again = json.loads((tmp_path / "again" / "arms" / "joint-s1" / "measures.json").read_text())
    assert again == json.loads(before)
    assert (run / "arms" / "joint-s1" / "measures.json").read_text() == before
    # what is measured already is not measured again
    metasae.measure([run], tmp_path / "again", show=False)
    with pytest.raises(UserError, match="measures made otherwise; choose another --out"):
        metasae.measure([run], tmp_path / "again", overrides={"measure.tokens": 3000}, show=False)


def test_a_foreign_sae_needs_a_recipe_and_becomes_an_arm(run, tmp_path):
    sae = SAE.load(run / "arms" / "solo-s0" / "primary")
    sae.config.metadata = {}
    sae.save(tmp_path / "their sae")
    with pytest.raises(UserError, match="which model and text it belongs to; give --recipe"):
        metasae.measure([tmp_path / "their sae"], tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()
    found = metasae.measure([tmp_path / "their sae", run], tmp_path / "out", run / "recipe.toml", show=False)
    assert set(found["arms"]) == {"solo", "joint", "their_sae"} and found["baseline"] == "solo"
    pair = found["pairs"]["their_sae vs solo"]["cooccurrence.mean_abs_phi"]
    assert pair["difference"] == 0 and pair["n_seeds"] == 1


def test_names_tell_apart_what_is_called_alike(run, tmp_path):
    joint = run / "arms" / "joint-s0" / "primary"
    found = metasae.measure([f"mine={run}", f"other={joint}", f"other-s1={joint}"], tmp_path / "out", show=False)
    assert {arm: entry["seeds"] for arm, entry in found["arms"].items()} == {"mine_solo": [0, 1], "mine_joint": [0, 1], "other": [0, 1]}
    metasae.compare(tmp_path / "out", baseline="mine_joint")
    compared = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert compared["pairs"]["other vs mine_joint"]["fidelity.fvu"]["values"]
    # a folder whose own name has the sign is taken as it is
    (tmp_path / "a=b").symlink_to(joint)
    assert [target.folder for target in measuring.named_targets(f"{tmp_path}/a=b")] == [tmp_path / "a=b"]
    for wrong, words in ((f"a b={joint}", "'a b' is no name"), (f"x-s2={run}", "seeds of their own"), (f"x={tmp_path}/nowhere", "nowhere")):
        with pytest.raises(UserError, match=words):
            metasae.measure([wrong], tmp_path / "no", show=False)


def test_without_solo_the_first_arm_is_the_baseline(run, tmp_path):
    found = metasae.measure([run / "arms" / "joint-s0" / "primary"], tmp_path / "out", show=False)
    assert found["baseline"] == "joint" and found["pairs"] == {}
    with pytest.raises(UserError, match="no arm 'jiont' is measured; did you mean 'joint'"):
        metasae.compare(tmp_path / "out", baseline="jiont")


def test_user_errors(run, tmp_path):
    with pytest.raises(UserError, match="is no SAE of a known format"):
        metasae.measure([tmp_path], tmp_path / "out", show=False)
    with pytest.raises(UserError, match="are both joint-s0; give one a name: NAME=/"):
        metasae.measure([run, run / "arms" / "joint-s0" / "primary"], tmp_path / "out", show=False)
    with pytest.raises(UserError, match="reads vectors of width 24"):
        metasae.measure([run], tmp_path / "out", overrides={"planted.d": 32}, show=False)


def test_the_verb(run, tmp_path):
    result = CliRunner().invoke(app, ["measure", str(run), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pairs"]["joint vs solo"]
