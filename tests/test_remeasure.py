"""A run whose recipe asks for other measures than before: weights stay, thresholds and measures follow, and a killed
run goes on.
"""

import json
import shutil

import pytest

import metasae
from metasae.arms.folder import RunFolder
from metasae.errors import UserError
from metasae.jobs import pending, start
from metasae.jobs import run as job
from metasae.recipe.recipe import Recipe

SMALL = {
    "planted": {"d": 24, "independent": 24, "words": 6, "top_rate": 0.12, "noise": 0.03},
    "sae.n": 48, "sae.k": 3, "meta.n": 6, "train.tokens": 10_000, "train.batch": 500, "train.lr": 1e-2,
    "train.dead_after": 10_000,
    "measure.tokens": 3_000, "measure.calibration_tokens": 2_000, "measure.meta_steps": 10, "measure.shifts": 0,
    "measure.pursuit_k": 0,
    "arms": ["solo", "control", "joint"], "seeds": 1,
}  # fmt: skip
OTHER = {"measure.tokens": 4_000, "measure.calibration_tokens": 1_000, "measure.threshold": "per_latent"}


def run(out, show=False, **changed):
    return metasae.run("planted", out=out, overrides={**SMALL, **changed}, show=show)


def json_at(*parts):
    path = parts[0].joinpath(*parts[1:])
    return json.loads(path.read_text())


def stamps(out, pattern):
    return {path: path.stat().st_mtime_ns for path in sorted(out.glob(pattern))}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run; tests work on copies of it."""
    out = tmp_path_factory.mktemp("first") / "run"
    run(out)
    return out


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run that asked for the other measures from the beginning."""
    out = tmp_path_factory.mktemp("fresh") / "run"
    run(out, **OTHER)
    return out


@pytest.fixture
def out(first, tmp_path):
    shutil.copytree(first, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch):
    """The arms that are measured from now on."""
    names, plain = [], job.measure_arm

    def counted(recipe, source, cache, arm, *arguments):
        names.append(arm.label)
        return plain(recipe, source, cache, arm, *arguments)

    monkeypatch.setattr(job, "measure_arm", counted)
    return names


def assert_as_from_the_beginning(out, fresh):
    for arm in ("solo-s0", "control-s0", "joint-s0"):
        for part in ("measures.json", "primary/cfg.json", "primary/sae_weights.safetensors"):
            assert (out / "arms" / arm / part).read_bytes() == (fresh / "arms" / arm / part).read_bytes(), (arm, part)
    assert (out / "arms" / "joint-s0" / "meta" / "cfg.json").read_bytes() == (
        fresh / "arms" / "joint-s0" / "meta" / "cfg.json"
    ).read_bytes()
    assert json_at(out, "across.json") == json_at(fresh, "across.json")
    ours, theirs = json_at(out, "compare.json"), json_at(fresh, "compare.json")
    assert {**ours, "run": None} == {**theirs, "run": None}
    assert Recipe.load(out / "recipe.toml") == Recipe.load(fresh / "recipe.toml")


def test_other_measures_are_made_again_as_if_from_the_beginning(out, fresh, measured, capsys):
    before = stamps(out, "arms/*/metrics.jsonl")
    store = (out / "explore.sqlite").stat().st_mtime_ns
    run(out, show=True, **OTHER)
    told = " ".join(capsys.readouterr().err.split())
    assert "measure.tokens, measure.calibration_tokens, measure.threshold changed: thresholds are set again" in told
    assert "control-s0, joint-s0, solo-s0 are measured again; all weights stay" in told
    assert stamps(out, "arms/*/metrics.jsonl") == before
    assert measured == ["solo-s0", "control-s0", "joint-s0"]
    assert (out / "explore.sqlite").stat().st_mtime_ns != store
    assert_as_from_the_beginning(out, fresh)


def test_what_needs_no_new_thresholds_leaves_them(out, measured):
    weights = stamps(out, "arms/*/primary/sae_weights.safetensors")
    run(out, **{"measure.meta_steps": 12})
    assert stamps(out, "arms/*/primary/sae_weights.safetensors") == weights
    assert len(measured) == 3
    config = json_at(out, "arms", "solo-s0", "primary", "cfg.json")
    assert config["metadata"]["metasae"]["recipe"]["measure"]["meta_steps"] == 12


def test_a_run_that_one_critic_judged_is_measured_again(out, measured):
    """Releases that had one critic did not have its key."""
    for path in out.glob("arms/*/measures.json"):
        measures = json.loads(path.read_text())
        del measures["settings"]["critics"]
        path.write_text(json.dumps(measures))
    run(out)
    assert len(measured) == 3
    assert json_at(out, "arms", "joint-s0", "measures.json")["conditions"]["critic_seeds"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("place", "legacy"), [("measure", False), ("measure", True), ("calibrate", True)])
def test_a_run_killed_in_between_goes_on_where_it_was(out, fresh, monkeypatch, place, legacy):
    """legacy: measures of a release that did not write down what they were made by."""
    if legacy:
        for path in out.glob("arms/*/measures.json"):
            measures = json.loads(path.read_text())
            del measures["settings"]
            path.write_text(json.dumps(measures))
    plain = {"measure": job.measure_arm, "calibrate": pending._rewrite}[place]

    def killed(*arguments, **options):
        if any(getattr(argument, "label", "") == "joint-s0" for argument in arguments):
            raise KeyError("killed")
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*((job, "measure_arm") if place == "measure" else (pending, "_rewrite")), killed)
        with pytest.raises(KeyError, match="killed"):
            run(out, **OTHER)
    spec = Recipe.load("planted", {**SMALL, **OTHER}).measure
    measured = {arm.name: pending.is_measured(arm, spec) for arm in RunFolder(out).arms()}
    assert measured == {"solo": True, "control": True, "joint": False}
    assert json_at(out, "arms", "joint-s0", "measures.json")["conditions"]["n_tokens"] == 3_000
    assert not (out / "across.json").exists()
    finished = stamps(out, "arms/solo-s0/measures.json")
    run(out, **OTHER)
    assert stamps(out, "arms/solo-s0/measures.json") == finished
    assert_as_from_the_beginning(out, fresh)


def test_arms_that_the_call_does_not_name_are_measured_again_too(out, measured):
    run(out, **{"arms": ["joint"], "measure.tokens": 4_000})
    assert sorted(measured) == ["control-s0", "joint-s0", "solo-s0"]
    assert json_at(out, "compare.json")["conditions"]["n_tokens"] == 4_000
    run(out, **{"measure.tokens": 4_000})
    assert len(measured) == 3


def test_what_is_done_with_several_saes_measures_no_single_one_again(out, measured):
    run(out, **{"measure.explorer": False})
    assert measured == []


def test_firings_that_are_no_longer_wanted_go(out):
    run(out, **{"measure.keep_firings": False, "measure.across": False, "measure.explorer": False})
    assert not list(out.glob("arms/*/firings")) and not (out / "across.json").exists()


def test_before_anything_is_measured_nothing_is_disturbed(tmp_path):
    recipe = Recipe.load("planted", SMALL)
    start.claim(recipe, tmp_path)
    (tmp_path / "arms" / "solo-s0" / "checkpoints").mkdir(parents=True)
    start.claim(Recipe.load("planted", {**SMALL, **OTHER}), tmp_path)
    assert Recipe.load(tmp_path / "recipe.toml").measure.tokens == 4_000
    with pytest.raises(UserError, match=r"holds a run with train\.lr"):
        start.claim(Recipe.load("planted", {**SMALL, "train.lr": 0.5}), tmp_path)
