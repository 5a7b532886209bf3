"""`metasae doctor`: what it says, what it proposes, that it leaves no trace, how near its estimates are."""

import json
import os
import statistics
import subprocess
import sys

import pytest
import tomli_w

import metasae
from metasae.cli import main
from metasae.doctor.report import examine
from metasae.doctor.table import duration
from metasae.recipe.recipe import Recipe
from sources import STORIES, tokenizer_for

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def values(build, stories, tmp_path):
    text = tmp_path / "stories.jsonl"
    text.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(text), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {"tokens": 6000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2},
        "measure": {"tokens": 2000, "calibration_tokens": 2000, "output_tokens": 0, "meta_steps": 20},
        "arms": ["solo", "joint"],
    }


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path, values):
    """doctor(*arguments) -> (exit code, stdout, stderr) for the recipe file of `values`, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(values))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["metasae", "doctor", str(tmp_path / "mine.toml"), *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_it_looks_tries_and_leaves_nothing(doctor, tmp_path):
    code, stdout, stderr = doctor("--json")
    assert code == 0, stderr
    report = json.loads(stdout)
    assert report["fits"] and not report["problems"] and not report["shortages"] and report["changes"] == {}
    assert report["model"]["d"] == 32 and report["model"]["place"]
    assert report["needs"]["cache"] == 10_000 * (32 * 2 + 16)
    assert [stage["name"] for stage in report["stages"]] == ["harvest", "train solo", "train joint", "measure"]
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    assert report["trials"]["arms"]["joint"]["n_primary"] == 47
    trials, needs = report["trials"], report["needs"]
    assert needs["forward"] == trials["harvest"]["memory"]
    assert needs["train"] >= max(trial["memory"] for trial in trials["arms"].values())
    assert not list((tmp_path / "here").iterdir())


def test_the_table_names_everything(doctor):
    code, stdout, _ = doctor()
    assert code == 0
    rows = (
        "processor",
        "memory",
        "disk",
        "model",
        "activations",
        "run folder",
        "peak memory",
        "harvest",
        "train joint",
        "measure",
        "in all",
    )
    for row in (*rows, "It fits."):
        assert f"\n {row}" in stdout or f"\n{row}" in stdout, row


def test_quick_times_nothing_and_loads_nothing(doctor, monkeypatch):
    monkeypatch.setattr("metasae.data.model.host.Host.load", None)
    code, stdout, stderr = doctor("--quick", "--json")
    report = json.loads(stdout)
    assert code == 0 and report["needs"]["cache"] and report["stages"] == [] and report["seconds"] is None, stderr


def test_no_before_a_run_that_cannot_fit_and_the_change_that_would(doctor):
    code, stdout, _ = doctor("--quick", "--set", f"train.tokens={10**12}")
    assert code == 1 and "It does not fit. Disk: " in stdout
    proposed = stdout.split("It would fit with: ")[1].splitlines()[0].split()
    assert proposed[0::2] == ["--set"] and proposed[1].startswith("harvest.window_tokens=")
    assert doctor("--quick", "--set", f"train.tokens={10**12}", *proposed)[0] == 0


def test_what_exceeds_memory_is_not_tried(doctor, monkeypatch):
    monkeypatch.setattr("metasae.doctor.report.try_stages", None)
    code, stdout, _ = doctor("--set", f"sae.n={10**9}", "--set", "train.tokens=1000000")
    assert code == 1 and "Memory: " in stdout


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.path=nowhere", "the model folder 'nowhere' does not exist"),
        ("hook.point=blocks.9.hook_resid_pre", "did you mean 'blocks.2.hook_resid_pre'"),
        ("text.source=absent.jsonl", "absent.jsonl"),
        ("text.context=100", "set text.context="),
        ("text.column=words", "no column 'words'"),
    ],
)
def test_what_would_stop_the_run_is_said(doctor, setting, words):
    code, stdout, _ = doctor("--set", setting)
    assert code == 1 and "It cannot run: " in stdout and words in stdout and "It fits." not in stdout


def test_a_mistake_in_the_recipe_is_a_mistake_as_for_a_run(doctor):
    code, stdout, stderr = doctor("--set", "train.lambda=1")
    assert code == 2 and "did you mean 'train.lambda2'" in stderr and stdout == ""


def test_activations_that_are_there_are_seen(values, tmp_path):
    out = tmp_path / "runs" / "a"
    metasae.run(values | {"arms": ["solo"]}, out=out, show=False)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*"))
    report = examine(Recipe.load(values), out)
    assert report["cached"] and report["stages"][0]["seconds"] == 0
    assert not examine(Recipe.load(values, {"train.tokens": 7000}), out)["cached"]
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*"))


def test_times_in_words():
    assert [duration(seconds) for seconds in (0.4, 89, 90, 5000, 7200, 400_000)] == [
        "0 s",
        "89 s",
        "1.5 min",
        "83.3 min",
        "2 h",
        "4.63 days",
    ]


def test_a_plan_for_gpus_that_are_not_here(doctor):
    code, stdout, stderr = doctor("--gpus", "2", "--gpu", "h200", "--json")
    facts = json.loads(stdout)
    assert code == 0 and facts["fits"] and facts["gpus"] == 2 and facts["model"]["d"] == 32, stderr
    assert facts["figures"]["cache"]["value"] == 10_000 * (32 * 2 + 16)
    code, stdout, _ = doctor("--gpu", "RTX4090")
    assert code == 0 and "1 x rtx4090" in stdout and "It fits: " in stdout and "Nothing was measured" in stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "8"], "a plan needs --gpu NAME, of a100-40"),
        (["--gpu", "h201"], "no GPU 'h201'; did you mean 'h200'?"),
        (["--gpu", "h200", "--gpus", "65"], "64 latents cannot be spread over 65 ranks"),
        (["--gpu", "h200", "--gpus", "2", "--set", "meta.architecture=relu"], "not supported on several ranks"),
        (["--gpu", "h200", "--device", "cuda"], "--device is a device of this machine"),
        (["--gpu", "h200", "--efficiency", "2"], "--efficiency 2 must be above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(doctor, arguments, words):
    code, stdout, stderr = doctor(*arguments)
    assert code == 2 and stdout == "" and words in stderr and len(stderr.strip().splitlines()) == 1


def test_a_plan_that_does_not_fit_is_exit_1(doctor):
    code, stdout, _ = doctor("--gpu", "rtx4090", "--set", "sae.n=20000000")
    assert code == 1 and "It does not fit: " in stdout and " rtx4090 or more." in stdout


# One thread and its CPU seconds, so that other work on the machine counts less. The doctor and the run read the same
# clock.
CHILD = """
import json, sys, time
time.perf_counter = time.process_time
import metasae
from metasae.doctor.machine import peak_resident
from metasae.doctor.report import examine
from metasae.recipe.resolve import resolve
values, out = json.loads(sys.argv[2]), sys.argv[3]
if sys.argv[1] == "doctor":
    report = examine(*resolve(values, out, None, "cpu"))
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    memory = report["needs"]["memory"] + report["needs"]["cache"]
else:
    metasae.run(values, out=out, show=False)
    stages = {name: stage["seconds"] for name, stage in json.load(open(out + "/run.json"))["stages"].items()}
    memory = peak_resident()
