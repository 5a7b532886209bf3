"""Neighbours of a latent, packed: int32 [m] latents, then float32 [m] values, the closest first."""

import numpy as np


def pack(latents: np.ndarray, values: np.ndarray) -> bytes:
    return latents.astype("<i4").tobytes() + values.astype("<f4").tobytes()


def unpack(blob: bytes) -> tuple[list[int], list[float]]:
    half = len(blob) // 2
    values = np.frombuffer(blob, "<f4", offset=half).tolist()
    return np.frombuffer(blob[:half], "<i4").tolist(), [float(f"{value:.6g}") for value in values]
