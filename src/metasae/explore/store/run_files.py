"""Single rows of a run's weights and firings, read from its own files without torch, so that a page is served in milliseconds."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from metasae.errors import UserError
from metasae.measures.firing.arrays import Kind, open_arrays, read_index
from metasae.sae.layout import WEIGHTS

# as in metasae.measures.firing.by_latent, which loads torch; a test holds them equal
VIEW = Kind("firing store by latent", 1, {"indptr": "<i8", "tokens": "<i4", "values": "<f4"})


def decoder_rows(arm_folder: Path, latents: Sequence[int]) -> np.ndarray:
    """float64 [m, d]. Raises UserError when the file is missing or damaged."""
    return _rows(arm_folder, "W_dec", [(slice(latent, latent + 1),) for latent in latents])


def encoder_columns(arm_folder: Path, latents: Sequence[int]) -> np.ndarray:
    """float64 [m, d]."""
    return _rows(arm_folder, "W_enc", [(slice(None), slice(latent, latent + 1)) for latent in latents])


def _rows(arm_folder: Path, name: str, places: list[tuple[slice, ...]]) -> np.ndarray:
    """Each place, a row or a column of a weight, as one row."""
    path = arm_folder / "primary" / WEIGHTS
    try:
        with safe_open(path, "numpy") as file:
            weight = file.get_slice(name)
            return np.stack([weight[place].reshape(-1) for place in places]).astype(np.float64)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); train or measure this SAE again") from None


def cosines(rows: np.ndarray) -> list[list[float | None]]:
    """rows [m, d] -> their cosines; None beside a zero row."""
    lengths = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):
        table = rows @ rows.T / np.outer(lengths, lengths)
    return [[value if np.isfinite(value) else None for value in row] for row in table.tolist()]


def fired(arm_folder: Path, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [c] rising, values float32 [c]) of a latent. Raises UserError without firings by latent, or damaged ones."""
    arrays = _firings(arm_folder)
    first, end = arrays["indptr"][latent : latent + 2].tolist()
    return arrays["tokens"][first:end], arrays["values"][first:end]


@lru_cache(maxsize=64)
def _firings(arm_folder: Path) -> dict[str, np.ndarray]:
    folder = arm_folder / "firings" / "by_latent"
    arrays = open_arrays(folder, VIEW, read_index(folder, VIEW))
    # memory-maps as plain arrays: many small slices are cut from them
    return {name: np.asarray(array) for name, array in arrays.items()}
