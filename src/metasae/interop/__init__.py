"""Reads SAEs of other libraries into `metasae.SAE` with their exact rule of inference, and writes SAEs for other
libraries with the same outputs.

`load(path)`, `export(sae, format, out)` and `detect(path)`; one file for each format, docs/interop.md for what each can
hold. They are loaded when first used, so that calls without weights need no torch.
"""

import importlib

_HOME = {"NAMES": "detection", "detect": "detection", "export": "formats", "load": "formats"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'metasae.interop' has no attribute '{name}'")
    return getattr(importlib.import_module(f"metasae.interop.{_HOME[name]}"), name)
