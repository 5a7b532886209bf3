"""The Triton kernels: parity with the plain ones, in a process of its own, and what happens where they cannot run.

Whether kernels are compiled or interpreted is settled when triton is first imported, and that may have happened here
already.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metasae.errors import UserError
from metasae.sae.kernels import fast, kernels, presence

PARITY = Path(__file__).with_name("triton_parity.py")
without_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@without_triton
@pytest.mark.timeout(300)
def test_parity_with_the_plain_kernels():
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", str(PARITY), "-q", "-x", "-p", "no:cacheprovider", "--timeout", "250"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PARITY.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_triton_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(presence, "INTERPRETED", False)
    monkeypatch.setattr(presence.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="needs a CUDA device and there is none"):
        kernels("triton")


def test_triton_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(presence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[gpu-kernels\]'"):
        kernels("triton")
    assert kernels("auto", torch.device("cuda")) is fast


def test_auto_on_a_cpu_is_fast():
    assert kernels("auto", torch.device("cpu")) is fast
    assert kernels("auto") is fast
