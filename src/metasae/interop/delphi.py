"""Writes a firing store as delphi's cache of latents (EleutherAI, `eai-delphi`), for its explainers and scorers.

    OUT/HOOKPOINT/START_END.safetensors    latents START to END, both included
        locations     [nnz, 3]  row, column, latent - START; uint16 where all three fit, else uint32
        activations   [nnz]     fp16
        tokens        int64 [R, L]
    OUT/HOOKPOINT/config.json              model_name, the text, and under `metasae` where the firings come from

delphi itself packs documents one after another. Here a row lies within a document, and the last row of each is padded
with the id 0. fp16 rounds by up to 2^-11 of a value, and below 6.1e-5 by up to 3e-8. Where some activation of the store
would become infinite or 0 in it, all are written in fp32, which delphi's loader takes as well; config.json says which.
Entries are in the order of latents, then tokens. The firings are never in memory as a whole.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.files import write_json
from metasae.interop import checked
from metasae.interop.outputs import new_folder, write_safetensors
from metasae.interop.stored_firings import StoredFirings, TokenGrid, grid_of, row_length, stored_firings
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.store import of_firings
from metasae.progress.progress import SILENT, Progress

# The number of files that delphi itself writes per hook point by default.
FILES = 5
# The token id in places without a token.
PADDING = 0
# Entries in memory at once.
CHUNK = 1 << 20


def export_delphi(
    arm_folder: str | Path,
    out: str | Path,
    *,
    hookpoint: str | None = None,
    context: int | None = None,
    progress: Progress = SILENT,
) -> dict:
    """Writes the firings of an arm as a cache that delphi's `LatentDataset(out)` opens; returns the contents of
    config.json.

    hookpoint: the folder's name, None for the SAE's own hook. context: L, None for the context the SAE was trained
    with; delphi wants R L to be a multiple of its `example_ctx_len` (32). Raises UserError where the arm keeps no
    firings, `out` is not empty, or a name or size is impossible.
    """
    stored = stored_firings(arm_folder, progress)
    view, hookpoint = stored.by_latent, hookpoint or stored.hook
    if not re.fullmatch(r"\w[\w.-]*", hookpoint):
        raise UserError(
            f"{checked.shown(hookpoint)} cannot name a folder; "
            "give hookpoint=, letters, digits, dots and dashes, as layers.5"
        )
    per_file = -(-view.n_latents // FILES)
    grid = grid_of(stored.firings.documents, stored.firings.positions, row_length(stored.metadata, context))
    dtype = _activation_dtype(view.values)
    config = _config(stored, grid, per_file, dtype)
    with new_folder(Path(out)) as part, progress.task("writing firings", len(view.values), "firings") as task:
        (part / hookpoint).mkdir()
        for start in range(0, view.n_latents, per_file):
            end = min(start + per_file, view.n_latents)
            _write(part / hookpoint / f"{start}_{end - 1}.safetensors", stored, grid, start, end, dtype)
            task.advance(int(view.indptr[end] - view.indptr[start]))
        write_json(part / hookpoint / "config.json", config)
    return config


def _write(path: Path, stored: StoredFirings, grid: TokenGrid, start: int, end: int, dtype: np.dtype) -> None:
    """The file of the latents [start, end)."""
    view = stored.by_latent
    first, last = int(view.indptr[start]), int(view.indptr[end])
    small = grid.n_rows <= 1 << 16 and end - start <= 1 << 16
    places = np.dtype("<u2" if small else "<u4")
    activations = (view.values[a:b].astype(dtype) for a, b in _chunks(first, last))
    tensors = {
        "tokens": ((grid.n_rows, grid.length), np.dtype("<i8"), grid.blocks(stored.firings.tokens, PADDING)),
        "locations": ((last - first, 3), places, _locations(view, grid, start, first, last, places)),
        "activations": ((last - first,), dtype, activations),
    }
    write_safetensors(path, tensors)


def _locations(
    view: ByLatent, grid: TokenGrid, start: int, first: int, last: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """[<= CHUNK, 3] at a time: row, column and latent - start of the entries [first, last)."""
    for a, b in _chunks(first, last):
        tokens = view.tokens[a:b]
        latents = np.searchsorted(view.indptr, np.arange(a, b), side="right") - 1
        yield np.stack([grid.row[tokens], grid.column[tokens], latents - start], axis=1).astype(dtype)


def _chunks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for a in range(first, last, CHUNK):
        yield a, min(a + CHUNK, last)


def _activation_dtype(values: np.ndarray) -> np.dtype:
    """fp16 where every activation stays a positive finite number in it."""
    for a, b in _chunks(0, len(values)):
        # a value out of range becomes infinite here, which is what the test looks for
        with np.errstate(over="ignore"):
            half = values[a:b].astype(np.float16)
        if np.isinf(half).any() or (half == 0).any():
            return np.dtype("<f4")
    return np.dtype("<f2")


def _config(stored: StoredFirings, grid: TokenGrid, per_file: int, dtype: np.dtype) -> dict:
    """The fields of delphi's own config.json, as far as they are known, and metasae's own fields."""
    where, origin = str(stored.arm.folder), of_firings(stored.arm.folder)
    noted = checked.table(stored.notes, "recipe", where)
    model, text = (checked.table(noted, name, where) for name in ("model", "text"))
    return {
        "model_name": model.get("name") or model.get("path") or stored.metadata.get("model_name") or "",
        "dataset_repo": text.get("source") or stored.metadata.get("dataset_path") or "",
        "dataset_split": text.get("split", ""),
        "dataset_name": text.get("name", ""),
        "dataset_column": text.get("column", ""),
        "batch_size": 1,
        "cache_ctx_len": grid.length,
        "ctx_len": grid.length,
        "n_tokens": stored.firings.n_tokens,
        "n_splits": -(-stored.by_latent.n_latents // per_file),
        "metasae": {
            "arm": stored.arm.name,
            "seed": stored.notes.get("seed"),
            "n_latents": stored.by_latent.n_latents,
            "n_firings": len(stored.by_latent.values),
            "l0": stored.firings.l0,
            "activations": "fp16" if dtype.itemsize == 2 else "fp32",
            "packed": False,
            "padding": {"id": PADDING, "places": grid.n_rows * grid.length - len(grid.row)},
            "sae": origin["sae"],
            "split": origin["text"],
        },
    }
