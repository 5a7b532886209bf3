"""SAEs of other libraries: read into one `metasae.SAE` with its exact rule of inference, and written with the same outputs.

`load(path)`, `export(sae, format, out)` and `detect(path)`; one file for each format, docs/interop.md for what each can hold.
"""

from metasae.interop.formats import NAMES, detect, export, load

__all__ = ["NAMES", "detect", "export", "load"]
