"""SAEs that are there already, measured into a folder of their own."""

import json
import os
import signal

import pytest
from typer.testing import CliRunner

import metasae
from drawing import undrawn
from metasae.cli import app
from metasae.errors import Interrupted, UserError
from metasae.jobs import measure as measuring
from metasae.jobs import start
from metasae.jobs.conclude import conclude
from metasae.jobs.start import claim
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE

pytestmark = pytest.mark.usefixtures("no_drawing")

SMALL = {
    "planted": {"d": 24, "independent": 24, "words": 6, "top_rate": 0.12, "noise": 0.03},
    "sae.n": 48, "sae.k": 3, "meta.n": 6, "train.tokens": 20_000, "train.batch": 500, "train.lr": 1e-2,
    "train.dead_after": 10_000,
    "measure.tokens": 4_000, "measure.calibration_tokens": 2_000, "measure.meta_steps": 10, "measure.critics": 1,
    "measure.shifts": 0,
    "measure.pursuit_k": 0,
    "arms": ["solo", "joint"], "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "planted"
    with undrawn():
        metasae.run("planted", out=out, overrides=SMALL, show=False)
    return out


def test_a_run_measured_again_gives_the_same_numbers(run, tmp_path):
    before = (run / "arms" / "joint-s1" / "measures.json").read_text()
    result = metasae.measure([run], tmp_path / "again", show=False).comparison
    assert result["pairs"]["joint vs solo"]["fidelity.fvu"]["n_seeds"] == 2
    again = json.loads((tmp_path / "again" / "arms" / "joint-s1" / "measures.json").read_text())
    assert again == json.loads(before)
    assert (run / "arms" / "joint-s1" / "measures.json").read_text() == before
    # what is measured already is not measured again
    metasae.measure([run], tmp_path / "again", show=False)
    with pytest.raises(UserError, match="measures by another recipe; choose another --out"):
        metasae.measure([run], tmp_path / "again", overrides={"measure.tokens": 3000}, show=False)


def test_ctrl_c_keeps_what_is_measured(run, tmp_path, monkeypatch, capsys):
    original, measured = measuring.measure_sae, []

    def press(*arguments, **options):
        measured.append(options["seed"])
        if len(measured) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(measuring, "measure_sae", press)
    out, joint = tmp_path / "out", run / "arms" / "joint-s0" / "primary"
    with pytest.raises(
        Interrupted, match=r"stopped at once; what is measured is kept in .*out\. Continue with the same command"
    ):
        metasae.measure([f"one={joint}", f"other={joint}"], out, show=False)
    assert capsys.readouterr().err == "stopping (measuring); Ctrl-C again to stop now\n"
    assert [path.parent.name for path in out.rglob("measures.json")] == ["one-s0"]
    result = metasae.measure([f"one={joint}", f"other={joint}"], out, show=True).comparison
    assert set(result["arms"]) == {"one", "other"} and len(measured) == 3
    shown = capsys.readouterr()
    assert (
        "stage 3 of 5: measuring other, seed 0: done in " in shown.err
        and f"Report: {out / 'report.html'}\n" in shown.out
    )


def test_a_foreign_sae_needs_a_recipe_and_becomes_an_arm(run, tmp_path):
    sae = SAE.load(run / "arms" / "solo-s0" / "primary")
    sae.config.metadata = {}
    sae.save(tmp_path / "their sae")
    with pytest.raises(UserError, match="which model and text it belongs to; give --recipe"):
        metasae.measure([tmp_path / "their sae"], tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()
    result = metasae.measure(
        [tmp_path / "their sae", run], tmp_path / "out", run / "recipe.toml", show=False
    ).comparison
    assert set(result["arms"]) == {"solo", "joint", "their_sae"} and result["baseline"] == "solo"
    pair = result["pairs"]["their_sae vs solo"]["cooccurrence.mean_abs_phi"]
    assert pair["difference"] == 0 and pair["n_seeds"] == 1


def test_names_tell_apart_what_is_called_alike(run, tmp_path):
    joint = run / "arms" / "joint-s0" / "primary"
    result = metasae.measure(
        [f"mine={run}", f"other={joint}", f"other-s1={joint}"], tmp_path / "out", show=False
    ).comparison
    assert {arm: entry["seeds"] for arm, entry in result["arms"].items()} == {
        "mine_solo": [0, 1],
        "mine_joint": [0, 1],
        "other": [0, 1],
    }
    metasae.compare(tmp_path / "out", baseline="mine_joint")
    compared = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert compared["pairs"]["other vs mine_joint"]["fidelity.fvu"]["values"]
    # a folder whose own name has the sign is taken as it is
    (tmp_path / "a=b").symlink_to(joint)
    assert [target.folder for target in start.named_targets(f"{tmp_path}/a=b")] == [tmp_path / "a=b"]
    for wrong, words in (
        (f"a b={joint}", "'a b' cannot name an SAE"),
        (f"x-s2={run}", "seeds of their own"),
        (f"x={tmp_path}/nowhere", "nowhere"),
    ):
        with pytest.raises(UserError, match=words):
            metasae.measure([wrong], tmp_path / "no", show=False)


def test_without_solo_the_first_arm_is_the_baseline(run, tmp_path):
    result = metasae.measure([run / "arms" / "joint-s0" / "primary"], tmp_path / "out", show=False).comparison
    assert result["baseline"] == "joint" and result["pairs"] == {}
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


def test_an_sae_of_another_hook_point_or_trained_on_what_is_judged_is_refused(run, tmp_path):
    def as_if(name, **changed):
        sae = SAE.load(run / "arms" / "solo-s0" / "primary")
        recipe = Recipe.load({"model": {"path": "somewhere"}, "text": {"source": "some.jsonl"}, **changed})
        sae.config.metadata["metasae"] |= {"arm": name, "recipe": recipe.model_dump(mode="json")}
        sae.save(tmp_path / name)
        return tmp_path / name

    first, other = as_if("first"), as_if("other", hook={"point": "blocks.2.hook_resid_pre"})
    with pytest.raises(
        UserError, match=r"other was trained with hook.point = blocks.2.hook_resid_pre, the first SAE with"
    ):
        metasae.measure([first, other], tmp_path / "out", show=False)
    judged = as_if("seen", text={"source": "some.jsonl", "calibration_share": 0.05, "evaluation_share": 0.05})
    with pytest.raises(
        UserError,
        match=r"seen was trained on documents that would be used for measuring: it was trained on all but the first "
        r"0\.1 of the text",
    ):
        metasae.measure([first, judged], tmp_path / "out", show=False)
    with pytest.raises(UserError, match="trained on documents that would be used for measuring"):
        metasae.measure([first], tmp_path / "out", overrides={"text.evaluation_share": 0.4}, show=False)
    assert not (tmp_path / "out").exists()


def test_what_takes_two_saes_is_kept_for_those_that_a_later_call_does_not_name(run, tmp_path):
    metasae.measure([run], tmp_path / "out", show=False)
    before = json.loads((tmp_path / "out" / "across.json").read_text())
    metasae.measure([run / "arms" / "joint-s0" / "primary"], tmp_path / "out", show=False)
    assert json.loads((tmp_path / "out" / "across.json").read_text()) == before and len(before) == 2
    # and of a run
    before = json.loads((run / "across.json").read_text())
    metasae.run("planted", out=run, overrides={**SMALL, "arms": ["solo"], "seeds": [1]}, show=False)
    assert json.loads((run / "across.json").read_text()) == before
    (run / "across.json").unlink()
    metasae.run("planted", out=run, overrides={**SMALL, "seeds": [1]}, show=False)
    assert json.loads((run / "across.json").read_text()) == before


def test_the_baseline_asked_for_is_that_of_every_file(run, tmp_path):
    metasae.measure([run], tmp_path / "out", show=False)
    conclude(tmp_path / "out", show=False, baseline="joint")
    assert list(json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"]) == ["solo vs joint"]
    assert "solo vs joint" in (tmp_path / "out" / "compare.md").read_text()
    assert "joint vs solo" not in (tmp_path / "out" / "report.html").read_text()


def test_a_planted_world_cannot_change_under_an_arm_that_has_begun(tmp_path):
    recipe = Recipe.load("planted", SMALL)
    claim(recipe, tmp_path)
    claim(
        Recipe.load("planted", {**SMALL, "planted": {**SMALL["planted"], "noise": 0.2}}), tmp_path
    )  # nothing has begun
    claim(recipe, tmp_path)
    (tmp_path / "arms" / "solo-s0" / "checkpoints").mkdir(parents=True)
    for planted in (
        {**SMALL["planted"], "noise": 0.2},
        {key: value for key, value in SMALL["planted"].items() if key != "noise"},
    ):
        with pytest.raises(UserError, match=r"holds a run with planted\.noise"):
            claim(Recipe.load("planted", {**SMALL, "planted": planted}), tmp_path)
    claim(recipe, tmp_path)
