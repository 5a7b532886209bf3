"""Every verb answers a mistake before a heavy library is imported, which takes seconds, and in one line.

All mistakes are made in one process, in which no command imports torch; so the one that does is named.
"""

import json
import os
import subprocess
import sys
import time

import pytest

import metasae
from metasae.cli import app
from metasae.interop.detection import NAMES
from metasae.interop.formats import FORMATS
from metasae.recipe.recipe import Recipe
from runs import write_arm

HEAVY = ("torch", "transformers", "scipy", "matplotlib", "optuna", "plotly", "lap", "datasets")
# {run}: a run folder whose arm is measured and keeps no firings; {sae}: the SAE in it; {full}: a folder with a file in
# it
MISTAKES = [
    ("mesure x", "did you mean 'measure'"),
    ("run demo --sead 3", "No such option: --sead"),
    ("run", "Missing argument"),
    ("run demmo", "did you mean 'demo'"),
    ("run demo --set lambda2=.1", "did you mean 'train.lambda2'?"),
    ("run demo --set n=4", "did you mean 'sae.n' or 'meta.n' or 'spikes.n'?"),
    ("run demo --set train.lr=fast", "train.lr"),
    ("run demo --arms joined", "did you mean 'joint'"),
    ("run demo --seeds three", "--seeds takes a count"),
    ("run demo --device gpu", "'gpu' is not one of cpu, cuda, cuda:N, mps"),
    ("run demo --track wand", "choose tensorboard or wandb"),
    ("run demo --points a,a", "--points takes each point once"),
    ("run demo --set measure.senses=absent", "measure.senses: no file or folder 'absent'"),
    ("run demo --set model.path=absent", "the model folder 'absent' does not exist"),
    ("run demo --set text.source=absent.jsonl", "text.source 'absent.jsonl' is no file or folder"),
    ("run demo --out {run} --set train.lr=.5", "holds a run with train.lr"),
    ("doctor demmo", "did you mean 'demo'"),
    ("doctor demo --gpu h2000", "did you mean 'h200'"),
    ("doctor demo --gpus 2", "a plan needs --gpu NAME"),
    ("doctor demo --gpu h200 --gpus 0", "there must be at least one"),
    ("doctor demo --gpu h200 --efficiency 2", "must be above 0 and at most 1"),
    ("doctor demo --gpu h200 --set lambda2=1", "train.lambda2"),
    ("doctor demo --device tpu", "'tpu' is not one of"),
    ("recipes dem", "did you mean 'demo'"),
    ("measure absent", "no SAE at 'absent'"),
    ("measure {full}", "is no SAE of a known format"),
    ("measure {sae} --set train.lr=fast", "train.lr"),
    ("measure {sae} --recipe demmo", "did you mean 'demo'"),
    ("measure {sae} {sae}", "are both joint-s0"),
    ("measure {sae} --device tpu", "'tpu' is not one of"),
    ("measure {sae} --out {full}/file", "cannot write {full}/file"),
    ("compare absent", "absent is not a run folder"),
    ("compare {run} --baseline jiont", "did you mean 'joint'"),
    ("sweep demmo --grid train.lr=1", "did you mean 'demo'"),
    ("sweep demo", "give one of --grid"),
    ("sweep demo --grid lambda2=.1,.2", "lambda2"),
    ("sweep demo --named lamda2-sigma", "did you mean 'lambda2-sigma'"),
    ("sweep demo --grid train.lr=fast,slow", "train.lr"),
    ("sweep demo --grid train.lr=.1 --seeds x", "--seeds takes"),
    ("sweep demo --grid train.lr=.1 --workers 0", "--workers 0"),
    ("sweep demo --grid train.lr=.1 --objective fvu", "fidelity.fvu"),
    ("sweep demo --grid train.lr=.1 --device tpu", "'tpu' is not one of"),
    ("interp absent", "no folder absent"),
    ("interp {full}", "it has no recipe.toml"),
    ("interp {run}", "keeps no firings"),
    ("interp {run} --arms jiont", "did you mean 'joint'"),
    ("interp {run} --seeds 7,", "has the seeds asked for"),
    ("interp {run} --scores detect", "did you mean 'detection'"),
    ("interp {run} --scores detection", "needs a judge"),
    ("interp {run} --scores detection --replay --model x", "no replies to replay"),
    ("interp {run} --price x", "--price takes"),
    ("interp {run} --latents 0", "--latents needs"),
    ("explore absent", "absent is not a run folder"),
    ("explore {run} --port 99999", "choose another --port"),
    ("explore {run} --port x", "Invalid value for '--port'"),
    ("explore {run} --static {full}", "is no export of the explorer"),
    ("steer absent --latent 1=off --prompt x", "no SAE at 'absent'"),
    ("steer {sae} --latent 1=on --prompt x", "an edit is LATENT=VALUE"),
    ("steer {sae} --latent 1=nan --prompt x", "must be a finite number"),
    ("steer {sae} --latent 99=off --prompt x", "no latent 99"),
    ("steer {sae} --latent 1=off", "Missing option '--prompt'"),
    ("steer {sae} --latent 1=off --prompt x --device tpu", "'tpu' is not one of"),
    ("steer {run} --latent 1=off --prompt x", "is a run folder; give one of"),
    ("export {sae} --to sealens --out new", "did you mean 'saelens'"),
    ("export absent --to saelens --out new", "no SAE at 'absent'"),
    ("export {sae} --to saelens --out {full}", "is there already"),
    ("export {sae} --to delphi --out new", "keeps no firings"),
    ("export {sae} --to saelens --out new --context 8", "--context goes with"),
    ("export hf:nothing --to saelens --out new", "is no address of an SAE on the hub"),
    ("import absent --out new", "no SAE at 'absent'"),
    ("import {sae} --out {full}", "is there already"),
    ("import {sae} --out new --thresholds x.npy", "thresholds belong to the paper's checkpoints"),
    ("track absent", "has no SAE whose training has begun"),
    ("track {run} --to tensorbord", "choose tensorboard or wandb"),
    ("push absent --repo a/b --license mit", "neither a run folder nor an SAE folder"),
    ("push {run} --repo ab --license mit", "write OWNER/NAME"),
    ("push {run} --repo a/b --license !", "licence"),
    ("push {run} --repo a/b --license mit", "is not finished"),
    ("bench {sae} --out new --evals meta", "unknown evaluation 'meta'"),
]
CHILD = """
import json, sys, time
from metasae.cli import main
heavy, mistakes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for words in mistakes:
    sys.argv, began, code = ["metasae", *words], time.perf_counter(), 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    imported = [name for name in heavy if name in sys.modules]
    print(json.dumps([code, time.perf_counter() - began, imported]), flush=True)
    print("--", file=sys.stderr, flush=True)
    if imported:
        # the next mistake shall find a process without it
        sys.exit(0)
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("mistakes")
    run, full = root / "run", root / "full"
    arm = write_arm(run, "joint", 0)
    recipe = Recipe.load("demo", {"arms": ["joint", "solo"]})
    recipe.save(run / "recipe.toml")
    (run / "run.json").write_text("{}")
    (arm / "primary").mkdir()
    own = {"arm": "joint", "seed": 0, "recipe": recipe.model_dump(mode="json")}
    config = {
        "architecture": "jumprelu",
        "d_in": 8,
        "d_sae": 16,
        "metadata": {"trained_architecture": "batchtopk", "metasae": own},
    }
    (arm / "primary" / "cfg.json").write_text(json.dumps(config))
    # never read: what is wrong is known before
    (arm / "primary" / "sae_weights.safetensors").write_bytes(b"")
    full.mkdir()
    (full / "file").write_text("mine")
    return {"run": run, "sae": arm / "primary", "full": full}


@pytest.fixture(scope="module")
def answers(places, tmp_path_factory):
    """For every mistake: exit code, seconds, heavy modules that were imported, what was written to stderr."""
    mistakes = [[part.format(**places) for part in words.split()] for words, _ in MISTAKES]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
    here = tmp_path_factory.mktemp("here")
    replies = []
    while len(replies) < len(mistakes):
        command = [sys.executable, "-c", CHILD, json.dumps(HEAVY), json.dumps(mistakes[len(replies) :])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here)
        assert done.returncode == 0, done.stderr[-3000:]
        lines, told = done.stdout.splitlines(), done.stderr.split("--\n")[:-1]
        replies += [(*json.loads(line), words) for line, words in zip(lines, told, strict=True)]
    assert not [path for path in here.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return replies


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[words.replace(" ", "_") for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_needs_no_heavy_library(answers, places, number):
    code, _, imported, told = answers[number]
    assert code == 2, told
    assert told.startswith("metasae: ") and len(told.strip().splitlines()) == 1
    assert MISTAKES[number][1].format(**places) in told
    assert imported == []


def test_every_verb_has_mistakes():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert verbs <= {words.split()[0] for words, _ in MISTAKES}


def test_a_mistake_is_answered_in_the_time_of_a_few_imports(tmp_path):
    """The import guard above is the firm check; this one catches a slow import of another kind, however busy the
    machine is.
    """

    def seconds(*command):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, cwd=tmp_path)
        return time.perf_counter() - began

    limit = 8 * min(seconds("-c", "import numpy") for _ in range(3)) + 0.5
    for words in ("--version", "run demo --set lambda2=1", "interp absent", "export absent --to saelens --out new"):
        assert any(seconds("-m", "metasae", *words.split()) < limit for _ in range(3)), words


def test_the_names_that_are_known_without_torch_are_those_that_are_written():
    assert ("metasae", *FORMATS) == NAMES


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_here_is_refused_without_torch(device):
    pytest.importorskip("torch")
    script = "import sys\nfrom metasae import device\ntry:\n    device.check_device(sys.argv[1])\n"
    script += "except Exception as error:\n    print(error)\n"
    script += "print('torch' in sys.modules, device._has_driver())"
    done = subprocess.run([sys.executable, "-c", script, device], capture_output=True, text=True)
    *refusal, facts = done.stdout.splitlines()
    torch_came, has_driver = (word == "True" for word in facts.split())
    if has_driver:
        pytest.skip("this machine has a GPU driver, so torch is asked")
    assert refusal == [f"--device {device}: no CUDA device is available here; use --device cpu"] and not torch_came


def test_version_is_the_packages():
    done = subprocess.run([sys.executable, "-m", "metasae", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"metasae {metasae.__version__}\n")
