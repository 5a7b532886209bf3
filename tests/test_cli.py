"""The command line as a user meets it: exit codes, one clear line, no traceback, JSON on stdout.

A process of its own shows each kind of exit once; the other cases call `main` here, where torch is imported once for all.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from metasae import recipe, start
from metasae.cli import main
from runs import write_arm

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def process(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "metasae.cli", *arguments], capture_output=True, text=True, cwd=cwd, env=ENV)


@pytest.fixture
def metasae(monkeypatch, capsys, tmp_path):
    """metasae(*arguments) -> (exit code, stdout, stderr), run in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["metasae", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def assert_refused(code, stderr, words):
    assert code == 2, stderr
    assert words in stderr and stderr.startswith("metasae: ")
    assert len(stderr.strip().splitlines()) == 1, stderr


MISTAKES = [
    (["run", "demo", "--set", "train.lambda=1"], "did you mean 'train.lambda2'"),
    (["run", "demo", "--set", "train.lambda2=often"], "train.lambda2"),
    (["run", "demo", "--set", "trian.lr=1"], "did you mean 'train'"),
    (["run", "demo", "--set", "lambda2"], "KEY=VALUE"),
    (["run", "demo", "--set", "sae.normalize=globl"], "did you mean 'global'"),
    (["run", "demo", "--set", "sae.k=5000"], "k = 5000 is more than n = 3072"),
    (["run", "demo", "--arms", "solo,joined"], "did you mean 'joint'"),
    (["run", "demo", "--seeds", "three"], "--seeds"),
    (["run", "demo", "--seeds", "0,0"], "seeds must name at least one, each once"),
    (["run", "demmo"], "did you mean 'demo'"),
    (["run", "missing.toml"], "no recipe file 'missing.toml'"),
    (["run", "demo", "--device", "gpu9"], "'gpu9' is not one of cpu, cuda, cuda:N"),
    (["run", "demo", "--device", "meta"], "'meta' is not one of cpu, cuda, cuda:N"),
    (["run", "demo", "--out", "/dev/null/run"], "cannot write /dev/null/run: Not a directory"),
    (["compare", "absent"], "absent is not a run folder"),
    (["recipes", "paper"], "no recipe 'paper'"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(metasae, tmp_path, arguments, words):
    code, stdout, stderr = metasae(*arguments)
    assert_refused(code, stderr, words)
    assert stdout == "" and not list((tmp_path / "here").iterdir())


def test_no_mistake_waits_for_torch():
    """Importing torch takes seconds, so every one of these mistakes is found with torch out of reach."""
    script = f"""
import sys
sys.modules["torch"] = None
from metasae.cli import main
for arguments, words in {MISTAKES!r}:
    sys.argv = ["metasae", *arguments]
    try:
        main()
    except SystemExit as stop:
        print(stop.code)
sys.argv = ["metasae", "recipes", "demo"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENV)
    codes, printed = done.stdout.split()[: len(MISTAKES)], done.stdout
    assert codes == ["2"] * len(MISTAKES) and "[train]" in printed, done.stderr
    assert len(done.stderr.strip().splitlines()) == len(MISTAKES)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.path=nowhere", "the model folder 'nowhere' does not exist"),
        ("text.source=absent.jsonl", "absent.jsonl"),
        ("hook.point=blocks.1.hook_resid_prae", "hook_resid_pre"),
        ("text.context=4096", "set text.context="),
    ],
)
def test_a_mistake_that_only_the_model_shows(metasae, build, tmp_path, setting, words):
    code, _, stderr = metasae("run", "demo", "--set", f"model.path={build('gpt2')}", "--set", "hook.point=blocks.1.hook_resid_pre", "--set", setting)
    assert_refused(code, stderr, words)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_broken_toml_file(metasae, tmp_path):
    (tmp_path / "mine.toml").write_text("[train\nlr = 1")
    code, _, stderr = metasae("run", tmp_path / "mine.toml")
    assert_refused(code, stderr, "not valid TOML")


def test_a_file_where_the_run_folder_should_be(metasae, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, _, stderr = metasae("run", "demo", "--out", tmp_path / "taken")
    assert_refused(code, stderr, "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_that_may_not_be_written(metasae, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, stderr = metasae("run", "demo", "--out", tmp_path / "locked" / "run")
    assert_refused(code, stderr, "Permission denied; choose another --out")


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_folder_on_a_read_only_disk(metasae, tmp_path, monkeypatch, begun):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    out = tmp_path / "run"
    start.claim(recipe.Recipe.load("demo"), out)
    if begun:
        (out / "run.json").write_text("{}")
    monkeypatch.setattr("os.replace", refuse)
    code, _, stderr = metasae("run", "demo", "--out", out)
    assert_refused(code, stderr, f"cannot write {out}: Read-only file system; choose another --out")


def test_another_recipe_in_a_begun_folder_is_refused_before_torch(metasae, tmp_path):
    start.claim(recipe.Recipe.load("demo"), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    code, _, stderr = metasae("run", "demo", "--out", tmp_path / "run", "--set", "train.lr=0.5")
    assert_refused(code, stderr, "not 0.5; choose another --out or delete the folder")


def test_without_a_network_a_hub_model_is_one_line(tmp_path):
    began = time.perf_counter()
    done = process("run", "modern-gpt2-small", cwd=tmp_path)
    seconds = time.perf_counter() - began
    assert_refused(done.returncode, done.stderr, "openai-community/gpt2': HF_HUB_OFFLINE is set")
    # importing torch and transformers, and no retry: the hub's client alone would go on for half a minute
    assert seconds < 30 and not list(tmp_path.rglob("*.safetensors"))


def test_a_wrong_flag_is_exit_2(metasae):
    code, _, stderr = metasae("run", "demo", "--sead", "3")
    assert code == 2 and "--sead" in stderr and "Traceback" not in stderr


def test_an_unforeseen_error_keeps_its_traceback(metasae, monkeypatch):
    monkeypatch.setattr(recipe, "names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metasae("recipes")


def test_dry_run_writes_nothing_and_json_is_json(metasae, tmp_path):
    code, stdout, stderr = metasae("run", "demo", "--dry-run", "--json", "--seeds", "3", "--arms", "solo")
    assert (code, stderr) == (0, "")
    assert json.loads(stdout)["arms"] == ["solo-s0", "solo-s1", "solo-s2"]
    assert json.loads(stdout)["out"] == "runs/demo" and json.loads(stdout)["doctor"]["fits"] in (True, False)
    assert not list((tmp_path / "here").iterdir())


def test_dry_run_prints_a_recipe_that_can_be_run(metasae, tmp_path):
    code, stdout, _ = metasae("run", "demo", "--dry-run", "--set", "train.lr=0.25")
    assert code == 0
    (tmp_path / "again.toml").write_text(stdout)
    assert recipe.Recipe.load(tmp_path / "again.toml") == recipe.Recipe.load("demo", {"train.lr": 0.25})


def test_compare_writes_the_report_and_prints_json(metasae, tmp_path):
    for arm in ("solo", "joint"):
        write_arm(tmp_path / "run", arm, 0)
    code, stdout, stderr = metasae("compare", tmp_path / "run", "--json")
    assert (code, stderr) == (0, "")
    assert set(json.loads(stdout)["arms"]) == {"solo", "joint"} and (tmp_path / "run" / "report.html").is_file()


def test_every_recipe_prints_and_round_trips(metasae):
    for name in recipe.names():
        assert metasae("recipes", name) == (0, recipe.text_of(name), "")
        loaded = recipe.Recipe.load(name)
        assert recipe.Recipe.load(recipe.tomli.loads(loaded.dump())) == loaded
    listing = metasae("recipes")[1]
    assert all(name in listing for name in recipe.names())


def quickest(run, times=5):
    """The best of some runs, as other work on the machine only ever adds time."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def test_help_and_mistakes_are_quick_and_import_is_light(tmp_path):
    assert process("--help").returncode == 0
    assert quickest(lambda: process("--help")) < 0.5
    done = process("run", "demmo", cwd=tmp_path)
    assert_refused(done.returncode, done.stderr, "did you mean 'demo'")
    assert quickest(lambda: process("run", "demmo", cwd=tmp_path)) < 0.8
    code = "import sys, metasae; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