train = sum(seconds for name, seconds in stages.items() if name.startswith("train"))
print(json.dumps([stages.get("harvest"), train, memory]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n", [512, 2048])
def test_estimates_are_within_30_percent_of_a_real_run(tmp_path, n):
    """Harvest seconds, training seconds and peak memory: the median of three pairs of a doctor and a run."""
    values = host_and_text(tmp_path) | {"sae": {"n": n, "k": 16}, "meta": {"n": n // 11, "k": 4}}

    def child(what, out):
        command = [sys.executable, "-c", CHILD, what, json.dumps(values), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    pairs = [(child("doctor", tmp_path / str(i) / "a"), child("run", tmp_path / str(i) / "a")) for i in range(3)]
    ratios = [[guess / real for guess, real in zip(*pair, strict=True)] for pair in pairs]
    print(f"n = {n}: predicted over real, [harvest, training, memory]: {ratios}")
    for part in zip(*ratios, strict=True):
        assert 0.7 < statistics.median(part) < 1.3, ratios


def host_and_text(folder):
    """A recipe's tables for a small GPT-2 with random weights, and text for it, written to `folder`."""
    import random

    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=128, n_layer=4, n_head=4, n_positions=128, vocab_size=400, bos_token_id=1, eos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer_for("gpt2", True).save_pretrained(folder / "model")
    draw, words = random.Random(0), " ".join(STORIES).split()
    documents = [f"{number} " + " ".join(draw.choices(words, k=draw.randint(10, 120))) for number in range(9000)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return {
        "model": {"path": str(folder / "model")},
        "hook": {"point": "blocks.2.hook_resid_pre"},
        "text": {
            "source": str(folder / "text.jsonl"),
            "context": 128,
            "calibration_share": 0.1,
            "evaluation_share": 0.2,
        },
        "train": {"tokens": 512 * 300, "batch": 512},
        "measure": {"tokens": 20_000, "calibration_tokens": 10_000, "output_tokens": 0, "meta_steps": 50},
        "arms": ["solo", "control", "joint"],
    }
