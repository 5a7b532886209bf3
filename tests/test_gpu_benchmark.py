"""benchmarks/gpu_step.py without a GPU: its parts on tiny shapes, its table, and what it says where there is no GPU."""

import os
import runpy
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu_engines
import gpu_harvest
import gpu_step
import gpu_table
from gpu_clock import measured_card
from gpu_table import Deadline, Row
from step import Shape, make_batches

from metasae.doctor.cards import Card

SCRIPT = Path(gpu_step.__file__)
CPU = torch.device("cpu")
TINY = Shape(16, 64, 4, 32, 8, 2)


@pytest.fixture
def card():
    """Faster than any CPU, so that no floor lies above what is measured."""
    return Card("fixed", 1e12, 1e12, 1e12, 1e12, 0, 0)


def test_the_rates_of_this_process():
    card = measured_card(CPU, 64)
    assert card.bf16 > 0 and card.fp32 > 0 and card.bandwidth > 0 and card.memory == 0


def test_steps_beside_their_floors(card):
    names = ("torch bf16", "dense bf16", "dense fp32")
    rows = gpu_engines.step_rows(TINY, CPU, make_batches(TINY, 2), card, names, macros=2)
    assert [row.name for row in rows] == [f"step, {name}" for name in names]
    for row in rows:
        assert (
            row.ms > row.floor_ms > 0
            and row.tokens_per_second == pytest.approx(1e3 * TINY.batch / row.ms)
            and row.peak_bytes == 0
        )
    # weights, moments and gradients of both SAEs in fp32, and a batch
    n, d, m = TINY.n, TINY.d, TINY.m
    assert (
        rows[2].floor_bytes
        == 16 * (2 * n * d + d + 2 * m * d + d + n * gpu_engines.recipe_for(TINY, "fp32").sae.b_enc)
        + 4 * TINY.batch * d
    )
    assert rows[1].floor_bytes == rows[2].floor_bytes / 2


def test_the_floor_of_an_engine_is_that_of_what_it_does(card):
    joint, solo, primary = (
        gpu_engines.step_floors(name, TINY, card)
        for name in ("triton bf16", "triton bf16 solo", "captured bf16, primary only")
    )
    assert solo[0] < primary[0] < joint[0] and solo[1] < joint[1] == primary[1]


def test_the_harvest_beside_its_floor(card):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": gpu_harvest.WORDS + 3}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    model, whole = gpu_harvest.harvest_rows(card, CPU, config, "blocks.1.hook_resid_pre", tokens=3000)
    weights = 2 * sum(weight.numel() for weight in transformers.GPT2LMHeadModel(config).parameters())
    assert model.floor_bytes == whole.floor_bytes == weights + 2 * 8192 * 32
    assert model.ms > model.floor_ms > 0 and whole.ms > model.floor_ms and whole.tokens_per_second > 0


def test_the_table_has_a_line_for_each_row_and_no_memory_where_none_was_measured():
    head, timed, refused = gpu_table.lines(
        [Row("a kernel", 2.0, 0.5), Row("a step", 30.0, 20.0, 1e6, 3 * 2**30, 2 * 2**30)]
    )
    assert timed.split() == ["a", "kernel", "2.000", "0.500", "4.0"]
    assert refused.split() == ["a", "step", "30.000", "20.000", "1.5", "1,000,000", "3.00", "2.00"]
    assert len(head) == len(timed.rstrip()) + 30 == len(refused)


def test_what_has_not_begun_in_time_is_left_out():
    begun = []

    def rows():
        for number in count():
            begun.append(number)
            deadline.end -= 20
            yield Row(str(number), 1.0, 1.0)

    deadline = Deadline(50)
    done, whole = gpu_table.until(deadline, rows())
    assert [row.name for row in done] == ["0", "1", "2"] and not whole and begun == [0, 1, 2]
    assert gpu_table.until(Deadline(50), [Row("a", 1.0, 1.0)]) == ([Row("a", 1.0, 1.0)], True)


INTERPRETED = """
import torch
from metasae.sae.kernels.triton import encoding
small = encoding.Tiles(16, 32, 16, 4, 1, 2)
encoding.TILES.update({torch.bfloat16: small, torch.float32: small})
from gpu_kernels import kernel_rows
from gpu_parity import parity
from step import Shape, make_batches
from metasae.doctor.cards import Card
shape, cpu = Shape(16, 64, 4, 16, 8, 2), torch.device("cpu")
batches = make_batches(shape, 3)
assert all(apart <= limit for _, apart, limit in parity(shape, cpu, batches))
rows = list(kernel_rows(shape, cpu, batches, Card("fixed", 1e12, 1e12, 1e12, 1e12, 0, 0)))
assert len(rows) == 19 and all(row.ms > row.floor_ms > 0 for row in rows)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_kernels_in_tritons_interpreter():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment, cwd=SCRIPT.parent, timeout=590)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    # as a program; it returns, so the exit status is 0
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr()
    assert not shown.err
    assert shown.out.count("\n") == 1 and "there is no CUDA device here, so nothing is timed" in shown.out


def test_the_whole_run_on_tiny_shapes(card, monkeypatch, capsys):
    """As on a GPU, but with plain torch's kernels for Triton's and a parity check that finds nothing."""
    harvested = Row("the model", 2.0, 1.0)
    monkeypatch.setattr(gpu_step, "measured_card", lambda device, matmul: card)
    monkeypatch.setattr(gpu_step, "harvest_rows", lambda card, device: [harvested])
    monkeypatch.setattr(gpu_step, "parity", lambda *_: [("select", 0.0, 0.0), ("decode", 1e-6, 1e-4)])
    monkeypatch.setattr(gpu_step, "kernel_rows", lambda *_: [Row("select", 2.0, 1.0)])
    monkeypatch.setattr(
        gpu_step, "step_rows", lambda *given: gpu_engines.step_rows(*given, names=("torch bf16",), macros=1)
    )
    result = gpu_step.run({"tiny": TINY}, CPU, minutes=1)
    assert [row.name for row in result["rows"]["tiny"]] == ["step, torch bf16", "select"] and result["rows"][
        "harvest"
    ] == [harvested]
    gpu_step.show(result)
    shown = capsys.readouterr().out
    assert "tiny: step, torch bf16" in shown and "tiny: 2 parity checks passed, furthest apart: decode 1.0e-06" in shown
    over = gpu_step.run({"tiny": TINY}, CPU, minutes=0)
    assert over["rows"] == {"harvest": []} and len(over["notes"]) == 2
    monkeypatch.setattr(gpu_step, "parity", lambda *_: [("decode", float("nan"), 1e-4)])
    with pytest.raises(SystemExit, match="decode is nan from plain torch"):
        gpu_step.run({"tiny": TINY}, CPU, minutes=1)
