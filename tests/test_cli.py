"""The command line as a user meets it: exit codes, one clear line, no traceback, JSON on stdout.

A process of its own shows each kind of exit once; the other cases call `main` here, where torch is imported once for
all.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from html import unescape

import pytest
from rich.console import Console

from metasae.cli import main
from metasae.cli.app import seed_list
from metasae.compare.catalogue import CATALOGUE, change
from metasae.compare.tables import summary_table
from metasae.errors import UserError
from metasae.jobs import start
from metasae.jobs.conclude import conclude, print_whole
from metasae.jobs.start import find_targets
from metasae.locks import alone_on
from metasae.recipe import recipe
from runs import write_arm

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def process(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "metasae", *arguments], capture_output=True, text=True, cwd=cwd, env=ENV
    )


def child_seconds():
    """The processor time of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


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


def behind_stage(stderr):
    """What a run says after the line that its first stage begins with, where it came so far."""
    stage, _, rest = stderr.partition("\n")
    return rest if stage.endswith(": reading text and harvesting activations") else stderr


MISTAKES = [
    (["run", "demo", "--set", "train.lambda=1"], "did you mean 'train.lambda2'"),
    (["run", "demo", "--set", "train.lambda2=often"], "train.lambda2"),
    (["run", "demo", "--set", "trian.lr=1"], "did you mean 'train'"),
    (["run", "demo", "--set", "lambda2"], "KEY=VALUE"),
    (["run", "demo", "--set", "sae.normalize=globl"], "did you mean 'global'"),
    (["run", "demo", "--set", "sae.k=5000"], "k = 5000 is more than n = 1536"),
    (["run", "demo", "--arms", "solo,joined"], "did you mean 'joint'"),
    (["run", "demo", "--seeds", "three"], "--seeds"),
    (["run", "demo", "--seeds", "0,0"], "seeds must name at least one, and none twice"),
    (["run", "demmo"], "did you mean 'demo'"),
    (["run", "demo", "--set", "measure.senses=nothere.jsonl"], "measure.senses: no file or folder 'nothere.jsonl'"),
    (["run", sys.executable], "is not a recipe; give a TOML file or the name of a shipped recipe"),
    (["interp", "demo", "--seeds", ","], "--seeds takes a count (3) or a list (0,7; one alone: 7,)"),
    (["run", "missing.toml"], "no recipe file 'missing.toml'"),
    (["run", "demo", "--device", "gpu9"], "'gpu9' is not one of cpu, cuda, cuda:N, mps"),
    (["run", "demo", "--device", "meta"], "'meta' is not one of cpu, cuda, cuda:N, mps"),
    (["run", "demo", "--out", "/dev/null/run"], "cannot write /dev/null/run: Not a directory"),
    (["run", "demo", "--track", "wand"], "tracking with 'wand' is not supported; choose tensorboard or wandb"),
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
    code, _, stderr = metasae(
        "run",
        "demo",
        "--set",
        f"model.path={build('gpt2')}",
        "--set",
        "hook.point=blocks.1.hook_resid_pre",
        "--set",
        setting,
    )
    assert_refused(code, behind_stage(stderr), words)
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
    # the hub's client alone would ask and wait for half a minute; here whoever sleeps or connects ends the process with
    # 99
    script = """
import os, socket, sys, time
time.sleep = socket.socket.connect = lambda *_: os._exit(99)
from metasae.cli import main
sys.argv = ["metasae", "run", "modern-gpt2-small"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert_refused(done.returncode, behind_stage(done.stderr), "openai-community/gpt2': HF_HUB_OFFLINE is set")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_wrong_flag_is_exit_2(metasae):
    code, _, stderr = metasae("run", "demo", "--sead", "3")
    assert code == 2 and "--sead" in stderr and "Traceback" not in stderr


def test_an_unforeseen_error_keeps_its_traceback(metasae, monkeypatch):
    monkeypatch.setattr(recipe, "names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metasae("recipes")


def test_dry_run_writes_nothing_and_json_is_json(metasae, tmp_path):
    code, stdout, stderr = metasae("run", "demo", "--dry-run", "--json", "--seeds", "3", "--arms", "solo")
    assert (code, stderr) == (0 if json.loads(stdout)["doctor"]["fits"] else 1, "")
    assert json.loads(stdout)["arms"] == ["solo-s0", "solo-s1", "solo-s2"]
    assert json.loads(stdout)["out"] == "runs/demo" and json.loads(stdout)["doctor"]["fits"] in (True, False)
    assert not list((tmp_path / "here").iterdir())


def test_dry_run_prints_a_recipe_that_can_be_run(metasae, tmp_path):
    code, stdout, _ = metasae("run", "demo", "--dry-run", "--set", "train.lr=0.25")
    assert code == 0
    (tmp_path / "again.toml").write_text(stdout)
    assert recipe.Recipe.load(tmp_path / "again.toml") == recipe.Recipe.load("demo", {"train.lr": 0.25})


def test_a_dry_run_of_what_cannot_run_is_exit_1(metasae):
    code, stdout, stderr = metasae(
        "run", "demo", "--dry-run", "--json", "--set", "harvest.tokens=0", "--set", "train.tokens=1_000_000_000_000_000"
    )
    assert (code, stderr, json.loads(stdout)["doctor"]["fits"]) == (1, "", False)


@pytest.mark.parametrize(("seeds", "expected"), [("7,", [7]), ("3", 3), ("0,7", [0, 7]), ("0, 7,", [0, 7])])
def test_a_comma_makes_one_seed_a_list(seeds, expected):
    assert seed_list(seeds) == expected


@pytest.mark.parametrize("seeds", [",", "", "1,,2", "\u00b2", "-1", "7,,"])
def test_what_is_no_list_of_seeds_is_refused(seeds):
    with pytest.raises(UserError, match="--seeds takes"):
        seed_list(seeds)


def test_interp_takes_seeds_as_run_does(metasae, monkeypatch):
    asked = []
    monkeypatch.setattr("metasae.interp.verb.verb", lambda run, spec, *rest, **options: asked.append(spec.seeds))
    for seeds in ("2", "7,", "0,7"):
        metasae("interp", "run", "--seeds", seeds)
    assert asked == [(0, 1), (7,), (0, 7)]


def test_a_run_folder_as_recipe_is_told_how_to_go_on(metasae, tmp_path):
    start.claim(recipe.Recipe.load("demo"), tmp_path / "a")
    code, _, stderr = metasae("run", tmp_path / "a")
    assert_refused(code, stderr, f"did you mean {tmp_path / 'a' / 'recipe.toml'} --out {tmp_path / 'a'}?")


def test_weights_as_recipe_are_refused_unread(metasae, tmp_path):
    with open(tmp_path / "sae.safetensors", "wb") as file:
        file.truncate(1 << 40)
    assert_refused(*metasae("run", tmp_path / "sae.safetensors")[::2], "sae.safetensors is not a recipe")


def test_a_second_process_on_a_run_folder_is_refused_until_the_first_ends(metasae, tmp_path):
    hold = "import sys, time; from pathlib import Path; from metasae.locks import alone_on\n"
    hold += "with alone_on(Path(sys.argv[1])):\n"
    hold += "    print(1, flush=True)\n    time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], stdout=subprocess.PIPE, env=ENV)
    first.stdout.readline()
    for verb in (["run", "demo"], ["measure", tmp_path / "sae"]):
        if verb[0] == "measure":
            small_sae().save(tmp_path / "sae")
            verb += ["--recipe", "demo"]
        assert_refused(*metasae(*verb, "--out", tmp_path / "run")[::2], f"process {first.pid} on ")
    assert not (tmp_path / "run" / "recipe.toml").exists()
    first.kill()
    first.wait()
    first.stdout.close()
    with alone_on(tmp_path / "run"):
        pass


def test_the_other_ranks_work_under_the_first_ones_lock(tmp_path, monkeypatch):
    planted = recipe.Recipe.load("planted")
    with start.started(planted, tmp_path):
        monkeypatch.setenv("RANK", "1")
        with start.started(planted, tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="is working on"), start.started(planted, tmp_path):
            pass


def small_sae():
    import torch

    from metasae.sae.sae import SAE, SAEConfig

    sae = SAE(SAEConfig(8, 16, "topk", k=2, rule="topk"))
    sae.init_weights(torch.Generator().manual_seed(0))
    return sae


def test_a_run_folder_in_place_of_an_sae_names_its_arms(metasae, tmp_path):
    run = tmp_path / "run"
    out = tmp_path / "o"
    for verb in (
        ["steer", run, "--latent", "1=off", "--prompt", "x"],
        ["export", run, "--to", "saelens", "--out", out],
        ["export", run, "--to", "delphi", "--out", out],
    ):
        (run / "arms").mkdir(parents=True, exist_ok=True)
        assert_refused(*metasae(*verb)[::2], "is a run folder in which no arm is trained yet")
        for name in ("joint-s0", "solo-s0"):
            small_sae().save(run / "arms" / name / "primary")
        assert_refused(
            *metasae(*verb)[::2],
            f"is a run folder; give one of {run / 'arms' / 'joint-s0'}, {run / 'arms' / 'solo-s0'}",
        )
        shutil.rmtree(run)
    assert not (tmp_path / "o").exists()


def test_an_arm_folder_stands_for_its_sae(metasae, tmp_path):
    arm = tmp_path / "run" / "arms" / "joint-s0"
    for part in ("primary", "meta"):
        small_sae().save(arm / part)
    code, _, stderr = metasae("export", arm, "--to", "saelens", "--out", tmp_path / "o")
    assert (code, stderr) == (0, "") and (tmp_path / "o" / "cfg.json").is_file()
    assert [target.folder for target in find_targets(arm)] == [arm / "primary"]


def test_the_width_is_compared_before_any_text_is_read(metasae, build, tmp_path):
    small_sae().save(tmp_path / "sae")
    settings = [
        "--set",
        f"model.path={build('gpt2')}",
        "--set",
        "hook.point=blocks.1.hook_resid_pre",
        "--set",
        "text.source=absent.jsonl",
    ]
    code, _, stderr = metasae("measure", tmp_path / "sae", "--recipe", "demo", *settings, "--out", tmp_path / "out")
    assert_refused(code, behind_stage(stderr), "reads vectors of width 8, but 'blocks.1.hook_resid_pre' gives")


@pytest.fixture
def compared(metasae, no_drawing, tmp_path):
    for arm in ("solo", "joint"):
        for seed in (0, 1):
            write_arm(tmp_path / "run", arm, seed, fidelity__fvu=0.2 + 0.01 * seed + (0.00123 if arm == "joint" else 0))
    return tmp_path / "run"


def test_the_result_names_the_folder_by_its_path(compared):
    result = conclude(compared, show=False)
    assert (
        result["run"] == str(compared) and json.loads((compared / "compare.json").read_text())["run"] == compared.name
    )


@pytest.mark.parametrize(("terminal", "width"), [(True, 80), (True, 30), (False, 80)])
def test_no_number_of_the_table_is_cut(compared, terminal, width):
    comparison, shown = conclude(compared, show=False), io.StringIO()
    console = Console(file=shown, width=width, force_terminal=terminal, color_system=None)
    print_whole(summary_table(comparison), console)
    lines = shown.getvalue().splitlines()
    assert "\u2026" not in shown.getvalue() and console.width == width
    for value in comparison["pairs"]["joint vs solo"].values():
        assert value["b"] is not None
    fvu = comparison["pairs"]["joint vs solo"]["fidelity.fvu"]
    quantity = next(q for q in CATALOGUE if q.key == "fidelity.fvu")
    assert any(change(quantity, fvu) in line for line in lines)
    assert width == 30 or not terminal or max(map(len, lines)) <= 80


def test_terminal_file_and_report_say_the_same_verdict(compared, capsys):
    verdict = conclude(compared)["verdict"]
    printed, page = " ".join(capsys.readouterr().out.split()), (compared / "report.html").read_text()
    written = json.loads((compared / "compare.json").read_text())["verdict"]
    assert written == verdict and [line["kind"] for line in verdict[:4]] == [
        "trained", "truth", "description", "fidelity"
    ]  # fmt: skip
    for line in verdict:
        assert line["text"] in printed and line["text"] in unescape(page)
        assert line["text"] in (compared / "compare.md").read_text()


def test_compare_writes_the_report_and_prints_json(metasae, no_drawing, tmp_path):
    for arm in ("solo", "joint"):
        write_arm(tmp_path / "run", arm, 0)
    code, stdout, stderr = metasae("compare", tmp_path / "run", "--json")
    assert (code, stderr) == (0, "")
    assert set(json.loads(stdout)["arms"]) == {"solo", "joint"} and (tmp_path / "run" / "report.html").is_file()


def test_every_recipe_prints_and_round_trips(metasae):
    for name in recipe.names():
        assert metasae("recipes", name) == (0, recipe.text_of(name), "")
        loaded = recipe.Recipe.load(name)
        assert recipe.Recipe.load(recipe.toml.loads(loaded.dump())) == loaded
    listing = metasae("recipes")[1]
    assert all(name in listing for name in recipe.names())


def is_quick(run, limit, times=5):
    """Whether a child process takes less processor time than `limit` in one of so many calls, as other work on the
    machine only ever adds some.
    """
    for _ in range(times):
        before = child_seconds()
        run()
        if child_seconds() - before < limit:
            return True
    return False


def test_help_and_mistakes_are_quick_and_import_is_light(tmp_path):
    assert process("--help").returncode == 0
    assert is_quick(lambda: process("--help"), 0.5)
    done = process("run", "demmo", cwd=tmp_path)
    assert_refused(done.returncode, done.stderr, "did you mean 'demo'")
    assert is_quick(lambda: process("run", "demmo", cwd=tmp_path), 0.8)
    code = "import sys, metasae; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
