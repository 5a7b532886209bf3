"""Single rows of an SAE's weights, mapped from disk: without torch, and without reading the rest.

A safetensors file: the length of the header in 8 bytes, the header (JSON: name -> dtype, shape and place of each tensor), the tensors
(https://github.com/huggingface/safetensors#format). Ours are float32.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from metasae.errors import UserError

WEIGHTS = "sae_weights.safetensors"


def decoder_rows(arm_folder: Path, latents: list[int]) -> np.ndarray:
    """float64 [m, d]. Raises UserError when the file is missing or damaged."""
    return _tensors(arm_folder)["W_dec"][latents].astype(np.float64)


def encoder_columns(arm_folder: Path, latents: list[int]) -> np.ndarray:
    """float64 [m, d]."""
    return _tensors(arm_folder)["W_enc"][:, latents].T.astype(np.float64)


def cosines(rows: np.ndarray) -> list[list[float | None]]:
    """rows [m, d] -> their cosines; None beside a zero row."""
    lengths = np.linalg.norm(rows, axis=1)
    below, products = np.outer(lengths, lengths), rows @ rows.T
    return [
        [float(product / length) if length > 0 else None for product, length in zip(*each, strict=True)]
        for each in zip(products, below, strict=True)
    ]


@lru_cache(maxsize=64)
def _tensors(arm_folder: Path) -> dict[str, np.ndarray]:
    path = arm_folder / "primary" / WEIGHTS
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        found = {}
        for name in ("W_dec", "W_enc"):
            entry = header[name]
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} is {entry['dtype']}, not F32")
            array = np.memmap(path, "<f4", "r", offset=8 + size + entry["data_offsets"][0], shape=tuple(entry["shape"]))
            # as a plain array: many small slices are cut from it
            found[name] = np.asarray(array)
        return found
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is damaged ({error}); train or measure this SAE again") from None
