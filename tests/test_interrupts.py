"""Ctrl-C in every stage of a run: answered at once, stopped, gone on with, and the same in the end as a run that nobody
disturbed.
"""

import importlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import threading

import pytest
import torch

import metasae
from metasae.errors import Interrupted
from metasae.train.trainer import Trainer

# stage -> what is called in it, and how often before the signal comes
AT_ONCE = {
    "reading text": ("metasae.data.text.windows", "cut", 40, "reading text and harvesting activations"),
    "harvesting": ("metasae.data.cache.passes", "_run_batch", 3, "reading text and harvesting activations"),
    "setting thresholds": ("metasae.arms.train", "calibrate", 1, "training 2 SAEs"),
    "measuring": ("metasae.measures.suite", "pair_statistics", 1, "measuring joint, seed 0"),
    "comparing": ("metasae.compare.across", "find_splits", 1, "comparing SAEs with each other"),
    "preparing the explorer": ("metasae.explore.store.firing_rows", "write_latents", 1, "preparing the explorer"),
    "writing the report": ("metasae.report.report", "as_latex", 0, "writing the report"),
}


@pytest.fixture(scope="module")
def recipe(build, stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "harvest": {"shard_tokens": 2000, "batch_tokens": 256},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 4000,
            "batch": 128,
            "n_primary_steps": 4,
            "n_meta_steps": 2,
            "dead_after": 1000,
            "checkpoint_every": 10,
        },
        "measure": {
            "tokens": 2000,
            "calibration_tokens": 2000,
            "output_tokens": 300,
            "meta_steps": 10,
            "critics": 1,
            "pursuit_k": 0,
        },
        "arms": ["solo", "joint"],
        "seeds": [0],
    }


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    metasae.run(recipe, out=out, show=False)
    return out


def share_harvest(whole, run):
    """Puts the activations of the undisturbed run beside another that has none to harvest."""
    shutil.copytree(whole.parent / "activations", run.parent / "activations")


def results(run):
    """All that a run is for, by path, to the byte or the row; not what it says of its own times."""
    kinds = (".safetensors", ".jsonl", ".json", ".html", ".md", ".tex", ".svg")
    files = [path for path in run.rglob("*") if path.suffix in kinds and path.name != "run.json"]
    contents = {str(path.relative_to(run)): path.read_bytes() for path in files if "activations" not in path.parts}
    with sqlite3.connect(run / "explore.sqlite") as store:
        for table in ("latents", "windows", "edges", "splits", "logits"):
            contents[table] = sorted(store.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
    return contents


def assert_same(run, whole):
    ours, theirs = results(run), results(whole)
    assert sorted(ours) == sorted(theirs)
    assert not [name for name in ours if ours[name] != theirs[name]]
    left = [
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.name.endswith(".part") or path.name == "checkpoints"
    ]
    assert not left


def interrupt_in(monkeypatch, place, name, after):
    """Has a function press Ctrl-C once it was called `after` times; returns its calls."""
    module = importlib.import_module(place)
    original, calls = getattr(module, name), []

    def press(*arguments, **options):
        calls.append(name)
        if len(calls) == after + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, press)
    return calls


@pytest.mark.parametrize("where", AT_ONCE)
def test_it_stops_at_once_and_goes_on_to_the_same_end(where, recipe, whole, tmp_path, monkeypatch, capsys):
    place, name, after, stage = AT_ONCE[where]
    run = tmp_path / "run"
    if stage != AT_ONCE["harvesting"][3]:
        share_harvest(whole, run)
    with monkeypatch.context() as patch:
        calls = interrupt_in(patch, place, name, after)
        with pytest.raises(Interrupted) as stopped:
            metasae.run(recipe, out=run, show=False)
    # nothing was begun after the signal
    assert len(calls) == after + 1
    assert capsys.readouterr().err == f"stopping ({stage}); Ctrl-C again to stop now\n"
    words, _, command = str(stopped.value).partition(" Continue with: ")
    assert words == f"stopped at once ({stage}); what is finished is kept."
    assert shlex.split(command) == ["metasae", "run", str(run / "recipe.toml"), "--out", str(run)]
    metasae.run(run / "recipe.toml", out=run, show=False)
    assert_same(run, whole)


@pytest.mark.parametrize("signals", [1, 2])
def test_training_saves_first_unless_it_is_told_twice(signals, recipe, whole, tmp_path, monkeypatch, capsys):
    run, original, steps = tmp_path / "run", Trainer.primary_step, []
    share_harvest(whole, run)

    def press(self, *arguments, **options):
        steps.append(self.arm)
        if len(steps) == 15:
            os.kill(os.getpid(), signal.SIGINT)
            # answered while the step still goes on
            assert (
                capsys.readouterr().err
                == "finishing the current step, then saving (training 2 SAEs); Ctrl-C again to stop now\n"
            )
            if signals == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "primary_step", press)
        with pytest.raises(Interrupted) as stopped:
            metasae.run(recipe, out=run, show=False)
    assert str(stopped.value).startswith(
        "stopped at step 15; saved." if signals == 1 else "stopped at once (training 2 SAEs);"
    )
    assert len(steps) == 15
    metasae.run(run / "recipe.toml", out=run, show=False)
    assert_same(run, whole)


def test_no_step_is_trained_again_after_a_signal_while_thresholds_are_set(recipe, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    share_harvest(whole, run)
    with monkeypatch.context() as patch:
        interrupt_in(patch, "metasae.arms.train", "calibrate", 0)
        with pytest.raises(Interrupted):
            metasae.run(recipe, out=run, show=False)
    original, arms = Trainer.primary_step, []
    monkeypatch.setattr(
        Trainer,
        "primary_step",
        lambda self, *given, **options: arms.append(self.arm) or original(self, *given, **options),
    )
    metasae.run(run / "recipe.toml", out=run, show=False)
    assert set(arms) == {"solo"}


@pytest.fixture
def two_threads(monkeypatch):
    """Torch counts two threads and works in one: for matrices as small as these its own would wait for each other."""
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))


@pytest.mark.parametrize("signals", [1, 2])
def test_arms_in_lanes_are_all_saved_and_end_as_if_undisturbed(
    signals, recipe, whole, tmp_path, monkeypatch, two_threads
):
    """Two lanes train at the same time; a signal, which only the main thread gets, stops both at their next step."""
    run, original, names = tmp_path / "run", Trainer.primary_step, set()
    share_harvest(whole, run)
    both = threading.Barrier(2, timeout=30)

    def press(self, *arguments, **options):
        if self.done.primary == 10:
            names.add(threading.current_thread().name)
            if both.wait() == 0:
                for _ in range(signals):
                    os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "primary_step", press)
        with pytest.raises(Interrupted, match="Continue with: metasae run"):
            metasae.run(recipe, out=run, show=False)
    assert len(names) == 2
    saved = sorted(path.parent.parent.name for path in run.glob("arms/*/checkpoints/latest.safetensors"))
    assert saved == ["joint-s0", "solo-s0"]
    metasae.run(recipe, out=run, show=False)
    assert torch.get_num_threads() == 2
    assert_same(run, whole)
