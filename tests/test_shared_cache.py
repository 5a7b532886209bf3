"""Runs, measurings and sweeps that share activation caches: each finds its tokens, whatever the others did."""

import json
import shutil

import pytest

import metasae
from metasae.data.cache import activations
from metasae.errors import Interrupted
from metasae.jobs.run import _Job
from metasae.sweep import sweep

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def recipe(build, stories, tmp_path):
    """recipe(**{table: values}) -> a small recipe of one arm on a tiny model."""
    text = tmp_path / "stories.jsonl"
    text.write_text("\n".join(json.dumps({"text": story}) for story in stories))

    def make(**changes):
        values = {
            "model": {"path": str(build("gpt2")), "dtype": "fp32"},
            "hook": {"point": "blocks.1.hook_resid_pre"},
            "text": {"source": str(text), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.3},
            "harvest": {"shard_tokens": 1000},
            "sae": {"n": 48, "k": 4},
            "meta": {"n": 8, "k": 2},
            "train": {"tokens": 3000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2, "dead_after": 1000},
            "measure": {
                "tokens": 2000,
                "calibration_tokens": 1500,
                "output_tokens": 0,
                "meta_steps": 5,
                "critics": 1,
                "explorer": False,
                "shifts": 0,
                "pursuit_k": 0,
            },
            "arms": ["solo"],
            "seeds": [0],
        }
        for table, own in changes.items():
            values[table] = {**values[table], **own} if isinstance(own, dict) else own
        return values

    return make


@pytest.fixture
def harvests(monkeypatch):
    """The splits of every harvest."""
    splits, real = [], activations.Feed

    def noted(tokenizer, frame, text, wanted, cursor):
        splits.append(dict(wanted))
        return real(tokenizer, frame, text, wanted, cursor)

    monkeypatch.setattr(activations, "Feed", noted)
    return splits


def stopped_after_training(values, out, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Job, "_measure", stop)
        with pytest.raises(Interrupted):
            metasae.run(values, out=out, show=False)


def tokens_judged_on(folder):
    return json.loads((folder / "arms/solo-s0/measures.json").read_text())["conditions"]["n_tokens"]


def test_measuring_on_more_tokens_leaves_the_run_what_it_trains_on(recipe, tmp_path, harvests):
    metasae.run(recipe(), out=tmp_path / "a", show=False)
    metasae.measure([tmp_path / "a"], tmp_path / "m", overrides={"measure.tokens": 3000}, show=False)
    assert tokens_judged_on(tmp_path / "m") == 3000
    metasae.run(recipe(seeds=[0, 1]), out=tmp_path / "a", show=False)
    judged = {"calibration": 1500, "evaluation": 3000}
    assert harvests == [{"train": 3000, "calibration": 1500, "evaluation": 2000}, judged]


def test_a_run_that_was_stopped_is_judged_on_its_own_tokens(recipe, tmp_path, monkeypatch, harvests):
    stopped_after_training(recipe(), tmp_path / "a", monkeypatch)
    metasae.run(recipe(train={"tokens": 4000}, measure={"tokens": 600}), out=tmp_path / "b", show=False)
    metasae.run(recipe(), out=tmp_path / "a", show=False)
    assert tokens_judged_on(tmp_path / "a") == 2000 and tokens_judged_on(tmp_path / "b") == 600
    assert harvests[1:] == [{"train": 4000, "calibration": 1500, "evaluation": 600}]


def test_a_run_whose_cache_was_deleted_and_made_smaller_harvests_what_it_lacks(recipe, tmp_path, monkeypatch, harvests):
    stopped_after_training(recipe(), tmp_path / "a", monkeypatch)
    shutil.rmtree(tmp_path / "activations")
    metasae.run(recipe(train={"tokens": 1500}, measure={"tokens": 600}), out=tmp_path / "b", show=False)
    metasae.run(recipe(), out=tmp_path / "a", show=False)
    assert tokens_judged_on(tmp_path / "a") == 2000
    # its arms are trained, so it needs what it is calibrated and measured on alone
    assert harvests[2:] == [{"calibration": 1500, "evaluation": 2000}]


def test_a_sweep_whose_cache_was_deleted_and_made_smaller_goes_on(recipe, tmp_path, harvests):
    values = recipe(arms=["joint"])
    sweep(values, grid=["train.lambda2=0.1,1.0"], out=tmp_path / "s", show=False)
    for cache in tmp_path.rglob("activations"):
        shutil.rmtree(cache)
        metasae.run(recipe(train={"tokens": 500}, measure={"tokens": 600}), out=cache.parent / "b", show=False)
    sweep(values, grid=["train.lambda2=0.1,1.0,3.0"], out=tmp_path / "s", show=False)
    cells = json.loads((tmp_path / "s/sweep.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["done"] * 3
    assert harvests[2:] == [{"train": 3000, "calibration": 1500, "evaluation": 2000}]


def test_a_point_that_is_added_to_a_finished_run_is_harvested(recipe, tmp_path, harvests):
    metasae.run(recipe(), out=tmp_path / "a", show=False)
    more = recipe(hook={"also": ["blocks.2.hook_resid_pre"]})
    for _ in range(2):
        metasae.run(more, out=tmp_path / "a", show=False)
    assert len(harvests) == 2 and len(list((tmp_path / "activations").iterdir())) == 2


def test_what_needs_firings_that_are_not_kept_is_said(recipe, tmp_path, capsys):
    metasae.run(recipe(measure={"keep_firings": False, "side_effects": 2}), out=tmp_path / "a")
    assert "seeds, splits and merges and side effects are not measured" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a/across.json").exists()


def test_windows_and_a_whole_training_split_share_what_is_judged_on(recipe, tmp_path, harvests):
    metasae.run(recipe(harvest={"window_tokens": 1000}), out=tmp_path / "a", show=False)
    metasae.run(recipe(), out=tmp_path / "b", show=False)
    metasae.run(recipe(harvest={"window_tokens": 1000}, seeds=[0, 1]), out=tmp_path / "a", show=False)
    judged = {"calibration": 1500, "evaluation": 2000}
    assert harvests == [judged, {"train": 3000} | judged]
    assert tokens_judged_on(tmp_path / "a") == tokens_judged_on(tmp_path / "b") == 2000
