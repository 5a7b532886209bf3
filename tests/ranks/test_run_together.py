"""`metasae run` on two ranks: one run folder, as one process would have made it up to rounding."""

import json
import os
import shutil

from safetensors.torch import load_file, save_file

import metasae
from drawing import undrawn
from spawned import Program, environment, free_port, on_ranks

SMALL = {
    "sae.n": 48, "sae.k": 3, "meta.n": 6, "train.tokens": 10_000, "train.batch": 500, "train.lr": 1e-2,
    "train.dead_after": 5_000, "train.dtype": "fp32", "measure.tokens": 4_000, "measure.calibration_tokens": 3_000,
    "measure.meta_steps": 10, "measure.critics": 1, "measure.shifts": 0, "measure.pursuit_k": 0, "measure.lift": False,
    "measure.explorer": False, "seeds": 1,
}  # fmt: skip


def run_three_arms(out):
    with undrawn():
        metasae.run("planted", out=out, overrides={**SMALL, "arms": ["solo", "control", "joint"]}, show=False)


def run_joint_on_two_ranks(out):
    """Through the command line, in two processes as torchrun starts them; what they print together."""
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={str(value).lower()}")]
    command, port = ["-m", "metasae", "run", "planted", "--arms", "joint", "--out", out, *settings], free_port()
    started = [Program(command, os.environ | environment(rank, 2, port)) for rank in range(2)]
    printed = [program.communicate(300) for program in started]
    assert [program.returncode for program in started] == [0, 0], [errors[-2000:] for _, errors in printed]
    return "".join(shown for shown, _ in printed)


def as_if_measured_otherwise(arm):
    """An arm as another measure.threshold would have left it: its thresholds are set again."""
    for path, settings in (
        (arm / "measures.json", lambda values: values["settings"]),
        (arm / "primary" / "cfg.json", lambda values: values["metadata"]["metasae"]["recipe"]["measure"]),
    ):
        values = json.loads(path.read_text())
        settings(values)["threshold"] = "eer"
        path.write_text(json.dumps(values))
    weights = load_file(arm / "primary" / "sae_weights.safetensors")
    save_file({**weights, "threshold": weights["threshold"] * 2}, arm / "primary" / "sae_weights.safetensors")


def test_two_processes_make_the_run_of_one(tmp_path):
    run_three_arms(tmp_path / "one")
    printed = run_joint_on_two_ranks(tmp_path / "two")
    # one of them talks
    assert printed.count("Report:") == 1
    lines = [
        [json.loads(line) for line in (tmp_path / name / "arms" / "joint-s0" / "metrics.jsonl").open()]
        for name in ("one", "two")
    ]
    assert len(lines[0]) == len(lines[1]) > 0
    for one, two in zip(*lines, strict=True):
        assert one["step"] == two["step"] and abs(one["loss"] / two["loss"] - 1) < 1e-5
    assert (tmp_path / "two" / "report.html").is_file() and not list((tmp_path / "two").glob("arms/*/checkpoints"))

    # the arms of one process measured again by two
    again = shutil.copytree(tmp_path / "one", tmp_path / "again")
    arms = sorted(again.glob("arms/*"))
    for arm in arms:
        if arm.name == "joint-s0":
            as_if_measured_otherwise(arm)
            continue
        (arm / "measures.json").unlink()
        shutil.rmtree(arm / "firings", ignore_errors=True)
    on_ranks(2, run_three_arms, again, joins=True)
    assert len(arms) == 3
    for arm in arms:
        measures = (arm / "measures.json").read_bytes()
        assert measures == (tmp_path / "one" / "arms" / arm.name / "measures.json").read_bytes()
        weights = (arm / "primary" / "sae_weights.safetensors").read_bytes()
        assert weights == (tmp_path / "one" / "arms" / arm.name / "primary" / "sae_weights.safetensors").read_bytes()
    assert (
        json.loads((again / "arms" / "control-s0" / "measures.json").read_text())["conditions"]["same_weights_as"]
        == "solo-s0"
    )
