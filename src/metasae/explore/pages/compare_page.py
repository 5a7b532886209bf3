"""Two latents side by side, as the page shows them, counted from the run's firings."""

from pathlib import Path

import numpy as np

from metasae.explore.pages import run_files
from metasae.explore.pages.labels import Labels
from metasae.explore.pages.latent_page import rows_of
from metasae.explore.store.open_store import OpenStore

WINDOWS = 10


def compare_page(store: OpenStore, labels: Labels, a: tuple[str, int], b: tuple[str, int]) -> dict:
    """Two latents; see `Explorer.compare_latents`. Raises KeyError for a latent that does not exist."""
    latents = [store.check(sae, latent) for sae, latent in (a, b)]
    saes = [store.sae(name) for name, _ in (a, b)]
    places = [(store.arm_folder(sae), latent) for sae, latent in zip(saes, latents, strict=True)]
    rows = [
        rows_of(store, sae, [latent], labels.of_latents(sae.name))[0] for sae, latent in zip(saes, latents, strict=True)
    ]
    page = {
        "a": rows[0],
        "b": rows[1],
        "cosine": _cosine("W_dec", places),
        "encoder_cosine": _cosine("W_enc", places),
    }
    if saes[0].text != saes[1].text or not all(map(store.has_firings, saes)):
        return {**page, "phi": None, "n_both": None, "n_a": None, "n_b": None, "only_a": [], "only_b": [], "both": []}
    sides = [run_files.fired(*place) for place in places]
    (tokens_a, values_a), (tokens_b, values_b) = sides
    in_b = np.isin(tokens_a, tokens_b, assume_unique=True)
    in_a = np.isin(tokens_b, tokens_a, assume_unique=True)
    text, n_both = store.text(saes[0].text), int(in_b.sum())

    def windows(tokens: np.ndarray, values: np.ndarray) -> list[dict]:
        shown = [run_files.window(text, peak, sides) for peak in run_files.apart(tokens, values, WINDOWS)]
        return [{**window, **dict(zip("ab", window.pop("values"), strict=True))} for window in shown]

    return {
        **page,
        "phi": run_files.phi(n_both, len(tokens_a), len(tokens_b), saes[0].n_tokens),
        "n_both": n_both,
        "n_a": len(tokens_a),
        "n_b": len(tokens_b),
        "only_a": windows(tokens_a[~in_b], values_a[~in_b]),
        "only_b": windows(tokens_b[~in_a], values_b[~in_a]),
        "both": windows(tokens_a[in_b], values_a[in_b]),
    }


def _cosine(name: str, places: list[tuple[Path, int]]) -> float | None:
    """The cosine of two latents' weights; None for SAEs of different width. places: arm folder, latent of each."""
    rows = [run_files.weight_rows(folder, name, [latent]) for folder, latent in places]
    return run_files.cosines(np.concatenate(rows))[0][1] if rows[0].shape == rows[1].shape else None
