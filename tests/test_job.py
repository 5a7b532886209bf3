"""The main job from text to report on a tiny model; resuming, refusing, and bad input."""

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

import metasae
from metasae.arms import source
from metasae.arms.train import input_scale
from metasae.cli import main
from metasae.errors import Interrupted, UserError
from metasae.explore.store.build import build as build_store
from metasae.jobs import run as job
from metasae.ranks.ranks import ALONE, Ranks
from metasae.train import loop
from spawned import Program

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def text_file(stories, tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return path


@pytest.fixture
def recipe(build, text_file):
    """recipe(family, explorer) -> values. explorer: whether the run builds the explorer's store, which takes a sixth of
    a run as small as this.
    """

    def make(family="gpt2", explorer=False):
        return {
            "model": {"path": str(build(family)), "dtype": "fp32"},
            "hook": {"point": "blocks.1.hook_resid_pre"},
            "text": {"source": str(text_file), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
            "harvest": {"shard_tokens": 2000},
            "sae": {"n": 64, "k": 4},
            "meta": {"n": 8, "k": 2},
            "train": {
                "tokens": 6000,
                "batch": 128,
                "n_primary_steps": 4,
                "n_meta_steps": 2,
                "dead_after": 1000,
                "checkpoint_every": 10,
            },
            "measure": {
                "tokens": 2000,
                "calibration_tokens": 2000,
                "output_tokens": 400,
                "meta_steps": 20,
                "critics": 1,
                "explorer": explorer,
            },
            "arms": ["solo", "control", "joint"],
            "seeds": 2,
        }

    return make


def weights(folder, arm, which="primary"):
    return load_file(folder / "arms" / arm / which / "sae_weights.safetensors")


def assert_same_run(one, other):
    """Weights, metrics and measures of every arm are the same to the last bit."""
    arms = sorted(path.name for path in (one / "arms").iterdir())
    assert arms == sorted(path.name for path in (other / "arms").iterdir())
    for arm in arms:
        for which in ("primary", "meta") if (one / "arms" / arm / "meta").is_dir() else ("primary",):
            theirs = weights(other, arm, which)
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(one, arm, which).items())
        assert (one / "arms" / arm / "metrics.jsonl").read_bytes() == (
            other / "arms" / arm / "metrics.jsonl"
        ).read_bytes()
        assert json.loads((one / "arms" / arm / "measures.json").read_text()) == json.loads(
            (other / "arms" / arm / "measures.json").read_text()
        )


def await_file(path, exit_code, seconds=60):
    """Waits until a running child has written something to a file. exit_code() -> None while it runs."""
    deadline = time.time() + seconds
    while not (path.exists() and path.stat().st_size):
        assert exit_code() is None, f"ended before it wrote {path.name}"
        assert time.time() < deadline, f"no {path.name} after {seconds} s"
        time.sleep(0.005)


@pytest.mark.drawn
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_from_text_to_verdict(recipe, tmp_path, family):
    out = tmp_path / "runs" / "a"
    result = metasae.run(recipe(family, explorer=True), out=out, show=False).comparison
    assert result["verdict"]
    for name in ("recipe.toml", "run.json", "compare.json", "compare.md", "report.html", "figures"):
        assert (out / name).exists(), name
    for seed in (0, 1):
        solo, control, joint = (weights(out, f"{arm}-s{seed}") for arm in ("solo", "control", "joint"))
        assert all(torch.equal(solo[name], control[name]) for name in solo)
        assert not torch.equal(solo["W_dec"], joint["W_dec"])
        measures = json.loads((out / f"arms/joint-s{seed}/measures.json").read_text())
        assert measures["fidelity"]["fvu"] < 1
        assert ("ce_delta" in measures["fidelity"]) == (family == "gpt2")
    assert not list(out.rglob("*.part")) and not list(out.rglob("checkpoints"))
    sae = metasae.SAE.load(out / "arms/joint-s0/primary")
    x = torch.randn(3, 32)
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6


def test_a_second_call_does_nothing_again_and_more_arms_join(recipe, tmp_path):
    out = tmp_path / "runs" / "a"
    first = recipe(explorer=True) | {"arms": ["solo"], "seeds": [0]}
    metasae.run(first, out=out, show=False)
    before = {path: path.stat().st_mtime_ns for path in (out / "arms").rglob("*") if path.is_file()}
    metasae.run(first | {"arms": ["solo", "joint"]}, out=out, show=False)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert (out / "arms/joint-s0/measures.json").exists()
    # the store knows the comparison that was made after it, so that the explorer has nothing to do when it is opened
    store = (out / "explore.sqlite").stat().st_mtime_ns
    metasae.compare(out)
    assert build_store(out).stat().st_mtime_ns == store


def test_another_recipe_in_the_same_folder_is_refused(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "a", show=False)
    with pytest.raises(UserError, match=r"train\.lr = 0\.001, not 0\.1"):
        metasae.run(values, out=tmp_path / "a", overrides={"train.lr": 0.1}, show=False)


def test_other_measures_take_their_tokens_from_the_text_and_train_nothing(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    before = weights(tmp_path / "runs/a", "solo-s0")
    # whoever has deleted the activations need not have those for training again
    shutil.rmtree(tmp_path / "runs/activations")
    other = {"measure.tokens": 2500, "measure.threshold": "per_latent"}
    metasae.run(values, out=tmp_path / "runs/a", overrides=other, show=False)
    after = weights(tmp_path / "runs/a", "solo-s0")
    assert all(torch.equal(before[name], after[name]) == (name != "threshold") for name in before)
    measures = json.loads((tmp_path / "runs/a/arms/solo-s0/measures.json").read_text())
    assert (measures["conditions"]["n_tokens"], measures["conditions"]["rule"]) == (2500, "per_latent")
    assert list((tmp_path / "runs/activations").rglob("evaluation-*")) and not list(
        (tmp_path / "runs/activations").rglob("train-*")
    )
    # a further arm finds what it needs
    metasae.run(values | {"arms": ["joint"]}, out=tmp_path / "runs/a", overrides=other, show=False)
    assert (tmp_path / "runs/a/arms/joint-s0/measures.json").exists()


def test_runs_side_by_side_share_one_harvest(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    index = next((tmp_path / "runs/activations").iterdir()) / "index.json"
    stamp = index.stat().st_mtime_ns
    metasae.run(values, out=tmp_path / "runs/b", overrides={"train.lr": 0.01}, show=False)
    assert len(list((tmp_path / "runs/activations").iterdir())) == 1 and index.stat().st_mtime_ns == stamp


def test_a_killed_run_ends_like_an_undisturbed_one(recipe, tmp_path):
    values = recipe() | {"seeds": [0]}
    whole, cut = tmp_path / "whole/run", tmp_path / "cut/run"
    metasae.run(values, out=whole, show=False)
    # forked, as a fresh process takes seconds to load torch
    child = multiprocessing.get_context("fork").Process(
        target=metasae.run, args=(values,), kwargs={"out": cut, "show": False}, daemon=True
    )
    child.start()
    await_file(cut / "arms/solo-s0/checkpoints/latest.safetensors", lambda: child.exitcode)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (cut / "compare.json").exists()
    metasae.run(values, out=cut, show=False)
    assert_same_run(whole, cut)


def test_ctrl_c_saves_and_says_how_to_go_on(recipe, tmp_path, monkeypatch, capsys):
    values = recipe(explorer=True) | {"arms": ["solo", "joint"], "seeds": [0]}
    values["train"] |= {"tokens": 20_000, "checkpoint_every": 1000}
    file, whole, cut = tmp_path / "mine.toml", tmp_path / "whole/run", tmp_path / "cut/a run"
    file.write_text(tomli_w.dumps(values))
    child = Program(["-m", "metasae", "run", file, "--out", cut])
    await_file(cut / "arms/solo-s0/metrics.jsonl", child.poll)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("metasae: stopped at step ") and "; saved. Continue with: " in last
    command = shlex.split(last.partition("Continue with: ")[2])
    assert command == ["metasae", "run", str(cut / "recipe.toml"), "--out", str(cut)]
    step = int(last.removeprefix("metasae: stopped at step ").partition(";")[0])
    # stopped in the middle, off the grid of checkpoints, so that the signal itself made the checkpoint
    assert 0 < step < 157 and (cut / "arms/solo-s0/checkpoints/latest.safetensors").exists()
    assert not (cut / "arms/solo-s0/primary").exists()
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"Report: {cut / 'report.html'}\n" in printed and "mean |phi|" in printed
    assert shlex.join(["metasae", "explore", str(cut)]) in printed
    metasae.run(values, out=whole, show=False)
    assert_same_run(whole, cut)


def test_a_second_ctrl_c_stops_at_once_and_still_says_how_to_go_on(recipe, tmp_path, monkeypatch):
    def press_twice(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(source, "harvest_points", press_twice)
    with pytest.raises(
        Interrupted, match=r"stopped at once.*Continue with: metasae run .*recipe.toml --out "
    ) as caught:
        metasae.run(recipe(), out=tmp_path / "a", show=False)
    assert caught.value.exit_code == 130 and signal.getsignal(signal.SIGINT) is before


def test_a_nan_in_a_cached_shard_is_named(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    shard = next((tmp_path / "runs/activations").rglob("train-00001.safetensors"))
    tensors = load_file(shard)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["activations"][5, 3] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(UserError, match=r"train-00001"):
        metasae.run(values, out=tmp_path / "runs/b", show=False)
    assert (tmp_path / "runs/a/arms/solo-s0/measures.json").exists()


def test_a_truncated_cache_or_sae_is_named(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "runs/a", show=False)
    file = tmp_path / "runs/a/arms/solo-s0/primary/sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "runs/a/arms/solo-s0/measures.json").unlink()
    with pytest.raises(UserError, match=r"sae_weights.safetensors is damaged"):
        metasae.run(values, out=tmp_path / "runs/a", show=False)
    shard = next((tmp_path / "runs/activations").rglob("train-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00000"):
        metasae.run(values, out=tmp_path / "runs/b", show=False)


def test_seeds_give_other_batches_and_other_weights(recipe, tmp_path):
    metasae.run(recipe() | {"arms": ["solo"]}, out=tmp_path / "a", show=False)
    assert not torch.equal(weights(tmp_path / "a", "solo-s0")["W_dec"], weights(tmp_path / "a", "solo-s1")["W_dec"])


def test_a_full_disk_is_one_clear_error(recipe, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(UserError, match="No space left"):
        metasae.run(values, out=tmp_path / "a", show=False)


def test_a_typo_put_right_goes_on_in_the_same_folder(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    with pytest.raises(UserError, match="blocks"):
        metasae.run(values, out=tmp_path / "a", overrides={"hook.point": "blocks.1.hook_resid_prae"}, show=False)
    assert metasae.run(values, out=tmp_path / "a", show=False).comparison["arms"].keys() == {"solo"}


def test_arms_that_joined_stay_in_the_recipe(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    metasae.run(values, out=tmp_path / "a", show=False)
    metasae.run(values | {"seeds": [1]}, out=tmp_path / "a", show=False)
    stored = metasae.Recipe.load(tmp_path / "a/recipe.toml")
    assert stored.seeds == (0, 1) and stored.arms == ("solo",)


def test_a_damaged_recipe_in_the_run_folder_is_named(recipe, tmp_path):
    values = recipe() | {"arms": ["solo"], "seeds": [0]}
    (tmp_path / "a").mkdir()
    (tmp_path / "a/recipe.toml").write_text("[train\nlr = 1")
    (tmp_path / "a/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"recipe.toml is not valid TOML"):
        metasae.run(values, out=tmp_path / "a", show=False)


@pytest.mark.parametrize("causal", [True, False])
def test_the_end_of_a_run_says_where_it_is_and_what_comes_next(capsys, causal):
    means = {"fidelity.ce_clean": 3.0} if causal else {"fidelity.fvu": 0.1}
    job.print_next_steps(
        Path("my runs/a"), {"arms": {name: {"seeds": [3], "means": means} for name in ("solo", "joint")}}
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 5 and lines[0].startswith("Everything else is in my runs/a: ")
    assert lines[1] == "Look at single latents: metasae explore 'my runs/a'"
    steer = """Steer with one: metasae steer 'my runs/a/arms/joint-s3' --latent LATENT=VALUE --prompt "...\""""
    assert (steer in lines) == causal
    assert "docs/text.md" in lines[-2] and lines[-1] == "then metasae run mine.toml"


def test_the_command_to_go_on_can_be_pasted_into_a_shell():
    words = "run 'my runs/a/recipe.toml' --out 'my runs/a' --device"
    assert job._command(Path("my runs/a"), "cuda:1", ALONE) == f"metasae {words} cuda:1"
    assert (
        job._command(Path("my runs/a"), "cuda", Ranks(0, 4, 0))
        == f"torchrun --nproc-per-node 4 -m metasae {words} cuda"
    )


def test_input_scale_by_hand():
    class Two:
        d, mean_square = 4, 16.0

    assert input_scale(Two(), "global") == 0.5
    assert input_scale(Two(), "token") == 1.0


@pytest.mark.parametrize("name", ["jumprelu", "relu", "matryoshka"])
def test_other_architectures_go_all_the_way(recipe, tmp_path, name):
    values = recipe() | {"arms": ["solo", "joint"], "seeds": [0]}
    overrides = {
        "sae.architecture": name,
        "meta.architecture": name,
        "measure.output_tokens": 0,
        "train.penalties": {"ortsae": 0.1},
    }
    result = metasae.run(values, out=tmp_path / "a", overrides=overrides, show=False).comparison
    assert "1 seed" in result["verdict"][1]["text"]
    measures = json.loads((tmp_path / "a/arms/joint-s0/measures.json").read_text())
    assert measures["conditions"]["rule"] == ("rate" if name == "matryoshka" else "own")
    saved = weights(tmp_path / "a", "joint-s0")["threshold"]
    assert (len(saved.unique()) > 1) == (name == "jumprelu")


def test_several_points_from_one_harvest(recipe, tmp_path):
    from metasae.recipe.recipe import Recipe
    from metasae.recipe.resolve import one_per_point

    points, values = (
        ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"],
        recipe() | {"arms": ["solo", "joint"], "seeds": [0]},
    )
    runs = one_per_point(Recipe.load(values), tmp_path / "both", points)
    assert [place.name for _, place in runs] == points and runs[0][0].hook.also == (points[1],)
    first, second = (metasae.run(one, out=place, show=False) for one, place in runs)
    assert first.comparison["conditions"]["data"] != second.comparison["conditions"]["data"]
    # the second run found what the first harvested beside its own
    assert len(list((tmp_path / "both" / "activations").glob("*/index.json"))) == 2
    alone = metasae.run(
        values, out=tmp_path / "alone" / "run", overrides={"hook.point": points[1]}, show=False
    ).comparison
    assert alone["arms"] == second.comparison["arms"]
    with pytest.raises(UserError, match="each point once"):
        one_per_point(runs[0][0], tmp_path, points * 2)


def test_a_run_that_is_tracked_sends_every_line_and_the_measures(recipe, tmp_path):
    pytest.importorskip("tensorboard", reason="the package is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = {**recipe(), "arms": ["solo"], "seeds": 1}
    with pytest.raises(UserError, match="choose tensorboard or wandb"):
        job.run(one, tmp_path / "run", show=False, track="tensorbord")
    job.run(one, tmp_path / "run", show=False, track="tensorboard")
    sent = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "solo-s0")).Reload()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "arms" / "solo-s0" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [scalar.step for scalar in sent.Scalars("train/l2")] == [row["step"] for row in rows]
    measures = json.loads((tmp_path / "run" / "arms" / "solo-s0" / "measures.json").read_text())
    assert sent.Scalars("measures/fidelity.fvu")[0].value == pytest.approx(measures["fidelity"]["fvu"])


def test_a_model_that_changed_under_a_run_is_not_judged_with(recipe, tmp_path):
    one = {**recipe(), "arms": ["solo"], "seeds": [0]}
    mine = tmp_path / "model"
    shutil.copytree(one["model"]["path"], mine)
    one["model"] = {**one["model"], "path": str(mine)}
    job.run(one, tmp_path / "run", show=False)
    weights = mine / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "mlp.c_proj.weight" in name)
    save_file({**tensors, name: tensors[name] * 1.5}, weights, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"files have changed since its activations were harvested into .*; choose another --out"
    ):
        job.run({**one, "seeds": [0, 1]}, tmp_path / "run", show=False)


def test_cached_tokens_are_read_again_and_said_to_be(recipe, tmp_path):
    """Three readings of 2,000 tokens: a run that is stopped between two of them ends like one that is not."""
    values = recipe() | {"arms": ["solo"], "seeds": 1}
    values["harvest"] |= {"tokens": 2000}
    whole = metasae.run(values, out=tmp_path / "whole", show=False).comparison
    index = json.loads(next((tmp_path / "activations").glob("*/index.json")).read_text())
    assert index["splits"]["train"]["tokens"] == 2000
    assert "6,000 training tokens (2,000 different ones, each read 3 times)" in Path(whole["report"]).read_text()

    stopped, steps = tmp_path / "stopped", []

    def stop_in_the_second_reading(action):
        steps.append(action)
        if len(steps) == 36:  # 24 primary steps of 128 tokens
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        real = loop.train
        patch.setattr(
            "metasae.arms.train.train",
            lambda *args, **kept: real(*args, after_step=stop_in_the_second_reading, **kept),
        )
        metasae.run(values, out=stopped, show=False)
    metasae.run(values, out=stopped, show=False)
    assert_same_run(tmp_path / "whole", stopped)
