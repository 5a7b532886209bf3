"""What is asked of a GPU, seen without one; torch's `meta` device stands for a trainer's that is not the processor."""

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch

from metasae import UserError
from metasae.data.model.readout import WholeLogits
from metasae.device import check_device, multiplies_bf16, widest, work_on
from metasae.measures.effect import effects
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


@pytest.mark.parametrize(
    ("platform", "built", "available", "ranks", "words"),
    [
        ("linux", True, True, "", "Apple's GPUs are in Macs, and this machine runs linux; use --device cpu"),
        ("win32", True, True, "", "this machine runs win32"),
        ("darwin", False, False, "", "this PyTorch was built without MPS"),
        ("darwin", True, False, "1", "MPS needs macOS 14 or later"),
        ("darwin", True, True, "2", "several processes work together here"),
        ("darwin", True, True, "1", None),
        ("darwin", True, True, "", None),
    ],
)
def test_apples_gpu_is_taken_where_it_is_and_refused_with_the_reason(
    monkeypatch, platform, built, available, ranks, words
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    refusal = contextlib.nullcontext() if words is None else pytest.raises(UserError, match=words)
    with refusal as caught:
        check_device("mps")
    assert words is None or ("\n" not in str(caught.value) and str(caught.value).startswith("--device mps: "))


def test_on_apples_gpu_numbers_are_fp32():
    place = torch.device("mps")
    assert widest(place) == torch.float32 and not multiplies_bf16(place)
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64


def test_effects_of_a_device_without_float64_are_near_those_with(monkeypatch):
    """float32 stands for the widest numbers of a processor, as on Apple's GPUs."""
    generator = torch.Generator().manual_seed(0)
    logits = {name: 4 * torch.randn(30, 50, generator=generator) for name in ("clean", "sae")}
    targets = torch.randint(50, (30,), generator=generator)
    batch = SimpleNamespace(mask=torch.ones(3, 10), own=torch.ones(3, 10, dtype=torch.bool), documents=torch.arange(3))
    readout = WholeLogits(50)
    readout.slices = lambda: iter([(0, 20), (20, 50)])

    def numbers():
        ce, kl = effects._of_rows(readout, logits, targets)
        states = {name: values.view(3, 10, 50) for name, values in logits.items()}
        piece = effects.EncoderEffect().piece(states["clean"], {"sae": states["sae"]}, batch)
        return [ce["clean"], ce["sae"], kl["sae"], *(torch.from_numpy(kind["sae"]) for kind in piece)]

    exact = numbers()
    monkeypatch.setattr(effects, "widest", lambda _: torch.float32)
    rough = numbers()
    assert {x.dtype for x in exact} == {torch.float64} and rough[0].dtype == torch.float32
    assert all(torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5) for a, b in zip(rough, exact, strict=True))
