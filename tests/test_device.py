"""What is asked of a GPU, seen without one; torch's `meta` device stands for a trainer's that is not the processor."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from metasae.device import multiplies_bf16, work_on
from metasae.train.loop import MetricsLog


def test_a_gpu_that_only_emulates_bf16_does_not_multiply_it(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda chosen: asked.append(chosen) or contextlib.nullcontext())
    # torch's own answer for a card that holds bf16 numbers and has no instruction for them
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not multiplies_bf16(torch.device("cuda:1")) and asked == [torch.device("cuda:1")]


@pytest.mark.parametrize("name, current", [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_the_gpu_that_is_worked_on_is_the_current_one(monkeypatch, name, current):
    chosen, products = [], SimpleNamespace(allow_bf16_reduced_precision_reduction=True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cuda, "matmul", products)
    work_on(torch.device(name))
    assert chosen == current and products.allow_bf16_reduced_precision_reduction == (name == "cpu")


def test_numbers_of_a_checkpoint_lie_with_those_of_the_steps_to_come(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", SimpleNamespace(device=torch.device("meta"), leads=False))
    log.resume([{"l2": 1.0}, {"l2": 2.0}, {"penalty": 3.0}], 0)
    assert [tensor.device.type for numbers in (*log.window, log.pending) for tensor in numbers.values()] == ["meta"] * 3
