"""What the pages read from the run's own files: rows of weights, firings, and how often a few latents fire together.

Read in milliseconds and without torch. Counts of firings are exact:

    phi(a, b) = (N n_ab - n_a n_b) / sqrt(n_a (N - n_a) n_b (N - n_b)), over N tokens.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from metasae.errors import UserError
from metasae.explore.store.blobs import BEFORE, LENGTH, short
from metasae.explore.store.open_store import StoredText
from metasae.measures.firing.arrays import Kind, open_arrays, read_index
from metasae.sae.layout import WEIGHTS

# as in metasae.measures.firing.by_latent, which loads torch; a test holds them equal
VIEW = Kind("firing store by latent", 1, {"indptr": "<i8", "tokens": "<i4", "values": "<f4"})
# (tokens int [c] rising, values float [c]) of one latent
Fired = tuple[np.ndarray, np.ndarray]


def weight_rows(arm_folder: Path, name: str, latents: Sequence[int]) -> np.ndarray:
    """float64 [m, d]: the decoder rows (name `W_dec`) or the encoder columns (`W_enc`) of some latents.

    Raises UserError when the file is missing or damaged.
    """
    before = () if name == "W_dec" else (slice(None),)
    path = arm_folder / "primary" / WEIGHTS
    try:
        with safe_open(path, "numpy") as file:
            weight = file.get_slice(name)
            rows = [weight[(*before, slice(latent, latent + 1))].reshape(-1) for latent in latents]
            return np.stack(rows).astype(np.float64)
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


def fired(arm_folder: Path, latent: int) -> Fired:
    """(tokens int32 [c] rising, values float32 [c]) of a latent.

    Raises UserError without firings by latent, or damaged ones.
    """
    arrays = _firings(arm_folder)
    first, end = arrays["indptr"][latent : latent + 2].tolist()
    return arrays["tokens"][first:end], arrays["values"][first:end]


@lru_cache(maxsize=64)
def _firings(arm_folder: Path) -> dict[str, np.ndarray]:
    folder = arm_folder / "firings" / "by_latent"
    arrays = open_arrays(folder, VIEW, read_index(folder, VIEW))
    # memory-maps as plain arrays: many small slices are cut from them
    return {name: np.asarray(array) for name, array in arrays.items()}


def phi(n_ab: int, n_a: int, n_b: int, n_tokens: int) -> float | None:
    """None where a latent fires on no token or on all."""
    below = n_a * (n_tokens - n_a) * n_b * (n_tokens - n_b)
    return (n_tokens * n_ab - n_a * n_b) / math.sqrt(below) if below > 0 else None


def phi_table(sides: Sequence[Fired], n_tokens: int) -> list[list[float | None]]:
    """phi of every pair of the latents."""
    table: list[list[float | None]] = [[None] * len(sides) for _ in sides]
    for (i, (one, _)), (j, (other, _)) in combinations_with_replacement(enumerate(sides), 2):
        n_both = int(np.isin(one, other, assume_unique=True).sum())
        table[i][j] = table[j][i] = phi(n_both, len(one), len(other), n_tokens)
    return table


def apart(places: np.ndarray, strength: np.ndarray, count: int) -> list[int]:
    """Up to `count` places, the strongest first (the first of equals), no two within half a window of each other.

    places: int [c], rising. strength: float [c], finite.
    """
    left, kept = strength.astype(np.float64), []
    while len(kept) < count and np.max(left, initial=-np.inf) > -np.inf:
        place = int(places[left.argmax()])
        kept.append(place)
        low, high = np.searchsorted(places, np.array([place - BEFORE + 1, place + BEFORE], places.dtype))
        left[low:high] = -np.inf
    return kept


def window(text: StoredText, peak: int, sides: Sequence[Fired]) -> dict:
    """The window around a token: document, start in it, place, peak, tokens, and `values`, those of each latent."""
    begin, end = text.stretch(peak)
    start = max(min(peak - BEFORE, end - LENGTH), begin)
    end = min(start + LENGTH, end)
    document, position = text.where(start)
    values = []
    for tokens, strengths in sides:
        row: list[float] = [0] * (end - start)
        # of one type with what is searched, which numpy would copy else
        low, high = np.searchsorted(tokens, np.array([start, end], tokens.dtype))
        for token, value in zip(tokens[low:high].tolist(), strengths[low:high].tolist(), strict=True):
            row[token - start] = short(value)
        values.append(row)
    return {
        "document": document,
        "start": position,
        "place": start,
        "peak": peak - start,
        "tokens": text.strings(start, end),
        "names": text.names(start, end),
        "values": values,
    }
