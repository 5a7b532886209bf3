"""`metasae run` under torchrun: one run folder, as one process would have made it up to rounding."""

import json
import os
import subprocess
import sys

SMALL = [
    "sae.n=48", "sae.k=3", "meta.n=6", "train.tokens=10_000", "train.batch=500", "train.lr=1e-2", "train.dead_after=5_000", "train.dtype=fp32",
    "measure.tokens=4_000", "measure.calibration_tokens=3_000", "measure.meta_steps=10", "measure.shifts=0", "measure.pursuit_k=0",
    "measure.lift=false", "measure.explorer=false",
]  # fmt: skip


def run(out, *launcher):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [*launcher, "-m", "metasae", "run", "planted", "--seeds", "1", "--arms", "joint", "--out", str(out), *settings]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_two_processes_make_the_run_of_one(tmp_path):
    run(tmp_path / "one", sys.executable)
    done = run(tmp_path / "two", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # one of them talks
    assert done.stdout.count("Report:") == 1
    lines = [[json.loads(line) for line in (tmp_path / name / "arms" / "joint-s0" / "metrics.jsonl").open()] for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) > 0
    for one, two in zip(*lines, strict=True):
        assert one["step"] == two["step"] and abs(one["loss"] / two["loss"] - 1) < 1e-5
    assert (tmp_path / "two" / "report.html").is_file() and not list((tmp_path / "two").glob("arms/*/checkpoints"))
